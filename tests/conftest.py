"""Fixtures that all tests share; see `tests/helpers.py` for the functions that make small models and batches."""

from __future__ import annotations

import os

# Two test files run at a time, and tests start processes: one core each. Set before PyTorch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.world_models.delta_iris import TransformerTokenizer
from delta_iris.world_models.tokens.dynamics import TokenDynamics
from tests.helpers import make_actor_critic, make_dynamics, make_tokenizer


@pytest.fixture
def tokenizer() -> TransformerTokenizer:
    return make_tokenizer()


@pytest.fixture
def dynamics() -> TokenDynamics:
    return make_dynamics()


@pytest.fixture
def actor_critic() -> ActorCritic:
    return make_actor_critic()


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Disable TF32, so that float32 results on a GPU are comparable."""
    previous = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(previous[0])
    torch.backends.cudnn.allow_tf32 = previous[1]
