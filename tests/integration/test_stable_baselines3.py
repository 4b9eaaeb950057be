"""Test that a trainer of others learns inside a world model what it can then do in the real game."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from delta_iris import load_pretrained
from delta_iris.data.segment import SegmentBatch
from delta_iris.envs.catch import CatchEnv
from delta_iris.imagination.vector_env import ImaginedVectorEnv

ROOT = Path(__file__).parents[2]
EPISODE_STEPS = 18
RANDOM_RETURN, BEST_RETURN = 1.5, 6.0


class ImaginedVecEnv(VecEnv):
    """`ImaginedVectorEnv` as stable-baselines3 wants it, which is older than Gymnasium's interface.

    Args:
        envs: environments whose episodes start anew in the step that ends one.
    """

    def __init__(self, envs: ImaginedVectorEnv) -> None:
        self.envs, self.actions = envs, np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        return self.envs.reset(seed=0)[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        frames, rewards, terminated, truncated, info = self.envs.step(self.actions)
        ended = terminated | truncated
        infos = [
            {"terminal_observation": info["final_obs"][i], "TimeLimit.truncated": bool(truncated[i])} if over else {}
            for i, over in enumerate(ended)
        ]
        return frames, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def random_starts(env: CatchEnv, length: int, episodes: int = 30) -> SegmentBatch:
    """All segments of the episodes of a player that moves at random."""
    random, starts = np.random.default_rng(0), []
    for episode in range(episodes):
        frame, _ = env.reset(seed=episode)
        frames, actions, terminated = [], random.integers(3, size=EPISODE_STEPS), False
        while not terminated:
            frames.append(frame)
            frame, _, terminated, *_ = env.step(actions[len(frames) - 1])
        starts.append(SegmentBatch.from_numpy(np.stack(frames), actions).windows(length))
    return SegmentBatch(*(torch.cat(parts) for parts in zip(*starts, strict=True)))


def mean_return(ppo: PPO, env: CatchEnv, episodes: int = 40) -> float:
    """Mean return of the most likely actions in the real game."""
    total = 0.0
    for episode in range(episodes):
        frame, _ = env.reset(seed=10_000 + episode)
        terminated = False
        while not terminated:
            frame, reward, terminated, *_ = env.step(int(ppo.predict(frame, deterministic=True)[0]))
            total += reward
    return total / episodes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_ppo_learns_catch_without_playing_it(seed: int) -> None:
    """8,192 imagined steps suffice for the best return; half of what lies between a random player and it is clear."""
    env, agent = CatchEnv(), load_pretrained(ROOT / "pretrained" / "catch")
    envs = agent.imagine(
        random_starts(env, agent.system.context), 32, max_steps=EPISODE_STEPS, autoreset_mode=AutoresetMode.SAME_STEP
    )
    ppo = PPO(
        "MlpPolicy",
        ImaginedVecEnv(envs),
        n_steps=64,
        batch_size=256,
        n_epochs=8,
        learning_rate=1e-3,
        gamma=0.95,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    untrained = mean_return(ppo, env)
    ppo.learn(8192)
    trained = mean_return(ppo, env)
    assert untrained < (RANDOM_RETURN + BEST_RETURN) / 2 < trained, (untrained, trained)
