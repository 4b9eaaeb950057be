"""The rollout in real environments is what the environments did."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import to_float
from delta_iris.envs.make import make_env
from delta_iris.envs.vector import make_vector_env
from delta_iris.imagination.real_env import RealEnv
from delta_iris.imagination.rollout import rollout
from delta_iris.nn.cnn import CNNConfig

BURN_IN, HORIZON, GAMES = 3, 25, 2


def make_games() -> SyncVectorEnv:
    """Games of Catch, whose episodes have 18 steps."""
    return SyncVectorEnv([lambda: make_env("delta_iris/Catch-v0")] * GAMES, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture
def games() -> Iterator[SyncVectorEnv]:
    envs = make_games()
    yield envs
    envs.close()


@pytest.fixture
def actor_critic() -> ActorCritic:
    torch.manual_seed(0)
    cnn = CNNConfig(base_channels=4, channel_mults=(1,), downsample_after=(0, 1), latent_channels=2)
    return ActorCritic((3, 16, 16), 3, lstm_size=8, cnn=cnn, burn_in=BURN_IN, horizon=HORIZON)


def test_a_rollout_is_what_the_environments_did(games: SyncVectorEnv, actor_critic: ActorCritic) -> None:
    env = RealEnv(games, BURN_IN, "cpu", seed=3)
    start = env.segment()
    result = rollout(env, actor_critic, start)
    again = make_games()
    frames, _ = again.reset(seed=3)
    assert torch.equal(result.inputs[:, BURN_IN], to_float(torch.from_numpy(frames).permute(0, 3, 1, 2)))
    for t in range(HORIZON):
        frames, rewards, terminated, truncated, _ = again.step(result.actions[:, t].numpy())
        expected = to_float(torch.from_numpy(np.asarray(frames)).permute(0, 3, 1, 2))
        assert torch.equal(result.inputs[:, BURN_IN + 1 + t], expected)
        assert result.rewards[:, t].tolist() == rewards.tolist()
        assert result.terminated[:, t].tolist() == (terminated | truncated).tolist()
    again.close()
    assert result.terminated.sum() == GAMES


def test_the_next_segment_continues_the_rollout(games: SyncVectorEnv, actor_critic: ActorCritic) -> None:
    env = RealEnv(games, BURN_IN, "cpu", seed=3)
    assert env.segment().mask.tolist() == [[False] * BURN_IN + [True]] * GAMES
    result = rollout(env, actor_critic, env.segment())
    following = env.segment()
    assert torch.equal(to_float(following.frames), result.inputs[:, -BURN_IN - 1 :])
    assert torch.equal(following.actions[:, :-1], result.actions[:, -BURN_IN:])
    # The episodes ended after 18 steps, so that all frames of the segment belong to the present ones.
    assert following.mask.all()
    assert not following.is_first.any()


def test_a_segment_just_after_an_end_holds_the_new_episode_only(games: SyncVectorEnv) -> None:
    env = RealEnv(games, BURN_IN, "cpu", seed=3)
    stay = torch.ones(GAMES, dtype=torch.int64)
    for _ in range(18):
        env.step(stay)
    assert env.segment().mask.tolist() == [[False] * BURN_IN + [True]] * GAMES
    env.step(stay)
    assert env.segment().mask.tolist() == [[False] * (BURN_IN - 1) + [True] * 2] * GAMES
    assert env.segment().is_first.tolist() == [[False] * (BURN_IN - 1) + [True, False]] * GAMES


def test_an_environment_that_is_replaced_begins_an_episode() -> None:
    envs = make_vector_env("delta_iris/Catch-v0", {}, GAMES)
    env = RealEnv(envs, BURN_IN, "cpu", seed=3)
    stay = torch.ones(GAMES, dtype=torch.int64)
    for _ in range(4):
        assert env.step(stay)[2].tolist() == [0, 0]
    envs.processes[1].kill()
    _, rewards, ended = env.step(stay)
    assert (rewards[1].item(), ended.tolist()) == (0.0, [0, 1])
    assert env.segment().mask.tolist() == [[True] * (BURN_IN + 1), [False] * BURN_IN + [True]]
    envs.close()
