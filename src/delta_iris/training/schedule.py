"""How much each part of an epoch does, and what a run adds up to."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CollectionSchedule", "PhaseSchedule", "Schedule"]


@dataclass(frozen=True)
class CollectionSchedule:
    """How much experience is collected.

    Args:
        frames: frames of each epoch, rounded up to the same number from each environment.
        first_epoch_frames: frames of the first epoch, with random actions; `frames` where None.
        last_epoch: number of epochs that collect, after which training continues on the replay; all where None.
        epsilon: probability of a random action after the first epoch.

    Raises:
        ValueError: if a number of frames is negative or epsilon is no probability.
    """

    frames: int = 10_000
    first_epoch_frames: int | None = None
    last_epoch: int | None = None
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        for name in ("frames", "first_epoch_frames"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}: it must lie between 0 and 1")

    def frames_in(self, epoch: int) -> int:
        """Frames to collect in an epoch, counted from 0."""
        if self.last_epoch is not None and epoch >= self.last_epoch:
            return 0
        return self.first_epoch_frames if epoch == 0 and self.first_epoch_frames is not None else self.frames

    def frames_until(self, epochs: int) -> int:
        """Frames collected in a number of epochs."""
        return sum(self.frames_in(epoch) for epoch in range(epochs))


@dataclass(frozen=True)
class PhaseSchedule:
    """How much a phase trains.

    Args:
        steps: batches in each epoch from `start_epoch` on.
        batch_size: segments of a batch, over all processes.
        first_epoch_steps: batches in the first of these epochs; `steps` where None.
        start_epoch: the first epoch in which the phase trains, counted from 0.
        micro_batch_size: segments that each process computes at a time, where memory is short; gradients and codebook
            are those of the whole batch regardless.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int = 500
    batch_size: int = 32
    first_epoch_steps: int | None = None
    start_epoch: int = 0
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "first_epoch_steps", "start_epoch"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be 1 or more")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size is {self.micro_batch_size}: it must be 1 or more, or null")

    def steps_in(self, epoch: int) -> int:
        """Batches in an epoch, counted from 0."""
        if epoch < self.start_epoch:
            return 0
        first = epoch == self.start_epoch and self.first_epoch_steps is not None
        return self.first_epoch_steps or 0 if first else self.steps

    @property
    def most_steps(self) -> int:
        """The most batches of any epoch; 0 if the phase never trains."""
        return max(self.steps, self.first_epoch_steps or 0)

    def segments_until(self, epochs: int) -> int:
        """Segments trained on in a number of epochs."""
        return sum(self.steps_in(epoch) for epoch in range(epochs)) * self.batch_size


@dataclass(frozen=True)
class Schedule:
    """The part of a schedule that all systems have; each adds a `PhaseSchedule` for each of its phases.

    Args:
        collection: how much is collected.
    """

    collection: CollectionSchedule = field(default_factory=CollectionSchedule)
