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
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.acceleration.cuda_graph import CudaGraphed
from delta_iris.data.collector import Policy
from delta_iris.data.segment import SegmentBatch
from delta_iris.distributed import average_gradients, gather_objects
from delta_iris.errors import SharedUserError, UserError
from delta_iris.evaluation.world_model import WorldModelEvaluator
from delta_iris.nn.optim import mask_step, rewind_schedule
from delta_iris.nn.transformer import autocast_dtype
from delta_iris.training.checkpoint import check_optimizers, check_weights
from delta_iris.training.metrics_window import SKIPPED, MetricsWindow, StepInfo
from delta_iris.training.monitors import allow_absent_metrics, check_monitors
from delta_iris.training.phase import Phase, split_batch
from delta_iris.training.schedule import Schedule
from delta_iris.training.skipped_steps import SkippedSteps
from delta_iris.world_models.base import WorldModel

__all__ = ["Learner"]

MAX_DESCRIBED = 3
"""Number of skipped steps whose batches are described; those in a row often have the same cause."""


class Learner(L.LightningModule):
    """Trains the phases of a system. Subclasses, the systems, build modules and phases.

    Optimization is manual, because each phase has its own optimizer.

    Args:
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps and launch them as CUDA graphs on a GPU; false to debug.
        max_skipped_steps: number of optimizer steps in a row that may be skipped because a loss or gradient is NaN or
            infinite; more of them end the run.

    Attributes:
        phases: in the order in which they run in an epoch.
        world_model: what imagination and evaluation use; None for a model-free system.
        segment_length: steps of held-out segments.
        context: real frames that held-out imagination starts from.
        phase_metrics: means that the present phase logged last; empty before.

    Raises:
        UserError: if `max_skipped_steps` is negative.
    """

    phases: list[Phase]
    world_model: WorldModel[Any] | None
    segment_length: int
    context: int

    def __init__(self, schedule: Schedule, compile: bool = True, max_skipped_steps: int = 20) -> None:
        super().__init__()
        if max_skipped_steps < 0:
            raise UserError(f"model.init_args.max_skipped_steps is {max_skipped_steps}: it must be 0 or more")
        self.schedule, self.use_compile, self.max_skipped_steps = schedule, compile, max_skipped_steps
        self.automatic_optimization = False
        self.configuration: dict[str, Any] = {}
        # Of loaded weights: the frames they have learned from, and the folder they were exported to.
        self.frames_trained_on = 0
        self.exported_to: Path | None = None
        self.held_out_segment: SegmentBatch | None = None
        self.phase_metrics: dict[str, float] = {}
        self._phase_index = 0
        self._metrics = MetricsWindow()
        self._restored_metrics: dict[str, Any] | None = None
        self._skipped: dict[str, SkippedSteps] = {}
        self._skip_batch: Tensor | None = None
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
        """One optimizer and one learning-rate schedule `lr/<phase>` for each phase, in their order."""
        configured: list[Any] = [phase.module.configure_optimizers() for phase in self.phases]
        for phase, each in zip(self.phases, configured, strict=True):
            each["lr_scheduler"]["name"] = f"lr/{phase.name}"
        return configured

    @property
    def is_accelerated(self) -> bool:
        """Whether steps are compiled and launched as CUDA graphs."""
        return self.use_compile and self.device.type == "cuda"

    def on_fit_start(self) -> None:
        """Let callbacks wait for metrics that only validation measures."""
        allow_absent_metrics(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Check the names of monitored metrics; Lightning calls the callbacks that monitor them after this.

        Raises:
            UserError: if there is no such metric.
        """
        check_monitors(self.trainer)

    def on_train_start(self) -> None:
        """Take the learning rates from the configuration: on a resume the checkpoint has just restored its own."""
        for phase, optimizer, schedule in zip(self.phases, *self._optimizers_and_schedules(), strict=True):
            schedule.base_lrs = [*phase.learning_rates(len(optimizer.param_groups))]
            for group, rate, scale in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["initial_lr"], group["lr"] = rate, rate * scale(schedule.last_epoch)

    def _optimizers_and_schedules(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        if not isinstance(optimizers, list):
            return [optimizers], [cast(LambdaLR, schedules)]
        return optimizers, cast(list[LambdaLR], schedules)

    def start_phase(self, index: int, resumed: bool = False) -> None:
        """Train the phase at an index from now on.

        Args:
            index: index of the phase.
            resumed: whether a checkpoint was made within this phase: metrics that it had not logged yet are restored.
        """
        self._phase_index = index
        state, self._restored_metrics = self._restored_metrics, None
        self._metrics = MetricsWindow.from_state(state, self.device) if resumed and state else MetricsWindow()
        self.phase_metrics = {}
        self.phase.on_start()

    def training_step(self, segment: SegmentBatch, batch_idx: int) -> None:
        """Train the present phase on a batch, in one or more optimizer steps.

        A step whose loss or gradient is not finite changes nothing; see `forward_backward`.
        """
        phase, index = self.phase, self._phase_index
        optimizers, schedules = self._optimizers_and_schedules()
        skips = []
        try:
            with compiled_regions(self.is_accelerated):
                prepare, forward_backward = self.step_functions(phase)
                batch = prepare(segment)
                for minibatch in phase.minibatches(batch):
                    metrics = forward_backward(minibatch)
                    known_skip = mask_step(optimizers[index].optimizer, metrics[SKIPPED])
                    optimizers[index].step()
                    if not known_skip:
                        schedules[index].step()
                    # A copy, because a captured step overwrites its results.
                    skips.append(metrics[SKIPPED].bool())
                    self._metrics.add(metrics, StepInfo(self.trainer.global_step, batch_idx, not known_skip))
        except torch.OutOfMemoryError as error:
            size = phase.schedule.micro_batch_size or "all segments at once"
            raise UserError(
                f"{phase.name}: the GPU is out of memory; halve model.init_args.schedule.{phase.name}.micro_batch_size "
                f"(now {size}), which leaves the results equal{phase.out_of_memory_hint}; the last checkpoint is safe: "
                "resume it with --ckpt_path"
            ) from error
        self._skip_batch = torch.stack(skips).all()
        if len(self._metrics) >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.flush_metrics()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the phase update what follows the trained weights."""
        self.phase.after_batch(self._skip_batch)

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

        If the loss of any process or the norm of the average gradient is NaN or infinite, the step is to be skipped.
        All processes decide equally, from the same numbers, and the host does not wait for the decision: it is a flag
        on the device, which masks all that the step changes.

        Args:
            phase: whose module is trained.
            batch: one of its minibatches. It is computed in parts of `micro_batch_size`, with the same result.

        Returns:
            loss, metrics and `gradient_norm`, and `skipped`: () float32, 1 to skip the step.
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
        average_loss = average_gradients(module.parameters(), metrics["loss"])
        # Clipped here, because the Trainer does not clip in manual optimization.
        norm = phase.clip_gradients()
        skip = ~(average_loss.isfinite() & norm.isfinite())
        return metrics | phase.after_backward(aux, skip) | {"gradient_norm": norm, SKIPPED: skip.float()}

    def release_graphs(self) -> None:
        """Free the CUDA graphs of the steps; they are captured again when they are needed."""
        for function in (each for pair in self._step_functions.values() for each in pair):
            if isinstance(function, CudaGraphed):
                function.reset()
        self._step_functions.clear()
        for phase in self.phases:
            phase.release_graphs()

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

    def flush_metrics(self) -> None:
        """Log the means since the last call, and report skipped steps. Only here does the host wait for the device.

        Raises:
            UserError: if more than `max_skipped_steps` steps in a row were skipped.
        """
        window, self._metrics = self._metrics, MetricsWindow()
        if len(window) == 0:
            return
        name = self.phase.name
        names, means = window.means()
        values: dict[str, float] = {}
        if means is not None:
            # All processes skip the same steps, so that they are all here, or none is.
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
            self.phase_metrics = values = dict(zip(names, means.tolist(), strict=True))
        skipped = window.skipped()
        if skipped or name in self._skipped:
            self._count_skipped(window.steps(), skipped)
            values = values | {"skipped_steps": float(self._skipped[name].total)}
        self.log_now({f"{name}/{key}": value for key, value in values.items()}, self.trainer.global_step)

    def _count_skipped(self, steps: list[StepInfo], skipped: list[tuple[StepInfo, dict[str, float]]]) -> None:
        """Count and report skipped steps, take back those of the schedule, and end the run if there are too many."""
        phase = self.phase
        count = self._skipped.setdefault(phase.name, SkippedSteps())
        rewind_schedule(
            self._optimizers_and_schedules()[1][self._phase_index], sum(step.scheduled for step, _ in skipped)
        )
        if skipped:
            rank_zero_warn(self._describe_skipped(skipped, len(steps)))
        skipped_steps = {step for step, _ in skipped}
        for step in steps:
            count.count(step.global_step, step in skipped_steps)
            if count.in_a_row > self.max_skipped_steps:
                raise SharedUserError(
                    f"{phase.name}: the loss or its gradient became infinite or NaN, and {count.in_a_row} optimizer "
                    f"steps in a row, from step {count.first} on, were skipped: resume a checkpoint from before that "
                    f"step with --ckpt_path and a smaller {phase.learning_rate_key}, or trainer.precision=32-true; "
                    "model.init_args.max_skipped_steps "
                    f"({self.max_skipped_steps}) is how many in a row are allowed"
                )

    def _describe_skipped(self, skipped: list[tuple[StepInfo, dict[str, float]]], steps: int) -> str:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        shown = skipped[:MAX_DESCRIBED]
        own = [(metrics["loss"], data.episodes_of(step.batch_idx)) for step, metrics in shown]
        ranks = gather_objects(own)
        described = []
        for index, (step, metrics) in enumerate(shown):
            parts = [
                (f"rank {rank} " if len(ranks) > 1 else "") + f"loss {loss:.4g} on episodes {', '.join(map(str, each))}"
                for rank, (loss, each) in enumerate(values[index] for values in ranks)
            ]
            described.append(f"{step.global_step} (gradient norm {metrics['gradient_norm']:.4g}; {'; '.join(parts)})")
        more = f" and {len(skipped) - len(shown)} more" if len(skipped) > len(shown) else ""
        return (
            f"{self.phase.name}: {len(skipped)} of the last {steps} optimizer steps were skipped, because the loss or "
            f"its gradient is NaN or infinite: step {', '.join(described)}{more}"
        )

    @property
    def skipped_in_a_row(self) -> int:
        """Optimizer steps that were skipped since the last one taken, in the phase where they are most.

        Counted when metrics are flushed, which the end of a phase does. Weights may be what makes them skip.
        """
        return max((count.in_a_row for count in self._skipped.values()), default=0)

    def log_now(self, values: dict[str, float], step: int) -> None:
        """Pass values to all loggers, at a step of the caller's choice, and to `callback_metrics` to be monitored.

        Args:
            values: by tag. All processes must call this with the same values, because callbacks decide on each.
            step: position on the loggers' axis.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

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
        """Add the configuration, so that a mismatch can be reported by key, the frames learned from, and metrics."""
        checkpoint["configuration"] = self.configuration
        checkpoint["frames_collected"] = self.trainer.fit_loop.frames_collected  # type: ignore[attr-defined]
        # Each process has its own losses.
        checkpoint["metrics_window"] = gather_objects(self._metrics.state_dict())
        checkpoint["skipped_steps"] = {name: count.state_dict() for name, count in self._skipped.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another configuration, and to resume with other phases, before anything is overwritten."""
        trainer = self._trainer
        path = Path(str((trainer.ckpt_path if trainer is not None else None) or "the checkpoint"))
        check_weights(checkpoint, self.state_dict(), self.configuration, path)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            check_optimizers(checkpoint, [phase.name for phase in self.phases], self.configuration, path)
        self.frames_trained_on = checkpoint["frames_collected"]
        # Checkpoints of version 0.2 do not have them.
        windows, skipped = checkpoint.get("metrics_window", []), checkpoint.get("skipped_steps", {})
        self._restored_metrics = windows[self.global_rank] if self.global_rank < len(windows) else None
        self._skipped = {name: SkippedSteps(**counts) for name, counts in skipped.items()}
