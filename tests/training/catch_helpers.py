"""A small model-free system and a data module for the game of Catch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.nn.cnn import CNNConfig
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems import ModelFree
from delta_iris.training.systems.model_free import ModelFreeSchedule

FRAME_SIZE, ACTIONS, EPISODE_LENGTH = (16, 16), 3, 18
BURN_IN, HORIZON = 2, 5
CNN = CNNConfig(base_channels=4, channel_mults=(1, 2), downsample_after=(0, 1), latent_channels=2)


def make_model_free(schedule: ModelFreeSchedule | None = None, **changes: Any) -> ModelFree:
    """Return a system whose actor-critic has arguments changed."""
    options: dict[str, Any] = {"lstm_size": 16, "cnn": CNN, "burn_in": BURN_IN, "horizon": HORIZON} | changes
    schedule = schedule or ModelFreeSchedule(CollectionSchedule(72), PhaseSchedule(steps=4, batch_size=6))
    torch.manual_seed(0)
    return ModelFree(
        FRAME_SIZE,
        ACTIONS,
        lambda input_shape, num_actions: ActorCritic(input_shape, num_actions, **options),
        recent_frames=100,
        schedule=schedule,
    )


def make_catch_data(**changes: Any) -> ReplayDataModule:
    """Return a data module with arguments changed."""
    options: dict[str, Any] = {
        "environment": "delta_iris/Catch-v0",
        "frame_size": FRAME_SIZE,
        "num_actions": ACTIONS,
        "num_envs": 2,
        "num_test_envs": 2,
        "num_workers": 0,
        "val_episodes": 2,
        "test_episodes": 4,
        "val_batches": 1,
        "val_batch_size": 2,
    }
    return ReplayDataModule(**(options | changes))


def make_trainer(folder: Path, **options: Any) -> L.Trainer:
    """Return a quiet Trainer that keeps its files in `folder`."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", **(quiet | options))
