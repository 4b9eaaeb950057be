"""Tests that `configs/parts/atari_100k.yaml` plays by the Atari 100k protocol."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from delta_iris.envs.make import make_env
from tests.commands.config_helpers import CONFIGS

pytest.importorskip("ale_py")

DATA = yaml.safe_load((CONFIGS / "parts" / "atari_100k.yaml").read_text())
BREAKOUT = "ale_py:ALE/Breakout-v5"


def make(environment: str = DATA["environment"], *, training: bool = False, **changes: Any) -> gym.Env[Any, Any]:
    """An environment as the configuration has it."""
    listed = DATA["wrappers"] + (DATA["training_wrappers"] if training else [])
    return make_env(environment, listed, **(DATA["environment_options"] | changes))


def emulator(env: gym.Env[Any, Any]) -> Any:
    return env.unwrapped.ale  # type: ignore[attr-defined]


def test_a_step_is_four_frames_of_the_emulator() -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(20):
        before = emulator(env).getFrameNumber()
        env.step(env.action_space.sample())
        assert emulator(env).getFrameNumber() == before + 4


def test_frames_are_the_maximum_of_the_last_two_resized() -> None:
    cv2 = pytest.importorskip("cv2")
    env, bare = make(BREAKOUT), gym.make(BREAKOUT, **DATA["environment_options"])
    env.reset(seed=3)
    bare.reset(seed=3)
    while emulator(bare).getEpisodeFrameNumber() < emulator(env).getEpisodeFrameNumber():
        bare.step(0)  # the steps without action
    for action in (1, 3, 3, 2, 0, 2):
        frame = env.step(action)[0]
        last = [bare.step(action)[0] for _ in range(4)][-2:]
        assert frame.shape == (64, 64, 3)
        assert np.array_equal(frame, cv2.resize(np.maximum(*last), (64, 64), interpolation=cv2.INTER_AREA))


def test_games_start_after_up_to_thirty_steps_without_action() -> None:
    env, starts = make(), []
    for seed in range(20):
        env.reset(seed=seed)
        starts.append(emulator(env).getEpisodeFrameNumber())
    assert 15 <= max(starts) - min(starts) <= 29  # 20 draws out of 30
    assert len(set(starts)) > 7


def test_actions_are_not_sticky() -> None:
    env, other = make(), make(repeat_action_probability=0.25)
    assert emulator(env).getFloat("repeat_action_probability") == 0
    assert emulator(other).getFloat("repeat_action_probability") == 0.25


def test_a_game_is_cut_after_half_an_hour() -> None:
    assert emulator(make()).getInt("max_num_frames_per_episode") == 108_000
    env = make(max_num_frames_per_episode=400)
    env.reset(seed=0)
    steps = 0
    terminated = truncated = False
    while not (terminated or truncated):
        _, _, terminated, truncated, _ = env.step(0)
        steps += 1
    assert (terminated, truncated) == (False, True)
    assert emulator(env).getEpisodeFrameNumber() <= 400
    assert 90 <= steps <= 100


def play(env: gym.Env[Any, Any], episodes: int) -> list[tuple[list[float], int, bool]]:
    """Rewards, remaining lives and whether it terminated, of episodes that fire and otherwise move at random."""
    generator, result = np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(episodes):
        rewards, ended = list[float](), False
        while not ended:
            _, reward, terminated, truncated, info = env.step(int(generator.integers(4)))
            rewards.append(float(reward))
            ended = terminated or truncated
        result.append((rewards, info["lives"], terminated))
        env.reset()
    return result


def test_a_life_is_an_episode_in_training_only() -> None:
    assert [(lives, terminated) for _, lives, terminated in play(make(BREAKOUT, training=True), 6)] == [
        (4, True), (3, True), (2, True), (1, True), (0, True), (4, True),
    ]  # fmt: skip
    ((_, lives, terminated),) = play(make(BREAKOUT), 1)
    assert (lives, terminated) == (0, True)


def test_rewards_are_signs_in_training_only() -> None:
    # Points of Alien's dots are tens.
    rewards = [
        {reward for episode in play(make("ale_py:ALE/Alien-v5", training=training), 1) for reward in episode[0]}
        for training in (True, False)
    ]
    assert rewards[0] == {0.0, 1.0}
    assert max(rewards[1]) >= 10


def test_a_run_takes_a_hundred_thousand_steps() -> None:
    from delta_iris.training.systems import DeltaIris
    from tests.commands.config_helpers import build_on_meta, parse_fit, stack

    values = parse_fit(*stack("atari.yaml"))
    system = build_on_meta(values)
    assert isinstance(system, DeltaIris)
    assert system.schedule.collection.frames_until(values["trainer"]["max_epochs"]) == 100_000
