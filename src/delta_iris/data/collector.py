"""Acting in real environments, and appending every step to a replay."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.replay import Replay
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.errors import Abandoned

if TYPE_CHECKING:
    from delta_iris.envs.pool import EnvPool

__all__ = ["Collector", "EpisodeStats", "Policy"]

_logger = logging.getLogger(__name__)


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

    def with_actions(self, memory: Any, actions: Tensor) -> Any:
        """The memory after `act` if the actions (N,) int64 are taken, some of which may not be those chosen."""

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
        envs: environments that reset themselves in the step that ends an episode.
        replay: takes the steps.
        burn_in: steps that a policy's memory is warmed up on when it takes over in the middle of an episode.
        seed: of the environments (seed, seed + 1, …) and of random actions.

    Attributes:
        abandoned: whether `collect` returned because `should_stop` did. What it collected is incomplete then: go back
            to the state before it, with new environments.
    """

    def __init__(self, envs: EnvPool, replay: Replay, burn_in: int, seed: int) -> None:
        self.envs, self.replay, self.seed = envs, replay, seed
        self.random = np.random.default_rng(seed)
        self.abandoned = False
        self._frames: NDArray[np.uint8] | None = None
        # Frames and actions of the last steps.
        self._recent: deque[tuple[NDArray[np.uint8], NDArray[np.int64]]] = deque(maxlen=burn_in)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        # Names of all achievements that any episode told of, in order.
        self._achievements: dict[str, int] = {}

    @property
    def replaced(self) -> int:
        """Number of environments that died, hung or raised an exception, and were replaced."""
        return self.envs.replaced

    @torch.no_grad()
    def collect(
        self,
        policy: Policy | None,
        steps: int | None = None,
        *,
        epsilon: float = 0.0,
        episodes_per_env: int | None = None,
        max_episode_steps: int | None = None,
        progress: Callable[[int, list[EpisodeStats]], bool] = lambda frames, episodes: False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[EpisodeStats]:
        """Continue from where the environments are.

        The step in which an environment failed is not stored: its episode is truncated after the step before, and is
        not among the episodes returned.

        Args:
            policy: chooses the actions; uniformly random ones where None.
            steps: steps of each environment; None to continue until every environment has `episodes_per_env`.
            epsilon: probability of a random action instead of the policy's.
            episodes_per_env: episodes to keep of each environment. Each contributes the same number, because taking
                the first to finish would favour short episodes.
            max_episode_steps: steps after which an episode is truncated, for environments whose episodes may never
                end; None for no limit.
            progress: called after each step with the number of frames kept and the episodes finished in it; collection
                stops early when it returns true.
            should_stop: asked while an environment keeps the others waiting; `abandoned` is set when it returns true.

        Returns:
            the episodes that ended; if `abandoned` is set, those of an incomplete collection.

        Raises:
            UserError: if too many environments fail in a row, or one returns something that cannot be used.
        """
        finished: list[EpisodeStats] = []
        self.envs.should_stop = should_stop
        try:
            self._collect(finished, policy, steps, epsilon, episodes_per_env, max_episode_steps, progress)
        except Abandoned:
            self.abandoned = True
            return finished
        finally:
            self.envs.should_stop = lambda: False
        self.replay.flush()
        # An achievement that was told later than at the first episode was not unlocked before.
        return [self._complete(episode) for episode in finished]

    def state_dict(self) -> dict[str, Any]:
        """Return all that collection continues from, as plain values and tensors; call it between collections."""
        state: dict[str, Any] = {"seed": self.seed, "random": self.random.bit_generator.state, "begun": False}
        if self._frames is None:
            return state
        recent = [(torch.from_numpy(frames), torch.from_numpy(actions)) for frames, actions in self._recent]
        return state | {
            "begun": True,
            "frames": torch.from_numpy(self._frames),
            "recent": recent,
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "achievements": list(self._achievements),
            "environment_seed": self.envs.seed,
            "generations": list(self.envs.generations),
            "replaced": self.envs.replaced,
            "environments": self.envs.get_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; the replay must have been taken back to that moment before.

        Environments that cannot be restored start anew, and their open episodes are truncated; the log says so.

        Args:
            state: of a collector with as many environments.

        Raises:
            UserError: if too many environments fail, or one returns something that cannot be used.
        """
        self.seed, self.abandoned = state["seed"], False
        self.random.bit_generator.state = state["random"]
        self._recent.clear()
        self._returns[:], self._lengths[:] = 0, 0
        self._frames, self._achievements = None, {}
        if not state["begun"]:
            return
        self._recent.extend((frames.numpy(), actions.numpy()) for frames, actions in state["recent"])
        self._achievements = dict.fromkeys(state["achievements"], 0)
        self.envs.seed, self.envs.replaced = state["environment_seed"], state["replaced"]
        self.envs.generations[:] = state["generations"]
        restored = np.array(self.envs.set_states(state["environments"]))
        self._returns[:] = np.where(restored, state["returns"].numpy(), 0)
        self._lengths[:] = np.where(restored, state["lengths"].numpy(), 0)
        self._frames = self.envs.frames
        for i in np.flatnonzero(~restored).tolist():
            self.replay.truncate(i, state["frames"][i].numpy())
        if not restored.all():
            _logger.warning(
                "%d of %d environments %r start new episodes, because their states could not be restored",
                int((~restored).sum()),
                len(restored),
                self.envs.environment,
            )

    def _collect(
        self,
        finished: list[EpisodeStats],
        policy: Policy | None,
        steps: int | None,
        epsilon: float,
        episodes_per_env: int | None,
        max_episode_steps: int | None,
        progress: Callable[[int, list[EpisodeStats]], bool],
    ) -> None:
        num_envs = self.envs.num_envs
        if self._frames is None:
            self._frames = self.envs.reset(seed=self.seed)[0]
        memory = None if policy is None else self._burn_in(policy)
        quota = np.full(num_envs, np.iinfo(np.int64).max if episodes_per_env is None else episodes_per_env)
        nothing: list[Any] = [None] * num_envs
        done_steps = 0
        while (steps is None or done_steps < steps) and quota.any():
            actions, memory = self._choose(policy, memory, epsilon)
            next_frames, rewards, terminated, truncated, infos = self.envs.step(actions)
            final, replaced, achievements = (
                infos.get(key, nothing) for key in ("final_obs", "replaced", "achievements")
            )
            failed = np.array([reason is not None for reason in replaced])
            self._returns += rewards
            self._lengths += 1
            if max_episode_steps is not None:
                # One list for all: it is written to only where an episode is cut.
                final, achievements = list(final), list(achievements)
                for i in np.flatnonzero((self._lengths >= max_episode_steps) & ~terminated & ~truncated).tolist():
                    truncated[i], final[i] = True, next_frames[i]
                    _, achievements[i] = self.envs.reset_one(i)
                    next_frames = self.envs.frames
            kept = (quota > 0) & ~failed
            ended = terminated | truncated
            # Lists first: taking numbers out of an array one by one is many times slower.
            taken = zip(*(x.tolist() for x in (actions, rewards, terminated, truncated)), strict=True)
            for i, (action, reward, terminal, cut) in enumerate(taken):
                if kept[i]:
                    self.replay.append(i, self._frames[i], action, reward, terminal, cut, final[i])
                elif failed[i]:
                    self.replay.truncate(i, self._frames[i])
            new = [
                self._finish(float(self._returns[i]), int(self._lengths[i]), achievements[i])
                for i in np.flatnonzero(ended & kept).tolist()
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

    def _finish(self, return_: float, length: int, achievements: dict[str, int] | None) -> EpisodeStats:
        for name in achievements or ():
            self._achievements.setdefault(name, 0)
        return self._complete(EpisodeStats(return_, length, achievements))

    def _complete(self, episode: EpisodeStats) -> EpisodeStats:
        """Add the achievements that the environment tells of only once they are unlocked."""
        if not self._achievements:
            return episode
        return replace(episode, achievements=self._achievements | (episode.achievements or {}))

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
            memory = policy.with_actions(memory, torch.from_numpy(actions).to(policy.device))
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
