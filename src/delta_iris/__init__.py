"""Δ-IRIS: a world-model agent with context-aware tokens, on PyTorch Lightning.

The public names are imported when they are first used:

    from delta_iris import load_pretrained, make_env
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import delta_iris.envs.registration  # noqa: F401  (registers the environments with Gymnasium)

if TYPE_CHECKING:
    from delta_iris.actor_critic.module import ActorCritic
    from delta_iris.data.segment import SegmentBatch
    from delta_iris.envs.make import make_env
    from delta_iris.imagination.rollout import ImaginedEnv
    from delta_iris.imagination.vector_env import ImaginedVectorEnv
    from delta_iris.pretrained import Agent, load_pretrained
    from delta_iris.training.systems.delta_iris import DeltaIris
    from delta_iris.training.systems.iris import Iris
    from delta_iris.world_models.base import WorldModel
    from delta_iris.world_models.delta_iris.cnn_tokenizer import CNNTokenizer
    from delta_iris.world_models.delta_iris.transformer_tokenizer import TransformerTokenizer
    from delta_iris.world_models.iris.frame_dynamics import FrameDynamics
    from delta_iris.world_models.iris.frame_tokenizer import FrameTokenizer
    from delta_iris.world_models.tokens.dynamics import TokenDynamics
    from delta_iris.world_models.tokens.token_world_model import TokenWorldModel

__all__ = [
    "ActorCritic",
    "Agent",
    "CNNTokenizer",
    "DeltaIris",
    "FrameDynamics",
    "FrameTokenizer",
    "ImaginedEnv",
    "ImaginedVectorEnv",
    "Iris",
    "SegmentBatch",
    "TokenDynamics",
    "TokenWorldModel",
    "TransformerTokenizer",
    "WorldModel",
    "load_pretrained",
    "make_env",
]

_HOMES = {
    "ActorCritic": "actor_critic.module",
    "Agent": "pretrained",
    "CNNTokenizer": "world_models.delta_iris.cnn_tokenizer",
    "DeltaIris": "training.systems.delta_iris",
    "FrameDynamics": "world_models.iris.frame_dynamics",
    "FrameTokenizer": "world_models.iris.frame_tokenizer",
    "ImaginedEnv": "imagination.rollout",
    "ImaginedVectorEnv": "imagination.vector_env",
    "Iris": "training.systems.iris",
    "SegmentBatch": "data.segment",
    "TokenDynamics": "world_models.tokens.dynamics",
    "TokenWorldModel": "world_models.tokens.token_world_model",
    "TransformerTokenizer": "world_models.delta_iris.transformer_tokenizer",
    "WorldModel": "world_models.base",
    "load_pretrained": "pretrained",
    "make_env": "envs.make",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"delta_iris.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
