"""Sampling of training segments: least-sampled episodes first, or uniformly from the most recent ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from delta_iris.data.segment import SegmentIndex

__all__ = ["SegmentSampler"]


class SegmentSampler:
    """Samples episodes with p ∝ (1 + times sampled)^−priority_exponent, then a segment of the episode uniformly.

    The count-based priority is the Δ-IRIS authors'. Within an episode all permitted segments are equally likely.

    Args:
        length: steps per segment, T.
        pad_start: steps that a segment may begin before its episode's first step, at most T − 1.
        pad_end: steps that a segment may extend past its episode's last step, at most T − 1.
        seed: seed of the random number generator.
        priority_exponent: how strongly rarely sampled episodes are preferred. 0 samples all episodes equally often;
            5 is the authors' value.
        recent_steps: if given, sample only from the most recent episodes that together have at least this many steps.
            All segments of these episodes are then equally likely and `priority_exponent` has no effect.

    Raises:
        ValueError: if a segment might consist of padding only.
    """

    def __init__(
        self,
        length: int,
        pad_start: int,
        pad_end: int,
        seed: int,
        priority_exponent: float = 5.0,
        recent_steps: int | None = None,
    ) -> None:
        for name, value in (("pad_start", pad_start), ("pad_end", pad_end)):
            if not 0 <= value < length:
                raise ValueError(f"{name} is {value}: it must be at least 0 and below the segment length {length}")
        self.length = length
        self.pad_start = pad_start
        self.pad_end = pad_end
        self.priority_exponent = priority_exponent
        self.recent_steps = recent_steps
        self._counts = np.zeros(0, np.int64)
        self._random = np.random.default_rng(seed)

    def draw(self, lengths: NDArray[np.int64], batch_size: int, update_counts: bool) -> list[SegmentIndex]:
        """Sample a batch of segments.

        Args:
            lengths: (episodes,) int64, steps of each episode. Episodes of 0 steps, which are damaged, are left out.
            batch_size: number of segments.
            update_counts: whether these samples lower the priority of their episodes in later batches.

        Returns:
            Episode and first step of each segment; the first step may be negative.

        Raises:
            ValueError: if every episode is too short.
        """
        if len(self._counts) < len(lengths):
            self._counts = np.concatenate([self._counts, np.zeros(len(lengths) - len(self._counts), np.int64)])
        last_starts = lengths + self.pad_end - self.length
        num_starts = np.where(lengths > 0, np.maximum(last_starts + self.pad_start + 1, 0), 0)
        if self.recent_steps is None:
            weights = np.where(num_starts > 0, self._priorities(), 0.0)
        else:
            steps_after = lengths[::-1].cumsum()[::-1] - lengths
            weights = np.where(steps_after < self.recent_steps, num_starts, 0)
        if not weights.any():
            raise ValueError(f"no episode is long enough for segments of {self.length} steps")
        episodes = self._random.choice(len(lengths), batch_size, p=weights / weights.sum())
        starts = self._random.integers(-self.pad_start, last_starts[episodes] + 1)
        if update_counts:
            np.add.at(self._counts, episodes, 1)
        return list(zip(episodes.tolist(), starts.tolist(), strict=True))

    def _priorities(self) -> NDArray[np.float64]:
        counts = 1.0 + self._counts
        # Dividing by the smallest count prevents all weights from underflowing to zero.
        return (counts / counts.min()) ** -self.priority_exponent

    def state_dict(self) -> dict[str, Any]:
        """Return the sample counts and the random state, as tensors and plain values."""
        return {"counts": torch.from_numpy(self._counts.copy()), "random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: what `state_dict` returned.
        """
        self._counts = state["counts"].numpy().copy()
        self._random.bit_generator.state = state["random"]
