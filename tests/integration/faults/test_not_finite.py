"""Tests that a step with a NaN in its loss or gradient changes nothing, is counted, and ends the run if it repeats."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.utils._pytree import tree_leaves

from delta_iris.errors import UserError
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.training.loop import install_loops
from delta_iris.training.phase import Phase
from delta_iris.training.schedule import CollectionSchedule
from delta_iris.training.systems.token_system import TokenSystem
from tests.helpers import SIZE, make_actor_critic, make_schedule, make_system, make_tokenizer
from tests.training.catch_helpers import make_catch_data, make_trainer

ACTIONS, STEPS = 3, 6
PHASES = ["tokenizer", "dynamics", "actor_critic"]

Poison = Callable[[Phase, LossOutput], LossOutput]


def poison_loss(phase: Phase, output: LossOutput) -> LossOutput:
    """Make the loss NaN, and all gradients with it."""
    return output._replace(loss=output.loss * torch.nan)


def poison_value(phase: Phase, output: LossOutput) -> LossOutput:
    """Make the loss infinite, and leave all gradients unchanged."""
    return output._replace(loss=output.loss + torch.inf)


def poison_gradient(phase: Phase, output: LossOutput) -> LossOutput:
    """Make the gradient of one parameter NaN, and leave the loss unchanged."""
    parameter = next(p for p in phase.module.parameters() if p.requires_grad)
    return output._replace(loss=output.loss + (0 * parameter.sum()).sqrt())


def poison_phase(phase: Phase, calls: set[int], poison: Poison = poison_loss) -> None:
    """Poison the losses that a phase computes at these calls, of which the first is 0."""
    original, count = phase.loss, 0

    def loss(part: Any, batch: Any | None) -> LossOutput:
        nonlocal count
        count += 1
        output = original(part, batch)
        return poison(phase, output) if count - 1 in calls else output

    phase.loss = loss  # type: ignore[method-assign]


class MemoryLogger(Logger):
    """Keeps what is logged, but for the clock's values."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[str, float, int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged += [
            (key, float(value), step)
            for key, value in metrics.items()
            if "per_second" not in key and "throughput" not in key
        ]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Observer(L.Callback):
    """Keeps all that training has changed at the start of each batch, and stops after a number of batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.states: list[dict[str, Any]] = []
        self.system: TokenSystem

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.states.append(
            {
                "weights": copy.deepcopy(module.state_dict()),
                "optimizers": [copy.deepcopy(each.state_dict()) for each in trainer.optimizers],
                "schedules": [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs],
            }
        )

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.states) == self.stop_after:
            trainer.fit_loop.request_stop(None)  # type: ignore[attr-defined]


def train(
    folder: Path,
    poisoned: dict[str, set[int]] | None = None,
    poison: Poison = poison_loss,
    *,
    epochs: int = 1,
    checkpoint: str | None = None,
    stop_after: int | None = None,
    log_every_n_steps: int = 4,
    **options: Any,
) -> tuple[Observer, MemoryLogger]:
    """Train Δ-IRIS on Catch; only the first epoch collects, because episodes in progress are lost at a resume."""
    L.seed_everything(3, verbose=False)
    observer, logger = Observer(stop_after), MemoryLogger()
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    trainer = make_trainer(
        folder,
        max_epochs=epochs,
        log_every_n_steps=log_every_n_steps,
        check_val_every_n_epoch=99,
        logger=logger,
        callbacks=[observer, saving],
    )
    install_loops(trainer)
    torch.manual_seed(7)
    optimizer = OptimizerConfig(warmup_steps=50)
    system = make_system(
        make_tokenizer(num_actions=ACTIONS, optimizer=optimizer),
        actor_critic=make_actor_critic(num_actions=ACTIONS, optimizer=optimizer),
        num_actions=ACTIONS,
        schedule=make_schedule(CollectionSchedule(72, 72, last_epoch=1), steps=STEPS, batch_size=3),
        **options,
    )
    for phase in system.phases:
        poison_phase(phase, (poisoned or {}).get(phase.name, set()), poison)
    torch.manual_seed(8)
    data = make_catch_data(environment_options={"pixels": 8}, frame_size=SIZE)
    path = None if checkpoint is None else folder / "checkpoints" / checkpoint
    observer.system = system
    trainer.fit(system, data, ckpt_path=path, weights_only=True)
    return observer, logger


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states hold the same, to the bit."""
    ours, theirs = tree_leaves(first), tree_leaves(second)
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("poison", [poison_loss, poison_value, poison_gradient])
@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, poison: Poison) -> None:
    """Weights, optimizer, codebook, target network and schedule; the first step has no optimizer state yet."""
    observer, logger = train(tmp_path, {name: {0, 3} for name in PHASES}, poison)
    states = observer.states
    assert len(states) == 3 * STEPS
    for index, (before, after) in enumerate(itertools.pairwise(states)):
        assert equal(before, after) == (index % STEPS in (0, 3)), index
    assert all(bool(value.isfinite().all()) for value in observer.system.state_dict().values())
    for name in PHASES:
        counts = [value for key, value, _ in logger.logged if key == f"{name}/skipped_steps"]
        assert counts == [2, 2]  # both in the window of four steps
        losses = [value for key, value, _ in logger.logged if key == f"{name}/loss"]
        assert len(losses) == 2
        assert all(loss - loss == 0 for loss in losses)
    assert not any(value != value for _, value, _ in logger.logged)


def test_the_target_network_moves_unless_all_steps_of_the_batch_were_skipped() -> None:
    system = make_system()
    target = system.actor_critic.target.critic.weight
    with torch.no_grad():
        system.actor_critic.network.critic.weight.add_(1.0)
    before = target.clone()
    system.phases[2].after_batch(torch.tensor(True))
    assert torch.equal(target, before)
    system.phases[2].after_batch(torch.tensor(False))
    moved = target.clone()
    target.data.copy_(before)
    system.actor_critic.update_target()
    assert torch.equal(target, moved)
    assert not torch.equal(target, before)


def test_the_warning_names_phase_step_norm_and_episodes(tmp_path: Path) -> None:
    named = r"dynamics: 1 of the last 4 optimizer steps were skipped, .*step 8 \(gradient norm nan; loss .*episodes \d"
    with pytest.warns(UserWarning, match=named):
        train(tmp_path, {"dynamics": {1}})


@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_too_many_in_a_row_end_the_run_with_a_checkpoint_from_before(tmp_path: Path) -> None:
    bad = set(range(STEPS + 1, 99))
    with pytest.raises(UserError, match=r"tokenizer: .* from step 20 on, .*--ckpt_path.*learning_rate") as raised:
        train(tmp_path, {"tokenizer": bad}, epochs=2, max_skipped_steps=3)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.rglob("epoch*.ckpt")] == ["epoch=0-step=18.ckpt"]
    observer, _ = train(tmp_path, epochs=2, checkpoint="last.ckpt")
    assert len(observer.states) == 3 * STEPS


@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_as_many_as_allowed_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    observer, _ = train(tmp_path, {"tokenizer": {0, 1, 3, 4}}, max_skipped_steps=2)
    assert observer.system.skipped_in_a_row == 0
    with pytest.raises(UserError, match="tokenizer"):
        train(tmp_path / "more", {"tokenizer": {0, 1}}, max_skipped_steps=1)


@pytest.mark.parametrize("stop_after", [2, 3, STEPS + 3])
@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_a_run_resumed_within_a_window_logs_the_same(tmp_path: Path, stop_after: int) -> None:
    poisoned = {"tokenizer": {1}, "dynamics": {2}}
    whole, expected = train(tmp_path / "whole", poisoned)
    _, first = train(tmp_path / "cut", poisoned, stop_after=stop_after)
    done = max(0, stop_after - STEPS)
    rest = {"dynamics": {2 - done} if done <= 2 else set()}
    resumed, second = train(tmp_path / "cut", rest, checkpoint="interrupted.ckpt")
    assert first.logged + second.logged == expected.logged
    assert equal(resumed.system.state_dict(), whole.system.state_dict())


@pytest.mark.filterwarnings("ignore:.*optimizer steps were skipped")
def test_steps_before_an_interruption_count_as_in_a_row(tmp_path: Path) -> None:
    train(tmp_path, {"tokenizer": {1, 2}}, stop_after=3, max_skipped_steps=2)
    with pytest.raises(UserError, match="3 optimizer steps in a row, from step 2 on"):
        train(tmp_path, {"tokenizer": {0}}, checkpoint="interrupted.ckpt", max_skipped_steps=2)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.init_args\.max_skipped_steps is -1"):
        make_system(max_skipped_steps=-1)
