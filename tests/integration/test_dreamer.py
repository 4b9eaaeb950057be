"""Tests that a Dreamer resumes to the bit, learns equally on several processes, and learns Catch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._pytree import tree_map

from delta_iris.training.callbacks import PhaseCallback
from delta_iris.training.loop import install_loops
from delta_iris.training.systems.dreamer import Dreamer
from delta_iris.training.systems.dreamer_phase import DreamerPhase
from tests.dreamer_helpers import make_dreamer, make_stream
from tests.integration.test_ranks import assert_equal_ranks, run_ranks
from tests.training.catch_helpers import make_catch_data, make_trainer

ROOT = Path(__file__).parents[2]
BATCH, EPOCHS = 8, 2
STEPS = 4  # 64 frames at a ratio of 2, in batches of 4 segments of 8 frames


class Recorder(PhaseCallback):
    """Records the loss of every batch, and stops the run after a number of batches."""

    def __init__(self, stop_after: int | None) -> None:
        self.losses: list[float] = []
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(module.phase_metrics["loss"])
        if len(self.losses) == self.stop_after:
            trainer.fit_loop.request_stop(None)  # type: ignore[attr-defined]


def train(
    folder: Path, epochs: int = EPOCHS, checkpoint: Path | None = None, stop_after: int | None = None
) -> tuple[list[float], Dreamer, dict[str, float]]:
    """Train on Catch; returns the losses, the system and the metrics of the last validation."""
    L.seed_everything(3, verbose=False)
    recorder = Recorder(stop_after)
    keeper = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    trainer = make_trainer(
        folder, max_epochs=epochs, log_every_n_steps=1, check_val_every_n_epoch=1, callbacks=[recorder, keeper]
    )
    install_loops(trainer)
    system = make_dreamer()
    torch.manual_seed(8)
    trainer.fit(system, make_catch_data(), ckpt_path=checkpoint, weights_only=True)
    return recorder.losses, system, {name: float(value) for name, value in trainer.callback_metrics.items()}


Run = tuple[list[float], Dreamer, dict[str, float]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("uninterrupted"))


def test_it_trains_and_is_measured(uninterrupted: Run) -> None:
    losses, system, metrics = uninterrupted
    assert len(losses) == EPOCHS * STEPS
    assert all(loss == loss for loss in losses)
    own = {"reconstruction_l2", "copy_l2", "prior_kl", "reward_l2", "end_loss"}
    assert {f"held_out/{name}" for name in own} <= metrics.keys()
    steps = range(1, system.segment_length - system.context + 1)
    assert {f"open_loop_l2/{step:02}" for step in steps} <= metrics.keys()


@pytest.mark.parametrize("stop_after", [1, STEPS, STEPS + 2])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, uninterrupted: Run, stop_after: int) -> None:
    first, _, _ = train(tmp_path, stop_after=stop_after)
    assert len(first) == stop_after
    second, system, _ = train(tmp_path, checkpoint=tmp_path / "checkpoints" / "interrupted.ckpt")
    assert first + second == uninterrupted[0]
    resumed, expected = system.state_dict(), uninterrupted[1].state_dict()
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def compute_step(rows: slice) -> dict[str, torch.Tensor]:
    """Gradients and buffers after the backward pass of these rows of a batch, whose random numbers are given."""
    system = make_dreamer()
    # Without a Trainer; its version would only scale the loss.
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    phase = system.phases[0]
    assert isinstance(phase, DreamerPhase)
    torch.manual_seed(4)
    segment = make_stream(BATCH, first=(5,))
    segment.is_first[0, 0] = True  # the first process has a reward less to learn than the others
    batch = tree_map(lambda x: x[rows], phase.prepare(segment))
    system.forward_backward(phase, batch)
    gradients = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    return gradients | {f"buffer {name}": each for name, each in system.named_buffers()}


def rank_step(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """`compute_step` of this process's part of the batch."""
    return compute_step(slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks))


@pytest.mark.parametrize("ranks", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_several_processes_compute_what_one_does(tmp_path: Path, ranks: int) -> None:
    """Gradients after clipping, and the normalizer, whose percentiles are those of the returns of all."""
    (results,) = run_ranks(ranks, tmp_path, "gloo", [(rank_step, ())])
    assert_equal_ranks(results)
    first, expected = results[0], compute_step(slice(None))
    assert expected.keys() == first.keys()
    assert expected["buffer actor_critic.normalizer.spread"] > 0
    for name, value in expected.items():
        # float32 sums in another order.
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-3, msg=name)


# --- learning ---


def learn(folder: Path, *options: object) -> float:
    """Train by the command line, test, and return the mean return of 200 test episodes."""
    run = folder / "lightning_logs" / "dreamer_catch" / "version_0"
    trained = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    for arguments in (("fit", "--config", "dreamer_catch.yaml", *options), ("test", *trained)):
        done = subprocess.run(
            [sys.executable, "-m", "delta_iris", *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stdout
    return float(json.loads((run / "evaluation" / "last.json").read_text())["return_mean"])


def test_it_learns_catch_in_an_epoch(tmp_path: Path) -> None:
    short = ("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=9")
    # The mean of 200 episodes of random actions, 1.5, is below 1.75 in 99.9 % of all cases.
    assert learn(tmp_path, *short) > 2 * 1.5


@pytest.mark.slow
def test_it_masters_catch(tmp_path: Path) -> None:
    assert learn(tmp_path) >= 0.9 * 6
