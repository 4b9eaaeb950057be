"""A small Dreamer, and batches for it."""

from __future__ import annotations

from typing import Any

import torch

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic
from delta_iris.data.segment import SegmentBatch
from delta_iris.training.schedule import CollectionSchedule
from delta_iris.training.systems.dreamer import Dreamer, DreamerSchedule, TrainRatio
from delta_iris.training.systems.dreamer_optimizers import JointOptimizer
from delta_iris.world_models.dreamer import DreamerWorldModel
from delta_iris.world_models.dreamer.images import ImageConfig
from delta_iris.world_models.dreamer.rssm import RSSMConfig

SIZE, ACTIONS, LENGTH, HORIZON = (16, 16), 3, 8, 4
RSSM_SIZES = RSSMConfig(deter=16, latents=4, classes=4, blocks=2)
V2_SIZES = RSSMConfig(deter=16, hidden=12, latents=4, classes=4, cell="layer_norm_gru", prior_layers=1, unimix=0.0)


def make_world_model(**changes: Any) -> DreamerWorldModel:
    """A world model with arguments changed."""
    options: dict[str, Any] = {"units": 16, "rssm": RSSM_SIZES, "images": ImageConfig(4, (1, 2))}
    torch.manual_seed(0)
    return DreamerWorldModel(SIZE, ACTIONS, **(options | changes))


def make_actor_critic(num_features: int = 32, **changes: Any) -> FeatureActorCritic:
    """An actor-critic with arguments changed, whose outputs are not zero."""
    options: dict[str, Any] = {"units": 16, "layers": 1, "burn_in": 3, "horizon": HORIZON, "critic_output_scale": 1.0}
    torch.manual_seed(1)
    return FeatureActorCritic(num_features, ACTIONS, 0.9, **(options | changes))


def make_dreamer(
    optimizer: JointOptimizer | None = None,
    schedule: DreamerSchedule | None = None,
    world_model: dict[str, Any] | None = None,
    **changes: Any,
) -> Dreamer:
    """A system whose actor-critic has arguments changed."""
    return Dreamer(
        SIZE,
        ACTIONS,
        lambda size, actions: make_world_model(**(world_model or {})),
        lambda width, actions, discount: make_actor_critic(width, **changes),
        optimizer,
        segment_length=LENGTH,
        context=3,
        schedule=schedule or DreamerSchedule(CollectionSchedule(64), TrainRatio(2.0, batch_size=4)),
    )


def make_stream(batch: int = 2, length: int = LENGTH, first: tuple[int, ...] = (0,)) -> SegmentBatch:
    """Real steps of random episodes, which begin at the slots `first`, each after a terminal final frame."""
    generator = torch.Generator().manual_seed(2)
    shape = (batch, length)
    is_first, terminated = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64)
    actions = torch.randint(0, ACTIONS, shape, generator=generator)
    rewards = torch.randn(shape, generator=generator)
    for slot in first:
        is_first[:, slot] = True
        if slot >= 2:
            terminated[:, slot - 2] = 1
        if slot >= 1:  # the final frame has no action
            actions[:, slot - 1], rewards[:, slot - 1] = 0, 0.0
    frames = torch.randint(0, 256, (*shape, 3, *SIZE), dtype=torch.uint8, generator=generator)
    return SegmentBatch(frames, actions, rewards, terminated, torch.ones(shape, dtype=torch.bool), is_first)
