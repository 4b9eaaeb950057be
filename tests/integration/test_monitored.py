"""Tests that Lightning's callbacks can monitor returns, losses, throughput and learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from delta_iris.errors import UserError
from delta_iris.training.callbacks import EpisodeStatistics, PhaseProgress, Throughput
from delta_iris.training.learner import Learner
from delta_iris.training.loop import install_loops
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems.model_free import ModelFreeSchedule
from tests.helpers import SIZE, make_actor_critic, make_schedule, make_system, make_tokenizer
from tests.training.catch_helpers import make_catch_data, make_model_free, make_trainer

ONE_STEP = {"cells": 2, "pixels": 16, "blocks": 1}
"""Options of a game whose episodes have one step."""


class EpochRecorder(L.Callback):
    """Keeps the metrics that callbacks see at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(
    folder: Path,
    system: Learner,
    *callbacks: L.Callback,
    environment_options: dict[str, Any] | None = None,
    frame_size: tuple[int, int] = (16, 16),
    **options: Any,
) -> list[dict[str, float]]:
    """Train, testing in every second epoch; returns the metrics at the end of each epoch."""
    L.seed_everything(3, verbose=False)
    recorder = EpochRecorder()
    trainer = make_trainer(
        folder,
        log_every_n_steps=2,
        logger=CSVLogger(folder),
        callbacks=[recorder, EpisodeStatistics(), Throughput(), *callbacks],
        **({"max_epochs": 3, "check_val_every_n_epoch": 2} | options),
    )
    install_loops(trainer)
    trainer.fit(system, make_catch_data(environment_options=environment_options, frame_size=frame_size))
    return recorder.epochs


def make_delta_iris() -> Learner:
    torch.manual_seed(7)
    return make_system(
        make_tokenizer(num_actions=3),
        actor_critic=make_actor_critic(num_actions=3),
        num_actions=3,
        schedule=make_schedule(CollectionSchedule(72), steps=2, batch_size=3),
    )


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_everything_that_is_logged_can_be_monitored(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="test/return", mode="max", save_on_train_epoch_end=True)
    options: dict[str, Any] = {"environment_options": {"pixels": 8}, "frame_size": SIZE}
    epochs = train(tmp_path, make_delta_iris(), best, LearningRateMonitor(), **options)
    first = {"train/return", "train/frames_per_second", "throughput/frames_per_second"}
    for phase in ("tokenizer", "dynamics", "actor_critic"):
        first |= {f"{phase}/loss", f"{phase}/gradient_norm", f"throughput/{phase}_ms", f"lr/{phase}/pg1"}
    tested = {
        "test/return",
        "test/length",
        "test/frames_per_second",
        "held_out/reconstruction_l2",
        "held_out/codebook_entropy",
    }
    assert first <= epochs[0].keys()
    assert not any(name.startswith(("test/", "held_out/")) for name in epochs[0])
    assert first | tested <= epochs[1].keys()
    # An epoch without validation keeps the last values.
    assert epochs[2]["test/return"] == epochs[1]["test/return"]
    assert float(best.best_model_score or 0) == epochs[1]["test/return"]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=1-step=12.ckpt"]


@pytest.mark.parametrize("at_epoch_end", [None, True])
def test_early_stopping_waits_for_the_first_test_and_then_stops(tmp_path: Path, at_epoch_end: bool | None) -> None:
    """A model-free system has nothing to validate but its returns."""
    stopping = EarlyStopping("test/return", mode="max", stopping_threshold=-1.0, check_on_train_epoch_end=at_epoch_end)
    assert len(train(tmp_path, make_model_free(), stopping, max_epochs=5)) == 2


def test_a_name_that_no_metric_has_is_refused_after_the_first_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"EarlyStopping: .* monitor=test/retrun; there are: .*test/return"):
        train(tmp_path, make_model_free(), EarlyStopping("test/retrun"))


def test_a_run_without_a_finished_episode_is_no_error(tmp_path: Path) -> None:
    schedule = ModelFreeSchedule(CollectionSchedule(16), PhaseSchedule(steps=2, batch_size=6))
    stopping = EarlyStopping("train/return", mode="max", check_on_train_epoch_end=True, patience=9)
    epochs = train(
        tmp_path, make_model_free(schedule), stopping, PhaseProgress(), enable_progress_bar=True, max_epochs=2
    )
    assert ["train/return" in epoch for epoch in epochs] == [False, False]


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_episodes_of_one_step_train_and_omit_what_has_no_target(tmp_path: Path) -> None:
    options: dict[str, Any] = {"environment_options": ONE_STEP, "frame_size": SIZE, "enable_progress_bar": True}
    best = ModelCheckpoint(tmp_path, monitor="test/return", mode="max", save_on_train_epoch_end=True)
    epochs = train(tmp_path, make_delta_iris(), PhaseProgress(), best, **options)
    assert epochs[2]["test/length"] == 1
    assert "held_out/reconstruction_l2" not in epochs[2]
    assert all(value == value for value in epochs[2].values())
