"""Tests of collecting experience, on an environment whose frames tell when they were made, and in Crafter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.collector import Collector, EpisodeStats, Policy
from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import Steps
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch
from delta_iris.envs import ACHIEVEMENTS, CrafterEnv
from delta_iris.envs.vector import make_vector_env

Frame = NDArray[np.uint8]

SHAPE = (8, 8, 3)
CRAFTER = "delta_iris/Crafter-v1"


class CountingEnv(gym.Env[Frame, np.int64]):
    """Frames show a count that continues over all episodes, which are 1 to 12 steps long. The action is the reward."""

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(3)
    count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 13))
        return self._frame(), {}

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._frame(), float(action), self.left == 0, False, {}

    def _frame(self) -> Frame:
        self.count += 1
        return np.full(SHAPE, self.count % 256, np.uint8)


gym.register("Counting-v0", entry_point=f"{__name__}:CountingEnv", disable_env_checker=True)


class RecorderMemory(NamedTuple):
    """Steps since the policy took over, plus 1; 0 in episodes that began later. One number for each environment."""

    age: Tensor


class Recorder:
    """A policy that records what it is given, and takes actions 0, 1 and 2 in turn."""

    burn_in, device = 5, torch.device("cpu")

    def __init__(self) -> None:
        self.observed: SegmentBatch
        self.shown: list[list[int]] = []
        self.ages: list[list[int]] = []
        self.actions: list[list[int]] = []
        self.taken: list[list[int]] = []

    def initial_memory(self, batch: int) -> RecorderMemory:
        """See `Policy.initial_memory`."""
        return RecorderMemory(torch.zeros(batch, dtype=torch.int64))

    def observe(self, segment: SegmentBatch) -> RecorderMemory:
        """See `Policy.observe`."""
        self.observed = segment
        return RecorderMemory(torch.ones(len(segment.mask), dtype=torch.int64))

    def act(self, frames: Tensor, memory: RecorderMemory) -> tuple[Tensor, RecorderMemory]:
        """See `Policy.act`."""
        self.shown.append((255 * frames[:, 0, 0, 0]).round().int().tolist())
        self.ages.append(memory.age.tolist())
        actions = (torch.arange(len(frames)) + len(self.shown)) % 3
        self.actions.append(actions.tolist())
        return actions, RecorderMemory(memory.age + 1)

    def with_actions(self, memory: RecorderMemory, actions: Tensor) -> RecorderMemory:
        """See `Policy.with_actions`."""
        self.taken.append(actions.tolist())
        return memory

    def reset_where(self, memory: RecorderMemory, ended: Tensor) -> RecorderMemory:
        """See `Policy.reset_where`."""
        return RecorderMemory(torch.where(ended, 0, memory.age))


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    envs = make_vector_env("Counting-v0", {}, 3)
    yield Collector(envs, Replay(tmp_path, SHAPE), burn_in=5, seed=0)
    envs.close()


def episodes_of(collector: Collector, environment: int) -> list[Steps]:
    """The episodes of an environment in the replay."""
    reader = ReplayReader(collector.replay.folder, SHAPE)
    numbers = [e for e in range(reader.num_episodes) if reader.environment(e) == environment]
    return [reader.read(e, 0, reader.length(e)) for e in numbers]


def counts_of(frames: NDArray[np.uint8] | Tensor) -> list[int]:
    """The counts that frames of shape (T, H, W, 3) show."""
    return [int(count) for count in frames[:, 0, 0, 0]]


def last_unfinished(collector: Collector, environment: int) -> tuple[list[int], list[int]]:
    """Counts and actions of the episode that the present frame continues; nothing if it is an episode's first."""
    steps = episodes_of(collector, environment)[-1]
    return ([], []) if steps.terminated[-1] else (counts_of(steps.frames), steps.actions.tolist())


def test_a_policy_is_told_the_actions_that_were_taken_in_place_of_its_own(collector: Collector) -> None:
    recorder = Recorder()
    collector.collect(recorder, 12, epsilon=0.5)
    stored = [np.concatenate([steps.actions for steps in episodes_of(collector, i)]).tolist() for i in range(3)]
    assert [list(row) for row in zip(*recorder.taken, strict=True)] == stored
    assert recorder.taken != recorder.actions


def test_a_policy_observes_the_last_steps_of_unfinished_episodes(collector: Collector) -> None:
    lengths = set()
    for steps in (1, 1, 2, 3, 1, 4, 9, 1, 1, 2, 7, 1, 3):
        collector.collect(None, steps)
        expected = [last_unfinished(collector, i) for i in range(3)]
        recorder = Recorder()
        policy: Policy = recorder
        collector.collect(policy, 1)
        observed = recorder.observed
        assert observed.frames.shape == (3, 5, 3, 8, 8)
        assert observed.frames.dtype == torch.uint8
        for i, (counts, actions) in enumerate(expected):
            length = min(5, len(counts))
            lengths.add(length)
            if counts:
                assert recorder.shown[0][i] == counts[-1] + 1
            assert observed.mask[i].tolist() == [False] * (5 - length) + [True] * length
            assert counts_of(observed.frames[i])[5 - length :] == counts[len(counts) - length :]
            assert observed.actions[i, 5 - length :].tolist() == actions[len(counts) - length :]
            # The first step is marked only if it is among the last five.
            assert observed.is_first[i].tolist() == [0 < len(counts) == 5 - t for t in range(5)]
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_frames_in_the_replay_are_those_that_were_shown(collector: Collector) -> None:
    """They are kept by reference, so none may be overwritten by a later one. Rewards show the actions."""
    finished = collector.collect(None, 80)
    lengths = []
    for environment in range(3):
        episodes = episodes_of(collector, environment)
        # The frame after an episode's last step is not stored, so the count skips it.
        counts = [count for steps in episodes for count in counts_of(steps.frames)]
        ends = np.cumsum([0, *(int(t) for steps in episodes for t in steps.terminated)])[:-1]
        assert counts == [1 + t + end for t, end in enumerate(ends)]
        assert all((steps.frames == steps.frames[:, :1, :1, :1]).all() for steps in episodes)
        assert all((steps.actions == steps.rewards).all() for steps in episodes)
        lengths += [len(steps.rewards) for steps in episodes if steps.terminated[-1]]
    assert sorted(episode.length for episode in finished) == sorted(lengths)


def test_the_replay_holds_the_frames_and_actions_of_the_policy(collector: Collector) -> None:
    policy = Recorder()
    collector.collect(policy, 30)
    for environment in range(3):
        episodes = episodes_of(collector, environment)
        counts = [count for steps in episodes for count in counts_of(steps.frames)]
        assert counts == [shown[environment] for shown in policy.shown]
        actions = [action for steps in episodes for action in steps.actions.tolist()]
        assert actions == [taken[environment] for taken in policy.actions]


def test_memory_is_reset_where_an_episode_ends(collector: Collector) -> None:
    policy = Recorder()
    collector.collect(policy, 30)
    for environment in range(3):
        # The first episode starts from what was observed (1), the others from nothing (0).
        lengths = [len(steps.rewards) for steps in episodes_of(collector, environment)]
        expected = [t + (index == 0) for index, length in enumerate(lengths) for t in range(length)]
        assert [ages[environment] for ages in policy.ages] == expected


def test_epsilon_is_the_probability_of_a_random_action(collector: Collector) -> None:
    policy = Recorder()
    collector.collect(policy, 800, epsilon=0.3)
    taken = [
        [action for steps in episodes_of(collector, environment) for action in steps.actions.tolist()]
        for environment in range(3)
    ]
    changed = np.array(policy.actions) != np.array(taken).T
    # A random action is another one in two of three cases. Four standard deviations of a frequency of 2,400.
    assert changed.mean() == pytest.approx(0.3 * 2 / 3, abs=4 * (0.2 * 0.8 / 2400) ** 0.5)


def test_progress_is_reported_and_may_stop_the_collection(collector: Collector) -> None:
    reports: list[tuple[int, list[EpisodeStats]]] = []

    def progress(frames: int, episodes: list[EpisodeStats]) -> bool:
        reports.append((frames, episodes))
        return len(reports) == 20

    finished = collector.collect(None, 50, progress=progress)
    assert [frames for frames, _ in reports] == [3] * 20
    assert [episode for _, episodes in reports for episode in episodes] == finished
    assert len(finished) > 3
    assert collector.replay.num_frames == 60


def test_collected_episodes_can_be_replayed_in_crafter(tmp_path: Path) -> None:
    """The recorded actions in a new environment give the recorded frames, rewards and ends, without extra steps."""
    seed, num_envs = 11, 2
    envs = make_vector_env(CRAFTER, {"length": 180}, num_envs)
    replay = Replay(tmp_path, (64, 64, 3))
    collector = Collector(envs, replay, burn_in=5, seed=seed)
    finished = collector.collect(None, 250) + collector.collect(None, 200)
    envs.close()
    reader = ReplayReader(tmp_path, (64, 64, 3))
    assert replay.num_frames == 450 * num_envs
    returns, ends = [], []
    for environment in range(num_envs):
        env = CrafterEnv(length=180)
        episodes = [e for e in range(reader.num_episodes) if reader.environment(e) == environment]
        assert len(episodes) > 2
        for index, episode in enumerate(episodes):
            frame, _ = env.reset(seed=seed + environment) if index == 0 else env.reset()
            steps = reader.read(episode, 0, reader.length(episode))
            for t, action in enumerate(steps.actions):
                np.testing.assert_array_equal(frame, steps.frames[t])
                frame, reward, terminated, truncated, _ = env.step(action)
                assert (np.float32(reward), terminated, truncated) == (
                    steps.rewards[t],
                    steps.terminated[t],
                    steps.truncated[t],
                )
            if terminated or truncated:
                returns.append(round(float(steps.rewards.astype(np.float64).sum()), 4))
                ends.append(bool(truncated))
            else:
                assert index == len(episodes) - 1
    assert sorted(returns) == sorted(round(e.return_, 4) for e in finished)
    assert any(ends)
    assert not all(ends)


def test_every_environment_contributes_the_same_number_of_episodes(tmp_path: Path) -> None:
    envs = make_vector_env(CRAFTER, {"length": 60}, 3)
    replay = Replay(tmp_path, (64, 64, 3))
    episodes = Collector(envs, replay, burn_in=5, seed=0).collect(None, episodes_per_env=2)
    envs.close()
    assert len(episodes) == 6
    reader = ReplayReader(tmp_path, (64, 64, 3))
    assert sorted(reader.environment(e) for e in range(reader.num_episodes)) == [0, 0, 1, 1, 2, 2]
    assert all(set(episode.achievements or ()) == set(ACHIEVEMENTS) for episode in episodes)
    assert sum(episode.length for episode in episodes) == replay.num_frames


@pytest.mark.parametrize("before", [0, 7, 40])
def test_a_restored_collector_continues_to_the_bit(tmp_path: Path, before: int) -> None:
    def make(name: str) -> Collector:
        envs = make_vector_env("delta_iris/Catch-v0", {}, 2)
        return Collector(envs, Replay(tmp_path / name, (16, 16, 3)), burn_in=5, seed=4)

    first, second = make("first"), make("second")
    if before:
        first.collect(None, before)
        first.collect(Recorder(), 3, epsilon=0.5)
    file = tmp_path / "state.ckpt"
    torch.save(first.state_dict(), file)
    known = first.replay.num_frames // 2
    second.load_state_dict(torch.load(file, weights_only=True))
    policies = Recorder(), Recorder()
    finished = [each.collect(policy, 45, epsilon=0.5) for each, policy in zip((first, second), policies, strict=True)]
    assert finished[0] == finished[1]
    assert policies[0].actions == policies[1].actions
    assert policies[0].ages == policies[1].ages
    for a, b in zip(policies[0].observed, policies[1].observed, strict=True):
        mask = policies[0].observed.mask
        assert torch.equal(a[mask], b[mask])
    for environment in range(2):
        reader_a, reader_b = (
            [
                step
                for e in range(reader.num_episodes)
                if reader.environment(e) == environment
                for step in reader.read(e, 0, reader.length(e)).frames.tolist()
            ]
            for reader in (ReplayReader(each.replay.folder, (16, 16, 3)) for each in (first, second))
        )
        assert reader_a[known:] == reader_b
    first.envs.close()
    second.envs.close()
