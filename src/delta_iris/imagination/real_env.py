"""Real environments behind the tensor protocol, so that the same rollout runs in them."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float

__all__ = ["RealEnv"]


class RealEnv:
    """B real environments that continue from where they are; see `TensorEnv`.

    Args:
        envs: vectorized environments that reset themselves in the step that ends an episode
            (`AutoresetMode.SAME_STEP`), as `make_vector_env` makes them.
        burn_in: steps before the present one that `segment` holds.
        device: of the tensors.
        seed: of the environments' first episodes.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], burn_in: int, device: torch.device | str, seed: int) -> None:
        self.envs, self.device = envs, torch.device(device)
        first = np.asarray(envs.reset(seed=seed)[0])
        # Frames, and the actions chosen at them; the present frame is the last.
        zeros, no_action = np.zeros_like(first), np.zeros(envs.num_envs, np.int64)
        self._frames: deque[NDArray[np.uint8]] = deque([*([zeros] * burn_in), first], burn_in + 1)
        self._actions: deque[NDArray[np.int64]] = deque([no_action] * burn_in, burn_in)
        self._ages = np.zeros(envs.num_envs, np.int64)

    def segment(self) -> SegmentBatch:
        """The last steps of the episodes under way, with padding before an episode's start; rewards are left out."""
        length = len(self._frames)
        distance = np.arange(length - 1, -1, -1)
        mask, is_first = distance <= self._ages[:, None], distance == self._ages[:, None]
        actions = np.stack([*self._actions, np.zeros_like(self._ages)], 1)
        fields = (
            torch.from_numpy(np.stack(self._frames, 1)).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.zeros(mask.shape),
            torch.zeros(mask.shape, dtype=torch.int64),
            torch.from_numpy(mask),
            torch.from_numpy(is_first),
        )
        return SegmentBatch(*(field.to(self.device) for field in fields))

    def reset(self, segment: SegmentBatch) -> Tensor:
        """The frames of `segment()`, from whose last one the environments continue: (B, T, 3, H, W) floats."""
        return to_float(segment.frames)

    def prefetch(self) -> None:
        """Nothing can be computed ahead."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TensorEnv.step`. An episode that ends by a time limit ends like any other."""
        chosen = action.cpu().numpy()
        frames, rewards, terminated, truncated, _ = self.envs.step(chosen)
        ended = terminated | truncated
        self._frames.append(np.asarray(frames))
        self._actions.append(chosen)
        self._ages = np.where(ended, 0, self._ages + 1)
        following = to_float(torch.from_numpy(np.asarray(frames)).to(self.device).permute(0, 3, 1, 2))
        return (
            following,
            torch.from_numpy(rewards).float().to(self.device),
            torch.from_numpy(ended).long().to(self.device),
        )
