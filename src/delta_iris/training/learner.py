"""The root LightningModule: owns all modules and trains the one whose phase it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.acceleration.cuda_graph import CudaGraphed
from delta_iris.data.collector import Policy
from delta_iris.data.segment import SegmentBatch
from delta_iris.distributed import average_gradients
from delta_iris.errors import UserError
from delta_iris.evaluation.world_model import WorldModelEvaluator
from delta_iris.nn.transformer import autocast_dtype
from delta_iris.training.checkpoint import check_weights
from delta_iris.training.phase import Phase, split_batch
from delta_iris.training.schedule import Schedule
from delta_iris.world_models.base import WorldModel

__all__ = ["Learner"]


class Learner(L.LightningModule):
    """Trains the phases of a system. Subclasses, the systems, build modules and phases.

    Optimization is manual, because each phase has its own optimizer.

    Args:
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps and launch them as CUDA graphs on a GPU; false to debug.

    Attributes:
        phases: in the order in which they run in an epoch.
        world_model: what imagination and evaluation use; None for a model-free system.
        segment_length: steps of held-out segments.
        context: real frames that held-out imagination starts from.
    """

    phases: list[Phase]
    world_model: WorldModel[Any] | None
    segment_length: int
    context: int

    def __init__(self, schedule: Schedule, compile: bool = True) -> None:
        super().__init__()
        self.schedule, self.use_compile = schedule, compile
        self.automatic_optimization = False
        self.configuration: dict[str, Any] = {}
        # Of loaded weights: the frames they have learned from, and the folder they were exported to.
        self.frames_trained_on = 0
        self.exported_to: Path | None = None
        self.held_out_segment: SegmentBatch | None = None
        self.phase_metrics: dict[str, float] = {}
        self._phase_index = 0
        self._metric_names: list[str] = []
        self._metric_sum: Tensor | None = None
        self._metric_count = 0
        self._evaluator: WorldModelEvaluator
        self._step_functions: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Tensor]]]] = {}

    # --- what a system provides ---

    @abstractmethod
    def make_policy(self, graph_pool: Any = None) -> Policy:
        """How the agent acts in real environments.

        Args:
            graph_pool: memory pool to capture its actions as CUDA graphs in; None to run them eagerly.
        """

    @abstractmethod
    def describe(self, epochs: int) -> dict[str, str]:
        """Lines of the summary that is printed before a run.

        Args:
            epochs: length of the run; -1 where it is unlimited.
        """

    # --- training ---

    @property
    def phase(self) -> Phase:
        """The phase that is being trained."""
        return self.phases[self._phase_index]

    def configure_optimizers(self) -> Any:
        """One optimizer and one learning-rate schedule for each phase, in their order."""
        return [phase.module.configure_optimizers() for phase in self.phases]

    @property
    def is_accelerated(self) -> bool:
        """Whether steps are compiled and launched as CUDA graphs."""
        return self.use_compile and self.device.type == "cuda"

    def on_train_start(self) -> None:
        """Take the learning rates from the configuration: on a resume the checkpoint has just restored its own."""
        for phase, optimizer, schedule in zip(self.phases, *self._optimizers_and_schedules(), strict=True):
            config: Any = phase.module.optimizer_config
            schedule.base_lrs = [config.learning_rate] * len(optimizer.param_groups)
            for group, rate, scale in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["initial_lr"], group["lr"] = rate, rate * scale(schedule.last_epoch)

    def _optimizers_and_schedules(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        if not isinstance(optimizers, list):
            return [optimizers], [cast(LambdaLR, schedules)]
        return optimizers, cast(list[LambdaLR], schedules)

    def start_phase(self, index: int) -> None:
        """Train the phase at this index from now on."""
        self._phase_index = index
        self._metric_sum, self._metric_names, self._metric_count, self.phase_metrics = None, [], 0, {}
        self.phase.on_start()

    def training_step(self, segment: SegmentBatch, batch_idx: int) -> None:
        """Train the present phase on a batch, in one or more optimizer steps."""
        phase, index = self.phase, self._phase_index
        optimizers, schedules = self._optimizers_and_schedules()
        try:
            with compiled_regions(self.is_accelerated):
                prepare, forward_backward = self.step_functions(phase)
                batch = prepare(segment)
                for minibatch in phase.minibatches(batch):
                    metrics = forward_backward(minibatch)
                    optimizers[index].step()
                    schedules[index].step()
                    self._add_metrics(metrics)
        except torch.OutOfMemoryError as error:
            size = phase.schedule.micro_batch_size or "all segments at once"
            raise UserError(
                f"{phase.name}: the GPU is out of memory; halve model.init_args.schedule.{phase.name}.micro_batch_size "
                f"(now {size}), which leaves the results equal{phase.out_of_memory_hint}; the last checkpoint is safe: "
                "resume it with --ckpt_path"
            ) from error
        if self._metric_count >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.flush_metrics()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the phase update what follows the trained weights."""
        self.phase.after_batch()

    def step_functions(self, phase: Phase) -> tuple[Callable[..., Any], Callable[..., dict[str, Tensor]]]:
        """`phase.prepare` and `forward_backward`; accelerated, each is a CUDA graph."""

        def prepare(segment: SegmentBatch) -> Any:
            return phase.prepare(segment)

        def forward_backward(batch: Any) -> dict[str, Tensor]:
            return self.forward_backward(phase, batch)

        if not self.is_accelerated:
            return prepare, forward_backward
        if phase.name not in self._step_functions:
            phase.on_accelerate(autocast_dtype(self.device))
            captured = CudaGraphed(prepare, list, self._graph_pool) if phase.captures_prepare else prepare
            step = CudaGraphed(forward_backward, phase.module.buffers, self._graph_pool)
            self._step_functions[phase.name] = captured, step
        return self._step_functions[phase.name]

    def forward_backward(self, phase: Phase, batch: Any) -> dict[str, Tensor]:
        """Compute the gradients of a phase's module, average them over processes and clip them.

        Args:
            phase: whose module is trained.
            batch: one of its minibatches. It is computed in parts of `micro_batch_size`, with the same result.

        Returns:
            loss, metrics and `gradient_norm`.
        """
        module = phase.module
        for parameter in module.parameters():
            parameter.grad = None
        parts = split_batch(batch, phase.schedule.micro_batch_size)
        metrics: dict[str, Tensor] = {}
        aux = []
        for part in parts:
            output = phase.loss(part, batch if len(parts) > 1 else None)
            self.manual_backward(output.loss)
            aux.append(output.aux)
            for name, value in output.to_dict().items():
                metrics[name] = metrics[name] + value.detach() if name in metrics else value.detach()
        average_gradients(module.parameters())
        metrics |= phase.after_backward(aux)
        # Clipped here, because the Trainer does not clip in manual optimization.
        config: Any = module.optimizer_config
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
        return metrics

    def release_graphs(self) -> None:
        """Free the CUDA graphs of the steps; they are captured again when they are needed."""
        for function in (each for pair in self._step_functions.values() for each in pair):
            if isinstance(function, CudaGraphed):
                function.reset()
        self._step_functions.clear()

    @cached_property
    def _graph_pool(self) -> Any:
        """The memory of all graphs: only one runs at a time."""
        return torch.cuda.graph_pool_handle()

    @cached_property
    def _captured_policy(self) -> Policy:
        return self.make_policy(self._graph_pool)

    def policy(self) -> Policy:
        """How the agent acts now; accelerated, an action is one launch."""
        return self._captured_policy if self.is_accelerated else self.make_policy()

    # --- metrics ---

    def _add_metrics(self, metrics: dict[str, Tensor]) -> None:
        """Sum a step's metrics on the device, as one small tensor a step."""
        values = torch.stack([value.detach().float() for value in metrics.values()])
        self._metric_names = list(metrics)
        self._metric_sum = values if self._metric_sum is None else self._metric_sum + values
        self._metric_count += 1

    def flush_metrics(self) -> None:
        """Log the means since the last call. This is the only time the host waits for the device.

        Raises:
            UserError: if a loss is not finite.
        """
        if self._metric_count == 0:
            return
        assert self._metric_sum is not None
        means = self.trainer.strategy.reduce(self._metric_sum / self._metric_count, reduce_op="mean")
        values = dict(zip(self._metric_names, means.tolist(), strict=True))
        self._metric_sum, self._metric_count = None, 0
        name = self.phase.name
        if not all(map(_is_finite, values.values())):
            bad = ", ".join(key for key, value in values.items() if not _is_finite(value))
            raise UserError(
                f"{name}: {bad} became infinite or NaN before step {self.trainer.global_step}; the last checkpoint is "
                f"from before and safe: resume it with --ckpt_path and a smaller "
                f"model.init_args.{name}.init_args.optimizer.learning_rate, or trainer.precision=32-true"
            )
        self.phase_metrics = values
        self.log_now({f"{name}/{key}": value for key, value in values.items()}, self.trainer.global_step)

    def log_now(self, values: dict[str, float], step: int) -> None:
        """Pass values to all loggers, at a step of the caller's choice."""
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step)

    # --- held-out evaluation ---

    def validation_step(self, segment: SegmentBatch, batch_idx: int) -> None:
        """Measure the world model on held-out segments; see `WorldModelEvaluator`."""
        if self.world_model is None:
            return
        if batch_idx == 0:
            self._evaluator = WorldModelEvaluator(self.world_model, self.context)
            self.held_out_segment = segment
        self._evaluator.update(segment)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out segments and processes."""
        if self.world_model is None:
            return
        values = self._evaluator.compute(lambda x: self.trainer.strategy.reduce(x, reduce_op="sum"))
        # They are equal on all processes already; without `sync_dist` Lightning would warn.
        self.log_dict(values, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, so that a mismatch can be reported by key, and the frames learned from."""
        checkpoint["configuration"] = self.configuration
        checkpoint["frames_collected"] = self.trainer.fit_loop.frames_collected  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another configuration before anything is overwritten."""
        path = self._trainer.ckpt_path if self._trainer is not None else None
        check_weights(checkpoint, self.state_dict(), self.configuration, Path(str(path or "the checkpoint")))
        self.frames_trained_on = checkpoint["frames_collected"]


def _is_finite(value: float) -> bool:
    return value - value == 0
