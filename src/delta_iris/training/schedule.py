"""What an epoch consists of, and what a run then adds up to."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["PHASES", "Collection", "Phase", "Schedule"]

PHASES = ("tokenizer", "world_model", "agent")
"""The training phases of an epoch, in order; also the names of the modules they train."""


@dataclass
class Collection:
    """How much is collected.

    Attributes:
        frames: collected in each epoch, rounded up to as many from each environment.
        first_epoch_frames: collected in the first epoch, with random actions; `frames` where None.
        last_epoch: epochs that collect; the rest trains on what is there. All of them where None.
        epsilon: probability of a random action after the first epoch.
    """

    frames: int = 10_000
    first_epoch_frames: int | None = None
    last_epoch: int | None = None
    epsilon: float = 0.01

    def frames_in(self, epoch: int) -> int:
        """Frames to collect in an epoch, counted from 0."""
        if self.last_epoch is not None and epoch >= self.last_epoch:
            return 0
        return self.first_epoch_frames if epoch == 0 and self.first_epoch_frames is not None else self.frames


@dataclass
class Phase:
    """How much one module trains.

    Attributes:
        steps: batches in each epoch, an optimizer step each; the agent takes `passes` × `parts` of each batch.
        batch_size: windows of a batch, over all processes.
        first_epoch_steps: steps in the first epoch; `steps` where None.
        micro_batch_size: windows computed at a time by each process, where memory is short; gradients and codebook are
            those of the whole batch all the same.
    """

    steps: int = 500
    batch_size: int = 32
    first_epoch_steps: int | None = None
    micro_batch_size: int | None = None

    def steps_in(self, epoch: int) -> int:
        """Steps in an epoch, counted from 0."""
        return self.first_epoch_steps if epoch == 0 and self.first_epoch_steps is not None else self.steps


@dataclass
class Schedule:
    """An epoch: collect, then train tokenizer, world model and agent, in that order (paper §2).

    Attributes:
        collection: how much is collected.
        tokenizer, world_model, agent: how much each module trains.
    """

    collection: Collection = field(default_factory=Collection)
    tokenizer: Phase = field(default_factory=Phase)
    world_model: Phase = field(default_factory=Phase)
    agent: Phase = field(default_factory=Phase)

    def phase(self, name: str) -> Phase:
        """The phase of a module, by its name."""
        phase = getattr(self, name)
        assert isinstance(phase, Phase)
        return phase

    def frames_until(self, epochs: int) -> int:
        """Frames collected in a number of epochs."""
        return sum(self.collection.frames_in(epoch) for epoch in range(epochs))

    def imagined_until(self, epochs: int, horizon: int) -> int:
        """Steps imagined in a number of epochs."""
        return sum(self.agent.steps_in(epoch) for epoch in range(epochs)) * self.agent.batch_size * horizon
