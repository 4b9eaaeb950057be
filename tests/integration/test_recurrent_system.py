"""Tests that a system which is nothing like Δ-IRIS runs through the loop, evaluation and resuming, and learns.

Its world model is recurrent and is trained with gradients in a phase of its own, and its actor-critic sees features.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.training.loop import install_loops
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from tests.integration.test_resume import LossRecorder
from tests.systems.recurrent import RecurrentSchedule, RecurrentSystem
from tests.training.catch_helpers import ACTIONS, FRAME_SIZE, make_catch_data, make_trainer

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "systems" / "recurrent.yaml"
STEPS = 5


def make_recurrent() -> RecurrentSystem:
    """A small system; only the first epoch collects, because episodes in progress are lost at a resume."""
    torch.manual_seed(7)
    phase = PhaseSchedule(steps=STEPS, batch_size=6)
    return RecurrentSystem(
        FRAME_SIZE,
        ACTIONS,
        lambda shape, num_actions: ActorCritic(
            shape, num_actions, lstm_size=16, burn_in=2, horizon=4, update_epochs=2, num_minibatches=3
        ),
        dim=16,
        segment_length=8,
        schedule=RecurrentSchedule(CollectionSchedule(120, 120, last_epoch=1), phase, phase),
    )


class MetricRecorder(L.Callback):
    """Keeps what the last validation measured."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def train(
    folder: Path, epochs: int, checkpoint: Path | None = None, stop_after: int | None = None
) -> tuple[LossRecorder, RecurrentSystem, dict[str, float]]:
    """Train on Catch; returns the recorded losses, the system and the metrics of the last validation."""
    L.seed_everything(3, verbose=False)
    recorder, metrics = LossRecorder(stop_after, by_lightning=False), MetricRecorder()
    trainer = make_trainer(
        folder,
        max_epochs=epochs,
        log_every_n_steps=1,
        check_val_every_n_epoch=1,
        callbacks=[
            recorder,
            metrics,
            ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True),
        ],
    )
    install_loops(trainer)
    system = make_recurrent()
    torch.manual_seed(8)
    trainer.fit(system, make_catch_data(), ckpt_path=checkpoint, weights_only=True)
    return recorder, system, metrics.metrics


Run = tuple[LossRecorder, RecurrentSystem, dict[str, float]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("uninterrupted"), 2)


def test_each_epoch_trains_the_world_model_and_then_the_actor_critic(uninterrupted: Run) -> None:
    recorder, system, _ = uninterrupted
    phases = [name for name, _ in recorder.losses]
    assert phases == (["world_model"] * STEPS + ["actor_critic"] * STEPS) * 2
    assert all(loss == loss for _, loss in recorder.losses)
    untrained = make_recurrent()
    for module in ("world_model", "actor_critic.network"):
        before, after = (dict(each.get_submodule(module).named_parameters()) for each in (untrained, system))
        assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_validation_measures_open_loop_imagination(uninterrupted: Run) -> None:
    _, system, metrics = uninterrupted
    steps = range(1, system.segment_length - system.context + 1)
    expected = {f"{name}/{step:02}" for name in ("open_loop_l2", "copy_l2") for step in steps}
    assert expected <= metrics.keys()
    own = ("reconstruction_l2", "reward_loss", "end_loss", "dynamics_kl", "representation_kl")
    assert {f"held_out/{name}" for name in own} <= metrics.keys()
    assert all(0 <= metrics[name] < 1 for name in expected)


@pytest.mark.parametrize("stop_after", [3, STEPS, STEPS + 2, 2 * STEPS, 2 * STEPS + 1, 4 * STEPS - 1])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, uninterrupted: Run, stop_after: int) -> None:
    first, _, _ = train(tmp_path, 2, stop_after=stop_after)
    assert len(first.losses) == stop_after
    checkpoints = tmp_path / "checkpoints"
    second, system, _ = train(tmp_path, 2, checkpoints / "interrupted.ckpt")
    assert first.losses + second.losses == uninterrupted[0].losses
    resumed, expected = system.state_dict(), uninterrupted[1].state_dict()
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_a_run_resumed_after_an_epoch_equals_one_that_never_stopped(tmp_path: Path, uninterrupted: Run) -> None:
    first, _, _ = train(tmp_path, 1)
    second, system, _ = train(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt")
    assert first.losses + second.losses == uninterrupted[0].losses
    for name, value in uninterrupted[1].state_dict().items():
        assert torch.equal(system.state_dict()[name], value), name


def learn(folder: Path, *options: object) -> float:
    """Train by the command line, test, and return the mean return of 200 test episodes."""
    run = folder / "lightning_logs" / "recurrent" / "version_0"
    trained = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    for arguments in (("fit", "--config", CONFIG, *options), ("test", *trained)):
        done = subprocess.run(
            [sys.executable, "-m", "delta_iris", *map(str, arguments), "--trust=tests"],
            cwd=folder,
            # The configuration names a class of the tests.
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stdout
    return float(json.loads((run / "evaluation" / "last.json").read_text())["return_mean"])


def test_it_learns_catch_from_features_in_an_epoch(tmp_path: Path) -> None:
    # The mean of 200 episodes of random actions, 1.5, is below 1.75 in 99.9 % of all cases.
    assert learn(tmp_path, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=9") > 2 * 1.5


@pytest.mark.slow
def test_it_learns_catch_from_features_in_three_epochs(tmp_path: Path) -> None:
    assert learn(tmp_path) >= 4.8
