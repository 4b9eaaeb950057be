"""What a phase of an epoch is: modules that train on segments of the replay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.loss import LossOutput
from delta_iris.training.schedule import PhaseSchedule

__all__ = ["COLLECT", "TEST_EPISODES", "Activity", "Phase", "Sampling", "join_batches", "split_batch"]

T = TypeVar("T")


@dataclass(frozen=True)
class Activity:
    """Something that takes a while and shows its progress: a phase, or acting in environments.

    Attributes:
        name: in tags.
        label: in progress lines.
        unit: what its progress counts.
    """

    name: str
    label: str
    unit: str


COLLECT = Activity("collect", "collect", "frames")
TEST_EPISODES = Activity("test", "test episodes", "episodes")


@dataclass(frozen=True)
class Sampling:
    """Which segments of the replay a phase trains on; see `SegmentSampler`.

    Attributes:
        length: steps of a segment.
        pad_start: steps that a segment may begin before its episode's first step.
        pad_end: steps that a segment may extend past its episode's last step.
        priority_exponent: how strongly episodes that were drawn less often are preferred.
        recent_frames: draw from the latest episodes that together hold this many frames, over all processes; from the
            whole replay where None.
        across_episodes: let segments run on into the next episode of the same environment, and hold each episode's
            final frame; see `StreamSampler`. Padding, priority and recency do not apply then.
    """

    length: int
    pad_start: int
    pad_end: int
    priority_exponent: float = 5.0
    recent_frames: int | None = None
    across_episodes: bool = False


class Phase:
    """A phase trains one LightningModule on batches of segments. The loop, the learner and callbacks know only this.

    A phase holds references to modules without registering them: the learner owns all parameters.

    Args:
        name: of the phase: its tags, and the name of its field in the system's schedule.
        label: in progress lines.
        module: the LightningModule that is trained; it has `configure_optimizers` and, unless a subclass overrides
            what uses them, `loss(part, batch)` and `optimizer_config`.
        sampling: which segments it trains on.
        schedule: how much it trains.
    """

    out_of_memory_hint = ""
    """What else helps where a GPU runs out of memory in this phase."""

    def __init__(
        self, name: str, label: str, module: L.LightningModule, sampling: Sampling, schedule: PhaseSchedule
    ) -> None:
        self.name, self.module, self.sampling, self.schedule = name, module, sampling, schedule
        self.activity = Activity(name, label, "steps")

    def on_start(self) -> None:
        """Called at the beginning of the phase in every epoch."""

    def on_accelerate(self, dtype: torch.dtype) -> None:
        """Called once, before the steps are compiled and captured, with the type that autocast computes in."""

    def prepare(self, segment: SegmentBatch) -> Any:
        """Compute, without gradient, what the losses are computed from. Captured as one CUDA graph."""
        return segment

    @property
    def captures_prepare(self) -> bool:
        """Whether `prepare` does anything worth a CUDA graph."""
        return type(self).prepare is not Phase.prepare

    def release_graphs(self) -> None:
        """Free the CUDA graphs that the phase has captured itself; they are captured again when they are needed."""

    @property
    def batch_multiple(self) -> int:
        """Number of equal parts that each process's batch must be divisible into."""
        return 1

    def minibatches(self, batch: Any) -> Iterable[Any]:
        """The batches of the optimizer steps that one prepared batch is used for."""
        return (batch,)

    @property
    def learning_rate_key(self) -> str:
        """The configuration key of the learning rate, for messages."""
        return f"model.init_args.{self.name}.init_args.optimizer.learning_rate"

    def learning_rates(self, groups: int) -> list[float]:
        """The configured learning rates of the optimizer's parameter groups, of which there are `groups`."""
        config: Any = self.module.optimizer_config
        return [config.learning_rate] * groups

    def clip_gradients(self) -> Tensor:
        """Clip the gradients, averaged over processes; return their norm before that, () on the device."""
        config: Any = self.module.optimizer_config
        return nn.utils.clip_grad_norm_(self.module.parameters(), config.max_grad_norm)

    def loss(self, part: Any, batch: Any | None) -> LossOutput:
        """The loss of a part of a minibatch; `batch` is the whole of it, or None where the part is all of it."""
        output: LossOutput = self.module.loss(part, batch)  # type: ignore[operator]
        return output

    def after_backward(self, aux: list[Any], skip: Tensor | None = None) -> dict[str, Tensor]:
        """Update what is not trained by gradients.

        Args:
            aux: `aux` of the losses of all parts.
            skip: () bool on the device, whether the optimizer step is skipped because it is not finite. Nothing may
                change then (`torch.where`), and the host may not read it. None stands for false.

        Returns:
            metrics to log.
        """
        return {}

    def after_batch(self, skip: Tensor | None = None) -> None:
        """Called after the optimizer steps of each batch.

        Args:
            skip: () bool on the device, whether all of them were skipped; as for `after_backward`.
        """


def split_batch(batch: Any, size: int | None) -> list[Any]:
    """Cut tensors nested in tuples into parts of at most `size` rows; one part where it is None."""
    length = len(tree_leaves(batch)[0])
    size = size or length
    return [tree_map(lambda x, i=i: x[i : i + size], batch) for i in range(0, length, size)]


def join_batches(parts: list[T]) -> T:
    """Put the parts of a batch together again; the inverse of `split_batch`."""
    return parts[0] if len(parts) == 1 else tree_map(lambda *fields: torch.cat(fields), *parts)
