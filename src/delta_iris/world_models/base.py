"""The interface of world models, which imagination, evaluation and the actor-critic are written against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, TypeVar

import gymnasium as gym
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.statistics import WeightedMean

__all__ = ["Evaluation", "Prediction", "WorldModel"]

State = TypeVar("State")


class Prediction(NamedTuple):
    """What a world model predicts of one step, besides the next state.

    Attributes:
        reward: (B,) float32, the expected reward.
        end_logits: (B, 2) logits that the episode continues and that it terminates.
    """

    reward: Tensor
    end_logits: Tensor


class Evaluation(NamedTuple):
    """Measures of one batch of held-out segments, in a form that can be summed over batches and processes.

    Attributes:
        means: by metric name.
        code_counts: (N,) how often each code was used, or None where the model has no codebook.
    """

    means: dict[str, WeightedMean]
    code_counts: Tensor | None = None


class WorldModel(ABC, Generic[State]):
    """A model that filters observations into a state and steps that state by actions.

    All methods run without gradients and without waiting for the device, so that a rollout can be captured as a CUDA
    graph. A state may be changed in place: use only the one returned last. Training is not part of this interface: the
    phases of a system train its modules.

    Attributes:
        actor_input_space: what the actor-critic sees of a state: a picture (3, H, W) or a vector (D,).
        headlines: the metrics of `evaluate` and `summarize` that are printed while training, and their labels.
    """

    actor_input_space: gym.spaces.Box
    headlines: ClassVar[dict[str, str]] = {
        "reconstruction_l2": "reconstruction L2",
        "copy_l2": "copying the last frame",
    }

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state of `batch` episodes before their first frame."""

    @abstractmethod
    def observe(self, state: State, segment: SegmentBatch, last_action: Tensor | None = None) -> tuple[State, Tensor]:
        """Take in real frames.

        Args:
            state: before the segment.
            segment: B segments of T steps whose last frames are real. The action of the last step is not used.
            last_action: (B,) int64, the action that led from `state` to the segment's first frame; None where the
                segment starts an episode or follows nothing.

        Returns:
            the state at the last frame, and the actor inputs at all frames, (B, T, *actor_input_space.shape).
        """

    @abstractmethod
    def actor_input(self, state: State) -> Tensor:
        """What the actor-critic sees of a state: (B, *actor_input_space.shape)."""

    @abstractmethod
    def step(self, state: State, action: Tensor, latents: Tensor | None = None) -> tuple[State, Prediction]:
        """Imagine one step.

        Args:
            state: the present state, which is consumed.
            action: (B,) int64.
            latents: the stochastic part of the next state, such as (B, K) tokens, to take instead of sampling it.

        Returns:
            the next state, and the reward and end predicted for this step.
        """

    @torch.no_grad()
    def restart(self, state: State, rows: Tensor, segment: SegmentBatch) -> State:
        """Start some episodes anew, and leave the others as they are.

        This implementation is for states that are tuples of tensors with the batch first.

        Args:
            state: of B episodes, which is consumed.
            rows: (R,) int64, the episodes to start anew.
            segment: R segments of real steps, for `observe`.
        """
        fresh, _ = self.observe(self.initial_state(len(rows)), segment)
        return tree_map(lambda old, new: old.index_copy(0, rows, new), state, fresh)

    @abstractmethod
    def decode(self, state: State) -> Tensor:
        """The frame that a state stands for: (B, 3, H, W) floats in [0, 1]."""

    def tokens(self, state: State) -> Tensor | None:
        """The discrete codes of the transition to a state, to look at: (B, K) int64; None where there are none."""
        return None

    def prefetch(self, state: State) -> None:
        """Start work of the next `step` that does not depend on the action, so that it overlaps with the policy.

        Optional: `step` does that work itself otherwise.
        """

    @abstractmethod
    def reconstruct(self, segment: SegmentBatch) -> Tensor:
        """The frames 1 … T − 1 of a segment as the model sees them: (B, T − 1, 3, H, W), not clamped."""

    @abstractmethod
    def evaluate(self, segment: SegmentBatch) -> Evaluation:
        """Measure the model on segments that it was not trained on, under the recorded actions."""

    def summarize(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add metrics that are functions of means over all held-out segments, such as a perplexity."""
        return means
