"""Acting in real environments, and appending every step to a replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.replay import Replay
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.errors import UserError

__all__ = ["Collector", "EpisodeStats", "Policy"]


class Policy(Protocol):
    """How an agent acts in real environments. What it remembers is its own affair.

    Attributes:
        burn_in: frames before the present one that it takes over an episode with.
    """

    burn_in: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def initial_memory(self, batch: int) -> Any:
        """The memory of `batch` episodes before their first frame."""

    def observe(self, segment: SegmentBatch) -> Any:
        """The memory after the steps of a segment, which may begin with padding."""

    def act(self, frames: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Actions (N,) int64 for frames (N, 3, H, W) in [0, 1], and the memory after them."""

    def reset_where(self, memory: Any, ended: Tensor) -> Any:
        """Clear the memory of the episodes that `ended` (N,) bool."""


@dataclass(frozen=True)
class EpisodeStats:
    """Statistics of a finished episode.

    Attributes:
        return_: sum of its rewards.
        length: its steps.
        achievements: how often each achievement was unlocked, or None if the environment has none.
    """

    return_: float
    length: int
    achievements: dict[str, int] | None


class Collector:
    """Steps vectorized environments with a policy and appends every step to a replay.

    Args:
        envs: environments that reset themselves in the step that ends an episode. Each step must return a new array of
            frames, as `AsyncVectorEnv` does by default: they are kept, not copied.
        replay: takes the steps.
        burn_in: steps that a policy's memory is warmed up on when it takes over in the middle of an episode.
        seed: of the environments (seed, seed + 1, …) and of random actions.
    """

    def __init__(self, envs: AsyncVectorEnv, replay: Replay, burn_in: int, seed: int) -> None:
        self.envs, self.replay, self.seed = envs, replay, seed
        self.random = np.random.default_rng(seed)
        self._frames: NDArray[np.uint8] | None = None
        # Frames and actions of the last steps.
        self._recent: deque[tuple[NDArray[np.uint8], NDArray[np.int64]]] = deque(maxlen=burn_in)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)

    @torch.no_grad()
    def collect(
        self,
        policy: Policy | None,
        steps: int | None = None,
        *,
        epsilon: float = 0.0,
        episodes_per_env: int | None = None,
        progress: Callable[[int, list[EpisodeStats]], bool] = lambda frames, episodes: False,
    ) -> list[EpisodeStats]:
        """Continue from where the environments are.

        Args:
            policy: chooses the actions; uniformly random ones where None.
            steps: steps of each environment; None to continue until every environment has `episodes_per_env`.
            epsilon: probability of a random action instead of the policy's.
            episodes_per_env: episodes to keep of each environment. Each contributes the same number, because taking
                the first to finish would favour short episodes.
            progress: called after each step with the number of frames kept and the episodes finished in it; collection
                stops early when it returns true.

        Returns:
            the episodes that ended.

        Raises:
            UserError: if an environment's process died.
        """
        num_envs = self.envs.num_envs
        if self._frames is None:
            self._frames = self._call_envs(self.envs.reset, seed=self.seed)[0]
        memory = None if policy is None else self._burn_in(policy)
        quota = np.full(num_envs, np.iinfo(np.int64).max if episodes_per_env is None else episodes_per_env)
        finished: list[EpisodeStats] = []
        done_steps = 0
        while (steps is None or done_steps < steps) and quota.any():
            actions, memory = self._choose(policy, memory, epsilon)
            next_frames, rewards, terminated, truncated, infos = self._call_envs(self.envs.step, actions)
            kept = quota > 0
            ended = terminated | truncated
            # Lists first: taking numbers out of an array one by one is many times slower.
            taken = zip(*(x.tolist() for x in (actions, rewards, terminated, truncated)), strict=True)
            for i, step in enumerate(taken):
                if kept[i]:
                    self.replay.append(i, self._frames[i], *step)
            self._returns += rewards
            self._lengths += 1
            new = [
                EpisodeStats(float(self._returns[i]), int(self._lengths[i]), _achievements(infos, int(i)))
                for i in np.flatnonzero(ended & kept)
            ]
            self._recent.append((self._frames, actions))
            self._returns[ended] = 0
            self._lengths[ended] = 0
            if policy is not None and ended.any():
                memory = policy.reset_where(memory, torch.from_numpy(ended).to(policy.device))
            self._frames = next_frames
            quota -= ended & kept
            finished += new
            done_steps += 1
            if progress(int(kept.sum()), new):
                break
        self.replay.flush()
        return finished

    def _choose(self, policy: Policy | None, memory: Any, epsilon: float) -> tuple[NDArray[np.int64], Any]:
        num_envs = self.envs.num_envs
        num_actions = int(self.envs.single_action_space.n)  # type: ignore[attr-defined]
        if policy is None:
            return self.random.integers(num_actions, size=num_envs), None
        assert self._frames is not None
        frames = to_float(torch.from_numpy(self._frames).to(policy.device).permute(0, 3, 1, 2))
        chosen, memory = policy.act(frames, memory)
        actions = chosen.cpu().numpy()
        if epsilon > 0:
            explore = self.random.random(num_envs) < epsilon
            actions = np.where(explore, self.random.integers(num_actions, size=num_envs), actions)
        return actions, memory

    def _burn_in(self, policy: Policy) -> Any:
        """The policy's memory of the episodes under way: their last steps before the present frame."""
        assert self._frames is not None
        num_envs, burn_in = len(self._frames), self._recent.maxlen or 0
        frames = np.zeros((num_envs, burn_in, *self._frames.shape[1:]), np.uint8)
        actions = np.zeros((num_envs, burn_in), np.int64)
        for age, (past_frames, past_actions) in enumerate(reversed(self._recent), start=1):
            frames[:, -age], actions[:, -age] = past_frames, past_actions
        ages = np.arange(burn_in, 0, -1)
        mask, is_first = ages <= self._lengths[:, None], ages == self._lengths[:, None]
        segment = SegmentBatch(
            torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.zeros(num_envs, burn_in),
            torch.zeros(num_envs, burn_in, dtype=torch.int64),
            torch.from_numpy(mask),
            torch.from_numpy(is_first),
        )
        return policy.observe(SegmentBatch(*(field.to(policy.device) for field in segment)))

    def _call_envs(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (EOFError, BrokenPipeError, ConnectionError) as error:
            # A broken pipe may be noticed before the process that broke it has ended.
            ending = wait([process.sentinel for process in self.envs.processes], timeout=5)
            for process in self.envs.processes:
                if process.sentinel in ending:
                    process.join(timeout=5)
            codes = {i: p.exitcode for i, p in enumerate(self.envs.processes) if not p.is_alive()}
            raise UserError(
                f"an environment's process died (environment: exit code {codes or 'unknown'}), often for lack of "
                "memory; what was collected before the last checkpoint is safe: resume with --ckpt_path, and with "
                "fewer data.num_envs if memory is short"
            ) from error


def _achievements(infos: dict[str, Any], index: int) -> dict[str, int] | None:
    """Achievements of the environment `index` at its episode's end; gymnasium batches infos by key."""
    counts = infos.get("final_info", {}).get("achievements")
    if counts is None:
        return None
    return {name: int(values[index]) for name, values in counts.items() if not name.startswith("_")}
