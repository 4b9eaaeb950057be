"""Resuming equals never having stopped, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import make_agent, make_tokenizer, make_world_model
from lightning.pytorch.callbacks import ModelCheckpoint

from delta_iris.errors import UserError
from delta_iris.training.callbacks import PhaseCallback
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import DeltaIris
from delta_iris.training.loop import CollectTrainLoop, install_loops
from delta_iris.training.schedule import Collection, Phase, Schedule


class Losses(PhaseCallback):
    """Remembers every step's loss, and stops the run after one of them where asked to."""

    def __init__(self, stop_after: int | None, by_lightning: bool) -> None:
        self.losses: list[tuple[str, float]] = []
        self.stop_after, self.by_lightning = stop_after, by_lightning

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.samplers = trainer.datamodule._samplers.copy()
        self.losses.append((module.phase, module.phase_metrics["loss"]))
        if len(self.losses) == self.stop_after:
            owner, name = (trainer, "should_stop") if self.by_lightning else (trainer.fit_loop, "stop_requested")
            setattr(owner, name, True)


def train(
    folder: Path,
    epochs: int,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
    learning_rate: float = 3e-4,
    by_lightning: bool = False,
) -> Losses:
    """Collect in the first epoch alone: environments under way begin anew after a resume, all else goes on."""
    L.seed_everything(3, verbose=False)
    losses = Losses(stop_after, by_lightning)
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        max_epochs=epochs,
        log_every_n_steps=1,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses, ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)],
    )
    plan = Phase(5, 3)
    install_loops(trainer, Schedule(Collection(240, 240, last_epoch=1), plan, plan, plan))
    data = ReplayDataModule(
        environment_options={"size": 32, "length": 40},
        frame_size=(32, 32),
        num_envs=2,
        num_test_envs=1,
        window=9,
        burn_in=3,
        num_workers=1,
        priority=2.0,
        agent_frames=100,
        val_episodes=1,
        test_episodes=1,
        val_batches=1,
        val_batch_size=2,
    )
    torch.manual_seed(7)
    tokenizer = make_tokenizer(num_actions=17, learning_rate=learning_rate, warmup_steps=0)
    agent = make_agent(num_actions=17, passes=2, parts=3)
    system = DeltaIris(tokenizer, make_world_model(num_actions=17), agent)
    torch.manual_seed(8)
    trainer.fit(system, data, ckpt_path=checkpoint, weights_only=True)
    losses.system = system
    return losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Losses:
    return train(tmp_path_factory.mktemp("whole"), 2)


def test_the_agent_takes_a_step_for_each_part_of_each_pass(uninterrupted: Losses) -> None:
    taken = [schedule.last_epoch for schedule in uninterrupted.system.lr_schedulers()]
    assert taken == [10, 10, 10 * 2 * 3]


def test_windows_are_drawn_as_the_data_module_was_told(uninterrupted: Losses) -> None:
    told = {phase: (sampler.priority, sampler.latest_steps) for phase, sampler in uninterrupted.samplers.items()}
    assert told == {"tokenizer": (2.0, None), "world_model": (2.0, None), "agent": (2.0, 100)}


def same_weights(a: DeltaIris, b: DeltaIris) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_resuming_at_an_epochs_end_equals_never_stopping(tmp_path: Path, uninterrupted: Losses) -> None:
    first = train(tmp_path, 1)
    assert first.losses == uninterrupted.losses[:15]
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt")
    assert second.losses == uninterrupted.losses[15:]
    assert same_weights(second.system, uninterrupted.system)


@pytest.mark.parametrize("stop_after", [2, 5, 12, 18, 24])
def test_resuming_within_a_phase_equals_never_stopping(tmp_path: Path, uninterrupted: Losses, stop_after: int) -> None:
    first = train(tmp_path, 2, stop_after=stop_after)
    assert len(first.losses) == stop_after
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "interrupted.ckpt")
    assert first.losses + second.losses == uninterrupted.losses
    assert same_weights(second.system, uninterrupted.system)


def test_validation_does_not_change_training(tmp_path: Path, uninterrupted: Losses, monkeypatch) -> None:
    monkeypatch.setattr(CollectTrainLoop, "_validate", lambda self: None)
    assert train(tmp_path, 2).losses == uninterrupted.losses


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tokenizer: .* stopped being a number .*model\.tokenizer\.init_args\.learning_rate"
    ):
        train(tmp_path, 1, learning_rate=1e30)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_that_lightning_stops_in_a_phase_resumes_there(tmp_path: Path, uninterrupted: Losses) -> None:
    """As `trainer.max_time` does: `should_stop` is set in the middle of a phase."""
    first = train(tmp_path, 2, stop_after=7, by_lightning=True)
    assert len(first.losses) == 7
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "interrupted.ckpt")
    assert first.losses + second.losses == uninterrupted.losses


def test_a_resumed_run_takes_its_learning_rate_from_the_configuration(tmp_path: Path, uninterrupted: Losses) -> None:
    train(tmp_path, 1)
    second = train(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt", learning_rate=1e-5)
    assert {group["lr"] for group in second.system.trainer.optimizers[0].param_groups} == {1e-5}
    assert second.losses[0] == uninterrupted.losses[15]  # before the first step with the other rate
    assert second.losses[1] != uninterrupted.losses[16]
