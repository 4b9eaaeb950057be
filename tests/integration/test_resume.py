"""Tests that a resumed run equals one that never stopped, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from delta_iris.errors import UserError
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.training.callbacks import PhaseCallback
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.loop import CollectTrainLoop, install_loops
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems.token_system import TokenSystem
from delta_iris.world_models.tokens.tokenizer import Tokenizer
from tests.helpers import make_actor_critic, make_frame_tokenizer, make_schedule, make_system, make_tokenizer

REAL_SEGMENTS = PhaseSchedule(steps=1, batch_size=9)


class LossRecorder(PhaseCallback):
    """Records the loss of every batch, and stops the run after a number of batches.

    Args:
        stop_after: number of batches; None to never stop.
        by_lightning: whether to stop like Lightning's own callbacks instead of like Ctrl-C.

    Attributes:
        losses: phase and loss of each batch.
        sampling: priority exponent and recent steps of each phase's sampler.
        system: what was trained.
    """

    system: TokenSystem

    def __init__(self, stop_after: int | None, by_lightning: bool) -> None:
        self.losses: list[tuple[str, float]] = []
        self.sampling: dict[str, tuple[float, int | None]] = {}
        self.stop_after, self.by_lightning = stop_after, by_lightning

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        samplers = trainer.datamodule.samplers  # type: ignore[attr-defined]
        self.sampling = {name: (each.priority_exponent, each.recent_steps) for name, each in samplers.items()}
        self.losses.append((module.phase.name, module.phase_metrics["loss"]))
        if len(self.losses) == self.stop_after:
            if self.by_lightning:
                trainer.should_stop = True
            else:
                trainer.fit_loop.request_stop(None)  # type: ignore[attr-defined]


def train(
    folder: Path,
    epochs: int,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
    learning_rate: float = 3e-4,
    by_lightning: bool = False,
    make: Callable[..., Tokenizer] = make_tokenizer,
    real_segments: PhaseSchedule | None = None,
    **options: Any,
) -> LossRecorder:
    """Train on Crafter; only the first epoch collects, because episodes in progress are lost at a resume."""
    L.seed_everything(3, verbose=False)
    recorder = LossRecorder(stop_after, by_lightning)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_epochs=epochs,
        log_every_n_steps=1,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder, ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)],
    )
    install_loops(trainer)
    data = ReplayDataModule(
        environment_options={"size": 32, "length": 40},
        frame_size=(32, 32),
        num_envs=2,
        num_test_envs=1,
        num_workers=1,
        val_episodes=1,
        test_episodes=1,
        val_batches=1,
        val_batch_size=2,
    )
    torch.manual_seed(7)
    optimizer = OptimizerConfig(learning_rate=learning_rate)
    system = make_system(
        make(num_actions=17, optimizer=optimizer),
        actor_critic=make_actor_critic(num_actions=17, update_epochs=2, num_minibatches=3),
        num_actions=17,
        schedule=make_schedule(CollectionSchedule(240, 240, last_epoch=1), real_segments, steps=5, batch_size=3),
        priority_exponent=2.0,
        imagination_recent_frames=100,
        **options,
    )
    torch.manual_seed(8)
    trainer.fit(system, data, ckpt_path=checkpoint, weights_only=True)
    recorder.system = system
    return recorder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> LossRecorder:
    return train(tmp_path_factory.mktemp("uninterrupted"), 2)


def test_actor_critic_takes_a_step_for_each_minibatch_of_each_update_epoch(uninterrupted: LossRecorder) -> None:
    schedules: Any = uninterrupted.system.lr_schedulers()
    assert [schedule.last_epoch for schedule in schedules] == [10, 10, 10 * 2 * 3]


def test_samplers_draw_as_the_system_says(uninterrupted: LossRecorder) -> None:
    expected = {"tokenizer": (2.0, None), "dynamics": (2.0, None), "actor_critic": (2.0, 100)}
    assert uninterrupted.sampling == expected


def assert_same_weights(a: TokenSystem, b: TokenSystem) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_resume_at_the_end_of_an_epoch_equals_never_stopping(tmp_path: Path, uninterrupted: LossRecorder) -> None:
    first = train(tmp_path, 1)
    assert first.losses == uninterrupted.losses[:15]
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt")
    assert second.losses == uninterrupted.losses[15:]
    assert_same_weights(second.system, uninterrupted.system)


@pytest.mark.parametrize("stop_after", [2, 5, 12, 18, 24])
def test_resume_within_a_phase_equals_never_stopping(
    tmp_path: Path, uninterrupted: LossRecorder, stop_after: int
) -> None:
    first = train(tmp_path, 2, stop_after=stop_after)
    assert len(first.losses) == stop_after
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "interrupted.ckpt")
    assert first.losses + second.losses == uninterrupted.losses
    assert_same_weights(second.system, uninterrupted.system)


def test_resume_within_a_phase_of_iris_equals_never_stopping(tmp_path: Path) -> None:
    expected = train(tmp_path / "expected", 2, make=make_frame_tokenizer)
    assert [name for name, _ in expected.losses] == [*["tokenizer"] * 5, *["dynamics"] * 5, *["actor_critic"] * 5] * 2
    first = train(tmp_path, 2, stop_after=12, make=make_frame_tokenizer)
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "interrupted.ckpt", make=make_frame_tokenizer)
    assert first.losses + second.losses == expected.losses
    assert_same_weights(second.system, expected.system)


@pytest.mark.parametrize(("make", "stop_after"), [(make_frame_tokenizer, 11), (make_tokenizer, 15)])
def test_resume_with_real_segments_equals_never_stopping(
    tmp_path: Path, make: Callable[..., Tokenizer], stop_after: int
) -> None:
    """Stopped at the end of the phase on real segments, and within the one in imagination after it."""
    expected = train(tmp_path / "expected", 2, make=make, real_segments=REAL_SEGMENTS)
    epoch = [*["tokenizer"] * 5, *["dynamics"] * 5, "real_segments", *["actor_critic"] * 5]
    assert [name for name, _ in expected.losses] == epoch * 2
    assert expected.sampling["real_segments"] == (0.0, 240)
    first = train(tmp_path, 2, stop_after=stop_after, make=make, real_segments=REAL_SEGMENTS)
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    second = train(tmp_path, 2, checkpoint, make=make, real_segments=REAL_SEGMENTS)
    assert first.losses + second.losses == expected.losses
    assert_same_weights(second.system, expected.system)


def test_resume_with_another_number_of_phases_raises_before_anything_changes(
    tmp_path: Path, uninterrupted: LossRecorder
) -> None:
    first = train(tmp_path, 2, stop_after=14)
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    message = "it holds 3 optimizers; the phases are tokenizer, dynamics, real_segments, actor_critic"
    with pytest.raises(UserError, match=message):
        train(tmp_path, 2, checkpoint, real_segments=REAL_SEGMENTS)
    second = train(tmp_path, 2, checkpoint)
    assert first.losses + second.losses == uninterrupted.losses


def test_validation_does_not_change_training(
    tmp_path: Path, uninterrupted: LossRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CollectTrainLoop, "_validate", lambda self: True)
    assert train(tmp_path, 2).losses == uninterrupted.losses


@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_a_loss_that_stays_not_finite_stops_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    named = r"model\.init_args\.tokenizer\.init_args\.optimizer\.learning_rate"
    with pytest.raises(UserError, match=rf"tokenizer: .* became infinite or NaN, .*{named}"):
        train(tmp_path, 1, learning_rate=1e30, max_skipped_steps=2)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_that_lightning_stops_within_a_phase_resumes_there(tmp_path: Path, uninterrupted: LossRecorder) -> None:
    """Lightning sets `should_stop`, for example for `trainer.max_time`."""
    first = train(tmp_path, 2, stop_after=7, by_lightning=True)
    assert len(first.losses) == 7
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "interrupted.ckpt")
    assert first.losses + second.losses == uninterrupted.losses


def test_a_resumed_run_uses_the_learning_rate_of_the_configuration(tmp_path: Path, uninterrupted: LossRecorder) -> None:
    train(tmp_path, 1)
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt", learning_rate=1e-5)
    assert {group["lr"] for group in second.system.trainer.optimizers[0].param_groups} == {1e-5}
    assert second.losses[0] == uninterrupted.losses[15]  # before the first step with the other rate
    assert second.losses[1] != uninterrupted.losses[16]
