"""Collecting in Crafter's vector environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from delta_iris.data.collector import Collector
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.envs import ACHIEVEMENTS, CrafterEnv
from delta_iris.envs.vector import make_vector_env
from delta_iris.errors import UserError


def test_collected_episodes_can_be_replayed(tmp_path: Path) -> None:
    """The recorded actions in a new environment give the recorded frames, rewards and ends, without extra steps."""
    seed, num_envs = 11, 2
    envs = make_vector_env("delta_iris/Crafter-v1", {"length": 180}, num_envs)
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


def test_evaluation_plays_equally_many_episodes_in_each_environment(tmp_path: Path) -> None:
    envs = make_vector_env("delta_iris/Crafter-v1", {"length": 60}, 3)
    replay = Replay(tmp_path, (64, 64, 3))
    episodes = Collector(envs, replay, burn_in=5, seed=0).collect(None, episodes_per_env=2)
    envs.close()
    assert len(episodes) == 6
    reader = ReplayReader(tmp_path, (64, 64, 3))
    assert sorted(reader.environment(e) for e in range(reader.num_episodes)) == [0, 0, 1, 1, 2, 2]
    assert all(set(episode.achievements) == set(ACHIEVEMENTS) for episode in episodes)
    assert sum(episode.length for episode in episodes) == replay.num_frames


def test_a_killed_environment_process_raises(tmp_path: Path) -> None:
    envs = make_vector_env("delta_iris/Crafter-v1", {}, 2)
    replay = Replay(tmp_path, (64, 64, 3))
    collector = Collector(envs, replay, burn_in=5, seed=0)
    collector.collect(None, 20)
    envs.processes[1].kill()
    with pytest.raises(UserError, match=r"process died.*\{1: -9\}.*resume with --ckpt_path"):
        collector.collect(None, 20)
    envs.close(terminate=True)
    assert replay.num_frames == 40
