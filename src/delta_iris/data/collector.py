"""Playing in real environments, and keeping what happens."""

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
from delta_iris.data.segment import to_float
from delta_iris.errors import UserError

__all__ = ["Collector", "Episode", "Policy"]

State = tuple[Tensor, Tensor]


class Policy(Protocol):
    """What plays: an `ActorCritic`'s owner."""

    burn_in: int
    network: Any

    @property
    def device(self) -> Any:
        """Where it computes."""

    def act(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Actions (N,) for frames (N, 3, H, W), and the state after them."""


@dataclass(frozen=True)
class Episode:
    """A finished episode: its return, its length in steps, and how often each achievement was done, where told."""

    return_: float
    length: int
    achievements: dict[str, int] | None


class Collector:
    """Steps vectorized environments with a policy and appends every step to a replay.

    Args:
        envs: the environments, resetting themselves in the step that ends an episode. Each step must give a new array
            of frames, as `AsyncVectorEnv` does unless told otherwise: they are kept, not copied.
        replay: takes the steps.
        burn_in: frames that a policy's memory is warmed on when it takes over in the middle of an episode.
        seed: of the environments (each gets its own: seed, seed + 1, …) and of random actions.
    """

    def __init__(self, envs: AsyncVectorEnv, replay: Replay, burn_in: int, seed: int) -> None:
        self.envs, self.replay, self.seed = envs, replay, seed
        self.random = np.random.default_rng(seed)
        self._frames: NDArray[np.uint8] | None = None
        self._recent: deque[NDArray[np.uint8]] = deque(maxlen=burn_in)
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
        progress: Callable[[int, list[Episode]], bool] = lambda frames, episodes: False,
    ) -> list[Episode]:
        """Play on from where the environments are.

        Args:
            policy: chooses the actions; uniformly random ones where None.
            steps: steps of each environment; None to play until every environment has `episodes_per_env`.
            epsilon: probability of a random action instead of the policy's.
            episodes_per_env: episodes to keep of each environment. As many of each: taking the first to finish would
                favour short ones.
            progress: called after each step with the frames kept and the episodes finished in it; playing stops early
                when it returns true.

        Returns:
            the episodes that ended.

        Raises:
            UserError: where an environment's process died.
        """
        num_envs = self.envs.num_envs
        if self._frames is None:
            self._frames = self._talk(self.envs.reset, seed=self.seed)[0]
        state = None if policy is None else self._warm(policy)
        quota = np.full(num_envs, np.iinfo(np.int64).max if episodes_per_env is None else episodes_per_env)
        finished: list[Episode] = []
        done_steps = 0
        while (steps is None or done_steps < steps) and quota.any():
            actions, state = self._choose(policy, state, epsilon)
            next_frames, rewards, terminated, truncated, infos = self._talk(self.envs.step, actions)
            kept = quota > 0
            ended = terminated | truncated
            # Lists first: taking numbers out of an array one by one is many times slower.
            steps_taken = zip(*(x.tolist() for x in (actions, rewards, terminated, truncated)), strict=True)
            for i, step in enumerate(steps_taken):
                if kept[i]:
                    self.replay.append(i, self._frames[i], *step)
            self._returns += rewards
            self._lengths += 1
            new = [
                Episode(float(self._returns[i]), int(self._lengths[i]), _achievements(infos, int(i)))
                for i in np.flatnonzero(ended & kept)
            ]
            self._recent.append(self._frames)
            self._returns[ended] = 0
            self._lengths[ended] = 0
            if state is not None and ended.any():
                keep = torch.from_numpy(~ended).to(state[0].device).view(1, -1, 1)
                state = (state[0] * keep, state[1] * keep)
            self._frames = next_frames
            quota -= ended & kept
            finished += new
            done_steps += 1
            if progress(int(kept.sum()), new):
                break
        self.replay.flush()
        return finished

    def _choose(
        self, policy: Policy | None, state: State | None, epsilon: float
    ) -> tuple[NDArray[np.int64], State | None]:
        num_envs = self.envs.num_envs
        num_actions = int(self.envs.single_action_space.n)  # type: ignore[attr-defined]
        if policy is None or state is None:
            return self.random.integers(num_actions, size=num_envs), None
        assert self._frames is not None
        chosen, state = policy.act(_to_tensor(self._frames, policy.device), state)
        actions = chosen.cpu().numpy()
        if epsilon > 0:
            explore = self.random.random(num_envs) < epsilon
            actions = np.where(explore, self.random.integers(num_actions, size=num_envs), actions)
        return actions, state

    def _warm(self, policy: Policy) -> State:
        """The policy's memory of the episodes under way: their last frames before the present one."""
        assert self._frames is not None
        burn_in = self._recent.maxlen or 0
        recent = np.zeros((len(self._frames), burn_in, *self._frames.shape[1:]), np.uint8)
        for age, frames_then in enumerate(reversed(self._recent), start=1):
            recent[:, -age] = frames_then
        valid = torch.from_numpy(np.arange(burn_in, 0, -1) <= self._lengths[:, None]).to(policy.device)
        frames = torch.from_numpy(recent).permute(0, 1, 4, 2, 3).to(policy.device)
        state: State = policy.network.burn_in(to_float(frames), valid)
        return state

    def _talk(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (EOFError, BrokenPipeError, ConnectionError) as error:
            # A broken pipe may be noticed before the process that broke it has ended altogether.
            ending = wait([process.sentinel for process in self.envs.processes], timeout=5)
            for process in self.envs.processes:
                if process.sentinel in ending:
                    process.join(timeout=5)
            codes = {i: p.exitcode for i, p in enumerate(self.envs.processes) if not p.is_alive()}
            raise UserError(
                f"an environment's process died (environment: exit code {codes or 'unknown'}), often for want of "
                "memory; what was collected before the last checkpoint is safe: resume with --ckpt_path, with fewer "
                "data.num_envs if memory is short"
            ) from error


def _to_tensor(frames: NDArray[np.uint8], device: Any) -> Tensor:
    return to_float(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2))


def _achievements(infos: dict[str, Any], index: int) -> dict[str, int] | None:
    """What the environment `index` tells of achievements at its episode's end; gymnasium batches infos by key."""
    told = infos.get("final_info", {}).get("achievements")
    if told is None:
        return None
    return {name: int(counts[index]) for name, counts in told.items() if not name.startswith("_")}
