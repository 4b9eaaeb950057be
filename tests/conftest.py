"""Small models and random windows for all tests."""

from __future__ import annotations

import os

# Two tests at a time, and processes of their own: a core each. Before PyTorch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from delta_iris.actor_critic.module import Agent
from delta_iris.data.segment import Window
from delta_iris.world_models.delta_iris.cnn_tokenizer import CNNTokenizer
from delta_iris.world_models.delta_iris.transformer_tokenizer import TransformerTokenizer
from delta_iris.world_models.tokens.dynamics import WorldModel

ACTIONS, FRAMES, SIZE, CODES = 5, 9, (32, 32), 32
SMALL_CNN = {"frame_channels": 4, "frame_multipliers": (1, 2), "frame_halvings": (0, 1, 2)}


def make_tokenizer(num_actions: int = ACTIONS, **changes) -> TransformerTokenizer:
    options = {
        "codebook_size": CODES,
        "code_dim": 8,
        "patch_size": 4,
        "dim": 16,
        "heads": 2,
        "encoder_layers": (1, 2, 1),
        "decoder_layers": (1, 1, 2),
    }
    torch.manual_seed(0)
    return TransformerTokenizer(SIZE, num_actions, FRAMES, 4, **(options | SMALL_CNN | changes))


def make_cnn_tokenizer(**changes) -> CNNTokenizer:
    options = {"channels": 8, "multipliers": (1, 2), "halvings": (0, 1), "latent_channels": 4, "frame_channels": 2}
    torch.manual_seed(0)
    return CNNTokenizer(SIZE, ACTIONS, FRAMES, 4, CODES, 8, **(options | changes))


def make_world_model(num_actions: int = ACTIONS, **changes) -> WorldModel:
    torch.manual_seed(1)
    options = {"dim": 16, "layers": 2, "heads": 2} | SMALL_CNN | changes
    model = WorldModel(SIZE, num_actions, FRAMES, 4, CODES, **options)
    # The reward head starts at zero, which would hide what it depends on.
    torch.nn.init.normal_(model.dynamics.reward_head[-1].weight)
    return model


def make_agent(num_actions: int = ACTIONS, **changes) -> Agent:
    torch.manual_seed(2)
    options = {
        "hidden": 16,
        "channels": 4,
        "multipliers": (1, 2),
        "halvings": (0, 1, 2),
        "latent_channels": 2,
        "burn_in": 3,
        "horizon": 5,
    }
    agent = Agent(SIZE, num_actions, **(options | changes))
    for network in (agent.network, agent.target):
        for head in (network.actor, network.critic):
            torch.nn.init.normal_(head.weight, std=0.3)
    return agent


def make_window(batch: int = 3, frames: int = FRAMES, *, padded: bool = False, seed: int = 0) -> Window:
    """Random windows; where `padded`, the first overhangs its episode's start and the second its end."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(batch, frames, dtype=torch.bool)
    if padded:
        valid[0, :3] = False
        valid[1, -2:] = False
    return Window(
        torch.randint(0, 256, (batch, frames, 3, *SIZE), generator=generator, dtype=torch.uint8),
        torch.randint(0, ACTIONS, (batch, frames), generator=generator),
        torch.randn(batch, frames, generator=generator),
        torch.randint(0, 2, (batch, frames), generator=generator),
        valid,
    )


def make_moving_ramp() -> Window:
    """Smooth frames that move: random pixels cannot be compressed."""
    window, ramp = make_window(2), torch.linspace(0, 255, SIZE[1])
    for t in range(FRAMES):
        window.frames[:, t] = ramp.roll(3 * t).to(torch.uint8)
    return window


def scramble(window: Window, where: torch.Tensor) -> Window:
    """The window with everything changed in the slots where (B, T) `where` is true, but for `valid`."""
    other = make_window(*window.valid.shape, seed=99)
    fields = [
        torch.where(where.view(*where.shape, *[1] * (mine.ndim - 2)), theirs, mine)
        for mine, theirs in zip(window[:4], other[:4], strict=True)
    ]
    return Window(*fields, window.valid)


@pytest.fixture
def tokenizer() -> TransformerTokenizer:
    return make_tokenizer()


@pytest.fixture
def world_model() -> WorldModel:
    return make_world_model()


@pytest.fixture
def agent() -> Agent:
    return make_agent()
