"""The root LightningModule: holds tokenizer, world model and agent, and trains the one whose phase it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves, tree_map

from delta_iris.acceleration.compile import accelerated
from delta_iris.acceleration.cuda_graph import Graphed
from delta_iris.acceleration.inference_copy import FrozenCopy
from delta_iris.actor_critic.module import Agent
from delta_iris.actor_critic.network import State
from delta_iris.data.collector import Policy
from delta_iris.data.segment import Window
from delta_iris.distributed import average_gradients
from delta_iris.errors import UserError
from delta_iris.evaluation.world_model import HeldOut
from delta_iris.nn.transformer import autocast_dtype
from delta_iris.training.checkpoint import check_weights
from delta_iris.training.schedule import PHASES
from delta_iris.world_models.tokens.dynamics import WorldModel
from delta_iris.world_models.tokens.token_world_model import Imagination
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["DeltaIris"]


class DeltaIris(L.LightningModule):
    """The whole agent. Optimization is manual, for each of the three modules has an optimizer of its own.

    Args:
        tokenizer: encodes frames as tokens.
        world_model: predicts tokens, rewards and ends.
        agent: acts.
        accelerate: whether to compile what trains and to launch it as CUDA graphs, where there is a CUDA device; turn
            it off to debug.
    """

    def __init__(self, tokenizer: Tokenizer, world_model: WorldModel, agent: Agent, accelerate: bool = True) -> None:
        super().__init__()
        self.accelerate = accelerate
        self.automatic_optimization = False
        self.tokenizer, self.world_model, self.agent = tokenizer, world_model, agent
        self.phase = PHASES[0]
        self.configuration: dict[str, Any] = {}
        self.frames_trained_on = 0  # of the weights that were loaded, and where they were published
        self.published_in: Path | None = None
        self.held_out_window: Window | None = None
        self.phase_metrics: dict[str, float] = {}
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._count = 0
        self._micro_batch_size: int | None = None
        self._held_out: HeldOut
        self._graphs: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Tensor]]]] = {}
        # Copies in autocast's type that the agent imagines with; they follow at the beginning of its phase.
        self._frozen: tuple[FrozenCopy[Tokenizer], FrozenCopy[WorldModel]] | None = None

    def child(self, name: str) -> Tokenizer | WorldModel | Agent:
        """The module that a phase trains."""
        module = getattr(self, name)
        assert isinstance(module, Tokenizer | WorldModel | Agent)
        return module

    # --- training ---

    def configure_optimizers(self) -> Any:
        """One optimizer and one learning-rate schedule a module, in the order of `PHASES`."""
        return [self.child(name).configure_optimizers() for name in PHASES]

    @property
    def accelerating(self) -> bool:
        """Whether steps are compiled and launched as CUDA graphs: where that is wanted, and the device is one."""
        return self.accelerate and self.device.type == "cuda"

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

    def begin_phase(self, phase: str, micro_batch_size: int | None = None) -> None:
        """Train this module from now on, on so many windows at a time (all of a batch where None)."""
        self.phase, self._micro_batch_size = phase, micro_batch_size
        self._sum, self._names, self._count, self.phase_metrics = None, [], 0, {}
        if phase == "world_model":
            self.tokenizer.quantizer.settle()
        elif phase == "agent":
            for copied in self._frozen or ():
                copied.refresh()

    def training_step(self, window: Window, batch_idx: int) -> None:
        """An optimizer step of the module whose phase it is; of the agent, as many as it takes from a batch."""
        index = PHASES.index(self.phase)
        optimizers, schedules = self._optimizers_and_schedules()
        try:
            with accelerated(self.accelerating):
                make_inputs, learn = self._step_functions()
                inputs = make_inputs(window)
                for lesson in self.lessons(inputs):
                    metrics = learn(lesson)
                    optimizers[index].step()
                    schedules[index].step()
                    self._add(metrics)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.phase}: the GPU is out of memory; halve loop.{self.phase}.micro_batch_size (now "
                f"{self._micro_batch_size or 'all windows at once'}), which leaves the results equal"
                f"{', or loop.agent.batch_size, all of which is imagined at once' if self.phase == 'agent' else ''}; "
                "the last checkpoint is safe: resume it with --ckpt_path"
            ) from error
        if self._count >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.flush_metrics()

    def _add(self, metrics: dict[str, Tensor]) -> None:
        """Sum a step's metrics on the device, one small tensor a step."""
        values = torch.stack([value.detach().float() for value in metrics.values()])
        self._names, self._sum = list(metrics), values if self._sum is None else self._sum + values
        self._count += 1

    def _step_functions(self) -> tuple[Callable[..., Any], Callable[..., dict[str, Tensor]]]:
        """`inputs` and `backward_step` as they are or, accelerating, each as a CUDA graph of its own."""
        phase = self.phase
        if not self.accelerating:
            return self.inputs, self.backward_step
        if phase not in self._graphs:
            if phase == "agent" and (dtype := autocast_dtype(self.device)) != torch.float32:
                self._frozen = FrozenCopy(self.tokenizer, dtype), FrozenCopy(self.world_model, dtype)
            pool = self._graph_pool
            make_inputs = self.inputs if phase == "tokenizer" else Graphed(self.inputs, list, pool)
            self._graphs[phase] = make_inputs, Graphed(self.backward_step, self.child(phase).buffers, pool)
        return self._graphs[phase]

    def forget_graphs(self) -> None:
        """Let go of the steps' CUDA graphs; they are captured anew where they are needed again."""
        for function in (each for pair in self._graphs.values() for each in pair):
            if isinstance(function, Graphed):
                function.forget()
        self._graphs.clear()

    @cached_property
    def _graph_pool(self) -> Any:
        """The memory of all graphs: only one runs at a time."""
        return torch.cuda.graph_pool_handle()

    @cached_property
    def _graphed_policy(self) -> _GraphedPolicy:
        return _GraphedPolicy(self.agent, self._graph_pool)

    def policy(self) -> Policy:
        """The agent as it plays; accelerating, an action is one launch."""
        return self._graphed_policy if self.accelerating else self.agent

    def inputs(self, window: Window) -> Any:
        """What the module of the phase trains on: the window, with its tokens, or a `Lesson` imagined from it."""
        if self.phase == "tokenizer":
            return window
        if self.phase == "world_model":
            return window, self.tokenizer.encode(window.frames, window.actions, window.valid)
        tokenizer, world_model = self.tokenizer, self.world_model
        if self._frozen is not None:
            tokenizer, world_model = self._frozen[0].module, self._frozen[1].module
        imagined = Imagination(tokenizer, world_model, self.agent.burn_in + 1).rollout(self.agent, window)
        appraised = [self.agent.appraise(part) for part in _split(imagined, self._micro_batch_size)]
        return tree_map(lambda *parts: torch.cat(parts), *appraised) if len(appraised) > 1 else appraised[0]

    def lessons(self, inputs: Any) -> Iterable[Any]:
        """What each optimizer step of a batch is on: of the agent's, there may be several."""
        return self.agent.lessons(inputs) if self.phase == "agent" else (inputs,)

    def backward_step(self, inputs: Any) -> dict[str, Tensor]:
        """Compute, average over processes and clip the gradients of the phase's module; return its losses and metrics.

        Args:
            inputs: from `inputs`. They are worked on in parts of `micro_batch_size`, with the same result.
        """
        child = self.child(self.phase)
        for parameter in child.parameters():
            parameter.grad = None
        parts = _split(inputs, self._micro_batch_size)
        metrics: dict[str, Tensor] = {}
        for part in parts:
            losses = child.training_step(part, 0, inputs if len(parts) > 1 else None)
            self.manual_backward(losses["loss"])
            for name, value in losses.items():
                metrics[name] = metrics[name] + value.detach() if name in metrics else value.detach()
        average_gradients(child.parameters())
        if isinstance(child, Tokenizer):
            metrics |= child.update_codebook()
        # Clipped here rather than by the Trainer, which refuses to with manual optimization; the norm is worth seeing.
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(child.parameters(), child.gradient_clip)
        return metrics

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
        assert self._sum is not None
        means = self.trainer.strategy.reduce(self._sum / self._count, reduce_op="mean")
        values = dict(zip(self._names, means.tolist(), strict=True))
        self._sum, self._count = None, 0
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
        """Take held-out windows; see `HeldOut`."""
        if batch_idx == 0:
            self._held_out = HeldOut(self.tokenizer, self.world_model, self.agent.burn_in + 1)
            self.held_out_window = window
        self._held_out.update(window)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out windows and processes."""
        values = self._held_out.compute(lambda x: self.trainer.strategy.reduce(x, reduce_op="sum"))
        # Alike on all processes already; Lightning would warn of values that are not reduced.
        self.log_dict(values, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights their configuration, so that a mismatch can be told key by key, and how many frames
        they have learned from."""
        checkpoint["configuration"] = self.configuration
        checkpoint["frames_collected"] = self.trainer.fit_loop.frames_collected  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another configuration before anything is overwritten."""
        path = self._trainer.ckpt_path if self._trainer is not None else None
        check_weights(checkpoint, self.state_dict(), self.configuration, Path(str(path or "the checkpoint")))
        self.frames_trained_on = checkpoint["frames_collected"]


class _GraphedPolicy:
    """An agent whose actions are CUDA graphs."""

    def __init__(self, agent: Agent, pool: Any) -> None:
        self.burn_in, self.network, self.device = agent.burn_in, agent.network, agent.device
        self.act: Callable[[Tensor, State], tuple[Tensor, State]] = Graphed(agent.act, list, pool)


def _split(inputs: Any, size: int | None) -> list[Any]:
    """Cut tensors nested in tuples into parts of at most `size` windows."""
    batch = len(tree_leaves(inputs)[0])
    size = size or batch
    return [tree_map(lambda x, i=i: x[i : i + size], inputs) for i in range(0, batch, size)]


def _is_finite(value: float) -> bool:
    return value - value == 0
