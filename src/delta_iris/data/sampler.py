"""Which windows to train on: rarely drawn episodes first (the authors' count-based priority), or the latest ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["WindowSampler"]


class WindowSampler:
    """Draws episodes with p ∝ (1 + times drawn)^−priority, then a window of the episode uniformly.

    Args:
        length: steps of a window.
        overhang_end: whether windows may reach beyond an episode's last step; they may always begin before its first.
            Every window with at least one real step (or, without overhang, a real last step) is as likely.
        seed: of the draws.
        priority: how strongly episodes that were drawn less are preferred; 0 for all alike, 5 for the authors' own.
        latest_steps: where given, windows are drawn from the latest episodes that hold so many steps together, and
            whatever the priority every one of these windows is as likely: as often as the latest policy meets them.
    """

    def __init__(
        self, length: int, overhang_end: bool, seed: int, priority: float = 5.0, latest_steps: int | None = None
    ) -> None:
        self.length, self.overhang_end, self.priority = length, overhang_end, priority
        self.latest_steps = latest_steps
        self._counts = np.zeros(0, np.int64)
        self._random = np.random.default_rng(seed)

    def draw(self, lengths: NDArray[np.int64], batch_size: int, count: bool) -> list[tuple[int, int]]:
        """Draw a batch of windows.

        Args:
            lengths: steps of each episode, (episodes,), each at least 1.
            batch_size: number of windows.
            count: whether these draws count against the episodes in later ones.

        Returns:
            episode and first step of each window; the first step may be negative.
        """
        if len(self._counts) < len(lengths):
            self._counts = np.concatenate([self._counts, np.zeros(len(lengths) - len(self._counts), np.int64)])
        last_starts = lengths - (1 if self.overhang_end else self.length)
        if self.latest_steps is None:
            # Relative to the least drawn episode, so that the weights never vanish together.
            drawn = 1.0 + self._counts
            weights = (drawn / drawn.min()) ** -self.priority
        else:
            later_steps = lengths[::-1].cumsum()[::-1] - lengths
            weights = np.where(later_steps < self.latest_steps, last_starts + self.length, 0)
        episodes = self._random.choice(len(lengths), batch_size, p=weights / weights.sum())
        last = last_starts[episodes]
        starts = self._random.integers(1 - self.length, last + 1)
        if count:
            np.add.at(self._counts, episodes, 1)
        return list(zip(episodes.tolist(), starts.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Counts and random state, as tensors and plain values."""
        return {"counts": torch.from_numpy(self._counts.copy()), "random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._counts = state["counts"].numpy().copy()
        self._random.bit_generator.state = state["random"]
