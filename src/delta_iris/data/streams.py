"""Segments that run on from one episode into the next: how an environment's frames follow one another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_iris.data.segment import SegmentIndex, SegmentRequest, Span

__all__ = ["EpisodeStreams", "StreamSampler"]


@dataclass(frozen=True)
class EpisodeStreams:
    """The episodes of a replay in the order in which each environment went through them.

    An episode has a frame for each of its steps, then its final frame, if that was stored.

    Attributes:
        lengths: (episodes,) int64, steps of each episode; 0 where it is damaged.
        environments: (episodes,) int64, the environment of each.
        final_frames: (episodes,) bool, whether an episode's final frame is stored.
    """

    lengths: NDArray[np.int64]
    environments: NDArray[np.int64]
    final_frames: NDArray[np.bool_]

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """(episodes,) frames of each episode, the final one included; 0 where it is damaged."""
        return np.where(self.lengths > 0, self.lengths + self.final_frames, 0)

    @cached_property
    def episodes(self) -> dict[int, NDArray[np.int64]]:
        """The episodes of each environment, in order."""
        environments = np.unique(self.environments).tolist()
        return {environment: np.flatnonzero(self.environments == environment) for environment in environments}

    @cached_property
    def frames_after(self) -> NDArray[np.int64]:
        """(episodes,) frames that the environment of each episode went through in later episodes."""
        frames, after = self.frames, np.zeros_like(self.lengths)
        for own in self.episodes.values():
            after[own] = frames[own][::-1].cumsum()[::-1] - frames[own]
        return after

    def request(self, length: int, indices: list[SegmentIndex]) -> SegmentRequest:
        """Request segments that go on after their episode's end with its final frame, if that was stored, and then with
        the next episode of the same environment.

        Args:
            length: steps per segment, T.
            indices: episode and first step of each segment.

        Raises:
            IndexError: if an environment has fewer frames from there on.
        """
        spans = [self._spans(episode, start, length) for episode, start in indices]
        return SegmentRequest(length, spans, int(self.lengths.sum()))

    def _spans(self, episode: int, start: int, length: int) -> list[Span]:
        parts: list[Span] = []
        slot = 0
        own = self.episodes[int(self.environments[episode])]
        for position in range(int(np.searchsorted(own, episode)), len(own)):
            number = int(own[position])
            steps = int(self.lengths[number])
            stop = min(start + length - slot, steps)
            if stop > start:
                parts.append((slot, number, start, stop))
                slot += stop - start
            if slot < length and steps and self.final_frames[number]:
                parts.append((slot, number, steps, steps + 1))
                slot += 1
            if slot == length:
                return parts
            start = 0
        raise IndexError(f"fewer than {length} frames follow step {start} of episode {episode}")


class StreamSampler:
    """Draws segments that begin at any step with equal probability and run on into the following episodes.

    Each environment's newest whole segments are drawn first, so that every frame is soon seen, as in DreamerV3.

    Args:
        length: frames of a segment, T.
        seed: seed of the random number generator.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self._random = np.random.default_rng(seed)
        # For each environment, the frames of its stream that were drawn as the newest.
        self._newest: dict[int, int] = {}

    def draw(self, streams: EpisodeStreams, batch_size: int) -> list[SegmentIndex]:
        """Sample a batch of segments.

        Args:
            streams: the episodes.
            batch_size: number of segments.

        Returns:
            episode and first step of each segment.

        Raises:
            ValueError: if no environment has as many frames.
        """
        possible = streams.frames + streams.frames_after - self.length + 1
        # A segment does not begin with a final frame, at which no action was chosen.
        num_starts = np.minimum(np.maximum(possible, 0), streams.lengths)
        if not num_starts.any():
            raise ValueError(f"no environment has {self.length} frames in a row")
        newest = self._draw_newest(streams, num_starts)
        ends = num_starts.cumsum()
        draws = self._random.integers(ends[-1], size=batch_size - len(newest))
        episodes = np.searchsorted(ends, draws, side="right")
        starts = draws - (ends - num_starts)[episodes]
        return newest + list(zip(episodes.tolist(), starts.tolist(), strict=True))

    def _draw_newest(self, streams: EpisodeStreams, num_starts: NDArray[np.int64]) -> list[SegmentIndex]:
        """The oldest undrawn frames of the environment that has most of them; nothing if they fill no segment."""
        frames = streams.frames
        waiting: dict[int, int] = {}
        for environment, own in streams.episodes.items():
            total = int(frames[own].sum())
            waiting[environment] = total - self._newest.setdefault(environment, 0)
        environment = max(waiting, key=lambda each: waiting[each])
        if waiting[environment] < self.length:
            return []
        own = streams.episodes[environment]
        ends = frames[own].cumsum()
        position = self._newest[environment]
        index = int(np.searchsorted(ends, position, side="right"))
        episode, start = int(own[index]), position - int(ends[index] - frames[own[index]])
        self._newest[environment] += self.length
        # From a final frame on, the segment begins a step earlier.
        return [(episode, min(start, int(num_starts[episode]) - 1))]

    def state_dict(self) -> dict[str, Any]:
        """Return the random state and how far the newest segments were drawn, as plain values."""
        return {"newest": dict(self._newest), "random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: what `state_dict` returned.
        """
        self._newest = dict(state["newest"])
        self._random.bit_generator.state = state["random"]
