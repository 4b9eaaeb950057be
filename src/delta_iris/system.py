"""The root LightningModule: holds tokenizer, world model and agent, and trains the one whose phase it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_iris.agent import Agent
from delta_iris.checkpoint import check_weights
from delta_iris.data.window import Window
from delta_iris.errors import UserError
from delta_iris.imagination import Imagination
from delta_iris.schedule import PHASES
from delta_iris.tokenizer import Tokenizer
from delta_iris.tokenizer.quantizer import code_entropy
from delta_iris.world_model import WorldModel

__all__ = ["DeltaIris"]


class DeltaIris(L.LightningModule):
    """The whole agent. Optimization is manual, for each of the three modules has an optimizer of its own.

    Args:
        tokenizer: encodes frames as tokens.
        world_model: predicts tokens, rewards and ends.
        agent: acts.
    """

    def __init__(self, tokenizer: Tokenizer, world_model: WorldModel, agent: Agent) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer, self.world_model, self.agent = tokenizer, world_model, agent
        self.phase = PHASES[0]
        # What computes a module's losses; a data-parallel strategy puts its gradient reducers here.
        self.steps: dict[str, Callable[..., dict[str, Tensor]]] = {}
        self.configuration: dict[str, Any] = {}
        self.held_out_window: Window | None = None
        self.phase_metrics: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._held_out: dict[str, Tensor] = {}

    def child(self, name: str) -> Tokenizer | WorldModel | Agent:
        """The module that a phase trains."""
        module = getattr(self, name)
        assert isinstance(module, Tokenizer | WorldModel | Agent)
        return module

    # --- training ---

    def configure_optimizers(self) -> Any:
        """One optimizer and one learning-rate schedule a module, in the order of `PHASES`."""
        return [self.child(name).configure_optimizers() for name in PHASES]

    def on_train_start(self) -> None:
        """Take the learning rates from the configuration: on a resume the checkpoint has just restored its own."""
        optimizers, schedules = self._optimizers_and_schedules()
        for name, optimizer, schedule in zip(PHASES, optimizers, schedules, strict=True):
            schedule.base_lrs = [self.child(name).learning_rate] * len(optimizer.param_groups)
            for group, rate, scale in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["initial_lr"], group["lr"] = rate, rate * scale(schedule.last_epoch)

    def _optimizers_and_schedules(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizers, list)
        assert isinstance(schedules, list)
        return optimizers, cast(list[LambdaLR], schedules)

    def begin_phase(self, phase: str) -> None:
        """Train this module from now on."""
        self.phase = phase
        self._sums, self._count, self.phase_metrics = {}, 0, {}

    def training_step(self, window: Window, batch_idx: int) -> None:
        """One optimizer step of the module whose phase it is."""
        losses = self.steps.get(self.phase, self.child(self.phase).training_step)(self._inputs(window))
        self._optimize(losses["loss"], losses)
        for name, value in losses.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.flush_metrics()

    def _inputs(self, window: Window) -> Any:
        if self.phase == "tokenizer":
            return window
        if self.phase == "world_model":
            return window, self.tokenizer.encode(window.frames, window.actions, window.valid)
        return Imagination(self.tokenizer, self.world_model, self.agent.burn_in + 1).rollout(self.agent, window)

    def _optimize(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        child, index = self.child(self.phase), PHASES.index(self.phase)
        optimizers, schedules = self._optimizers_and_schedules()
        optimizer, schedule = optimizers[index], schedules[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        # Clipped here rather than by the Trainer, which refuses to with manual optimization; the norm is worth seeing.
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(child.parameters(), child.gradient_clip)
        optimizer.step()
        schedule.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hand the hook to the module that was trained."""
        self.child(self.phase).on_train_batch_end(outputs, batch, batch_idx)

    def flush_metrics(self) -> None:
        """Log the means since the last time; the one moment when the host waits for the device.

        Raises:
            UserError: where a loss is no number any more.
        """
        if self._count == 0:
            return
        names = list(self._sums)
        means = torch.stack([self._sums[name].to(self.device) for name in names]) / self._count
        means = self.trainer.strategy.reduce(means, reduce_op="mean")
        values = dict(zip(names, means.tolist(), strict=True))
        self._sums, self._count = {}, 0
        if not all(map(_is_finite, values.values())):
            bad = ", ".join(name for name, value in values.items() if not _is_finite(value))
            raise UserError(
                f"{self.phase}: {bad} stopped being a number before step {self.trainer.global_step}; the last "
                f"checkpoint is from before and safe: resume it with --ckpt_path and a smaller "
                f"model.{self.phase}.init_args.learning_rate, or trainer.precision=32-true"
            )
        self.phase_metrics = values
        self.log_now({f"{self.phase}/{name}": value for name, value in values.items()}, self.trainer.global_step)

    def log_now(self, values: dict[str, float], step: int) -> None:
        """Give values to all loggers, at a step of the caller's choosing."""
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step)

    # --- held-out losses ---

    def validation_step(self, window: Window, batch_idx: int) -> None:
        """Held-out losses of tokenizer and world model."""
        if batch_idx == 0:
            self._held_out, self.held_out_window = {}, window
        tokens = self.tokenizer.encode(window.frames, window.actions, window.valid)
        values = {f"tokenizer_{k}": v for k, v in self.tokenizer.evaluate(window).items()}
        values |= {f"world_model_{k}": v for k, v in self.world_model.evaluate(window, tokens).items()}
        for name, value in values.items():
            self._held_out[name] = self._held_out[name] + value if name in self._held_out else value
        self._held_out["batches"] = self._held_out.get("batches", torch.zeros((), device=self.device)) + 1

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out batches and processes, as `held_out/…`."""
        totals = {name: self.trainer.strategy.reduce(value, reduce_op="sum") for name, value in self._held_out.items()}
        batches = totals.pop("batches")
        counts = totals.pop("tokenizer_code_counts")
        values = {f"held_out/{name}": value / batches for name, value in totals.items()}
        values["held_out/codebook_entropy"] = code_entropy(counts)
        # Alike on all processes already; Lightning would warn of values that are not reduced.
        self.log_dict(values, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration beside the weights, so that a mismatch can be told key by key."""
        checkpoint["configuration"] = self.configuration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another configuration before anything is overwritten."""
        path = self._trainer.ckpt_path if self._trainer is not None else None
        check_weights(checkpoint, self.state_dict(), self.configuration, Path(str(path or "the checkpoint")))


def _is_finite(value: float) -> bool:
    return value - value == 0
