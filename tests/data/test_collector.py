"""The collector on a small environment whose frames tell when they were made."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from delta_iris.data.collector import Collector
from delta_iris.data.replay import Replay, ReplayReader

SHAPE = (8, 8, 3)


class CountingEnv(gym.Env):
    """Frames count on over all episodes; these are 1 to 12 steps long."""

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(3)
    count = 0

    def _frame(self) -> np.ndarray:
        self.count += 1
        return np.full(SHAPE, self.count, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 13))
        return self._frame(), {}

    def step(self, action):
        self.left -= 1
        return self._frame(), float(action), self.left == 0, False, {}


class Recorder:
    """A policy that keeps what it is shown."""

    burn_in, device = 5, torch.device("cpu")

    def __init__(self) -> None:
        self.network = type("Network", (), {"burn_in": self._burn_in})

    def _burn_in(self, frames, valid):
        self.warmed = (255 * frames[:, :, 0, 0, 0]).round().int(), valid
        self.states = []
        return torch.ones(1, len(frames), 2), torch.ones(1, len(frames), 2)

    def act(self, frames, state):
        self.shown = (255 * frames[:, 0, 0, 0]).round().int()
        self.states.append(state[0][0, :, 0].tolist())
        return torch.zeros(len(frames), dtype=torch.int64), (state[0] + 1, state[1] + 1)


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    envs = SyncVectorEnv([CountingEnv] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    return Collector(envs, Replay(tmp_path, SHAPE), burn_in=5, seed=0)


def under_way(reader: ReplayReader, environment: int, now: int) -> list[int]:
    """The frames, as told by their counts, of the episode that the present frame belongs to."""
    last = [e for e in range(reader.num_episodes) if reader.environment(e) == environment][-1]
    steps = reader.read(last, 0, reader.length(last))
    if steps.terminated[-1]:
        return []
    assert now == steps.frames[-1, 0, 0, 0] + 1
    return steps.frames[:, 0, 0, 0].tolist()


def test_a_policy_is_warmed_on_the_last_frames_of_the_episodes_under_way(collector: Collector) -> None:
    policy, lengths = Recorder(), set()
    for steps in (1, 1, 2, 3, 1, 4, 9, 1, 1, 2, 7, 1, 3):
        collector.collect(None, steps)
        reader = ReplayReader(collector.replay.folder, SHAPE)
        collector.collect(policy, 1)
        frames, valid = policy.warmed
        for i in range(3):
            expected = under_way(reader, i, int(policy.shown[i]))[-5:]
            lengths.add(len(expected))
            assert valid[i].tolist() == [False] * (5 - len(expected)) + [True] * len(expected)
            assert frames[i, 5 - len(expected) :].tolist() == expected
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_frames_in_the_replay_are_those_that_were_shown(collector: Collector) -> None:
    """They are kept by reference: none may be overwritten by a later one. Rewards tell the actions."""
    episodes = collector.collect(None, 80)
    reader = ReplayReader(collector.replay.folder, SHAPE)
    for environment in range(3):
        of_it = [e for e in range(reader.num_episodes) if reader.environment(e) == environment]
        steps = [reader.read(e, 0, reader.length(e)) for e in of_it]
        # The frame after an episode's last step is nobody's: the count skips it.
        counts = [int(c) for episode in steps for c in episode.frames[:, 0, 0, 0]]
        ends = np.cumsum([0, *(int(t) for episode in steps for t in episode.terminated)])[:-1]
        assert counts == [1 + t + end for t, end in enumerate(ends)]
        assert all((episode.frames == episode.frames[:, :1, :1, :1]).all() for episode in steps)
        assert all((episode.actions == episode.rewards).all() for episode in steps)
    ended = [e for e in range(reader.num_episodes) if reader.read(e, 0, reader.length(e)).terminated[-1]]
    assert sorted(e.length for e in episodes) == sorted(reader.length(e) for e in ended)


def test_a_policy_forgets_when_an_episode_ends(collector: Collector) -> None:
    policy = Recorder()
    collector.collect(policy, 30)
    reader = ReplayReader(collector.replay.folder, SHAPE)
    for environment in range(3):
        of_it = [e for e in range(reader.num_episodes) if reader.environment(e) == environment]
        # The first episode begins with the warmed state (1), the others with none (0).
        expected = [t + (k == 0) for k, e in enumerate(of_it) for t in range(reader.length(e))]
        assert [state[environment] for state in policy.states] == expected
