"""Crafter as a gymnasium environment: it replays."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import crafter
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from delta_iris.data.collector import Collector
from delta_iris.data.replay import Replay, ReplayReader
from delta_iris.envs import ACHIEVEMENTS, CrafterEnv
from delta_iris.envs.crafter.determinism import OrderedWorld
from delta_iris.envs.vector import check_environment, make_vector_env
from delta_iris.errors import UserError


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*alternative render modes.*")
        check_env(CrafterEnv(render_mode="rgb_array"))
    env = gym.make("delta_iris/Crafter-v1", size=96)
    assert env.reset(seed=0)[0].shape == (96, 96, 3)


def digest(seed: int, steps: int) -> str:
    """A hash of everything that an environment gives in `steps` steps of random actions."""
    env, generator, content = CrafterEnv(), np.random.default_rng(seed), hashlib.sha256()
    frame, _ = env.reset(seed=seed)
    for _ in range(steps):
        content.update(frame.tobytes())
        frame, reward, terminated, truncated, info = env.step(generator.integers(17))
        content.update(repr((reward, terminated, truncated, sorted(info["inventory"].items()))).encode())
        if terminated or truncated:
            frame, _ = env.reset()
    return content.hexdigest()


def test_the_same_seed_and_actions_give_the_same_episodes_in_any_process() -> None:
    # 1,200 steps: stock Crafter's processes part within 500 (creatures in sets, drawn by address).
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "from test_crafter import digest; junk = [object() for _ in range({})]; print(digest(3, 1200))"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(n)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONHASHSEED": str(n), "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )
        for n in (1, 100_000)
    ]
    hashes = {run.communicate()[0].strip() for run in runs}
    assert hashes == {digest(3, 1200)}
    assert digest(4, 50) != digest(3, 50)


class PlainCrafter:
    """Crafter with its own reset and its own renderer: what `CrafterEnv` must equal."""

    def __init__(self, size: int = 64, length: int = 10_000) -> None:
        self.env = crafter.Env(size=(size, size), length=length, seed=0)
        self.env._world.__class__ = OrderedWorld

    def reset(self, seed: int | None = None) -> np.ndarray:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.env._seed, self.env._episode = int(self.random.integers(2**31 - 1)), 0
        return self.env.reset()


def chunks_of(world: OrderedWorld) -> list[tuple]:
    return [(chunk, *(type(creature).__name__ for creature in them)) for chunk, them in world.chunks.items()]


def assert_same_state(mine: crafter.Env, plain: crafter.Env) -> None:
    world, expected = mine._world, plain._world
    np.testing.assert_array_equal(world._mat_map, expected._mat_map)
    np.testing.assert_array_equal(world._obj_map, expected._obj_map)
    assert [(type(o).__name__, *o.pos) for o in world.objects] == [(type(o).__name__, *o.pos) for o in expected.objects]
    assert all(o.world is world and o.random is world.random for o in world.objects)
    assert chunks_of(world) == chunks_of(expected)
    for a, b in zip(world.random.get_state(), expected.random.get_state(), strict=True):
        np.testing.assert_array_equal(a, b)
    own = {name: value for name, value in vars(mine._player).items() if name not in ("world", "random", "pos")}
    assert own == {name: value for name, value in vars(plain._player).items() if name in own}
    for name in ("_step", "_episode", "_seed", "_last_health", "_unlocked"):
        assert getattr(mine, name) == getattr(plain, name)


def test_worlds_generated_ahead_are_those_of_crafters_own_reset() -> None:
    """Resets of every kind: with the next world not begun, under way and ready; in succession; with a new seed."""
    env, plain, generator = CrafterEnv(), PlainCrafter(), np.random.default_rng(0)
    plan = [(7, 0), (None, 1), (None, 0), (None, 0), (None, 60), (9, 50), (None, 120), (7, 140), (7, 0), (None, 90)]
    for seed, steps in plan:
        frame, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(frame, plain.reset(seed))
        assert_same_state(env._env, plain.env)
        for action in generator.integers(17, size=steps):
            frame, reward, *_ = env.step(action)
            expected, expected_reward, *_ = plain.env.step(action)
            np.testing.assert_array_equal(frame, expected)
            assert reward == expected_reward
        assert_same_state(env._env, plain.env)


@pytest.mark.parametrize(("steps", "ready"), [(80, False), (107, True)])
def test_the_next_world_is_ready_before_most_episodes_end(steps: int, ready: bool) -> None:
    env = CrafterEnv()
    env.reset(seed=0)
    for _ in range(steps):
        env.step(0)
    assert (list(env._next._pieces) == []) == ready


@pytest.mark.parametrize("size", [64, 96, 100, 30])
def test_frames_are_drawn_as_crafter_draws_them(size: int) -> None:
    """By day and night, awake and asleep, along every border, with things in hand and creatures about."""
    env, plain, generator = CrafterEnv(size=size), PlainCrafter(size), np.random.default_rng(size)
    env.reset(seed=size)
    plain.reset(size)
    nights = sleeps = borders = 0
    sleep = crafter.constants.actions.index("sleep")
    for t in range(700):
        where = tuple(generator.choice([0, 1, 4, 31, 60, 62, 63], 2))
        for each in (env._env, plain.env):
            player, world = each._player, each._world
            player.health = 9
            if t % 20 == 0:
                if world[where][1] is None:
                    world.move(player, where)
                player.inventory[list(player.inventory)[t // 20 % len(player.inventory)]] = 1 + t // 100
                player.inventory["energy"] = 5
        action = sleep if t % 100 > 70 else generator.integers(17)
        frame, reward, *_ = env.step(action)
        expected, expected_reward, *_ = plain.env.step(action)
        np.testing.assert_array_equal(frame, expected)
        assert (frame.dtype, reward) == (np.uint8, expected_reward)
        player = plain.env._player
        nights += plain.env._world.daylight < 0.5
        sleeps += player.sleeping
        borders += not (4 <= player.pos[0] < 60 and 3 <= player.pos[1] < 61)
    assert_same_state(env._env, plain.env)
    assert min(nights, sleeps, borders) > 50


def test_looking_does_not_change_the_episode() -> None:
    frames = []
    for look in (False, True):
        env = CrafterEnv(render_mode="rgb_array")
        env.reset(seed=1)
        for _ in range(260):  # into the night, whose noise is drawn from the world's random numbers
            frame, _, terminated, _, _ = env.step(0)
            if look:
                np.testing.assert_array_equal(env.render(), frame)
            if terminated:
                break
        frames.append(frame)
    np.testing.assert_array_equal(*frames)


def test_death_terminates_and_the_time_limit_truncates() -> None:
    env = CrafterEnv(length=5)
    _, info = env.reset(seed=0)
    assert set(info["achievements"]) == set(ACHIEVEMENTS)
    assert len(ACHIEVEMENTS) == 22
    assert info["inventory"]["health"] == 9
    ends = [env.step(0)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    env = CrafterEnv()
    env.reset(seed=0)
    env._env._player.health = 0
    assert env.step(0)[2:4] == (True, False)


def test_what_was_collected_can_be_played_again(tmp_path: Path) -> None:
    """Recorded actions in a fresh environment give the recorded frames, rewards and ends: no phantom steps."""
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


def test_evaluation_takes_as_many_episodes_of_each_environment(tmp_path: Path) -> None:
    envs = make_vector_env("delta_iris/Crafter-v1", {"length": 60}, 3)
    replay = Replay(tmp_path, (64, 64, 3))
    episodes = Collector(envs, replay, burn_in=5, seed=0).collect(None, episodes_per_env=2)
    envs.close()
    assert len(episodes) == 6
    reader = ReplayReader(tmp_path, (64, 64, 3))
    assert sorted(reader.environment(e) for e in range(reader.num_episodes)) == [0, 0, 1, 1, 2, 2]
    assert all(set(episode.achievements) == set(ACHIEVEMENTS) for episode in episodes)
    assert sum(episode.length for episode in episodes) == replay.num_frames


def test_a_dead_process_is_told(tmp_path: Path) -> None:
    envs = make_vector_env("delta_iris/Crafter-v1", {}, 2)
    replay = Replay(tmp_path, (64, 64, 3))
    collector = Collector(envs, replay, burn_in=5, seed=0)
    collector.collect(None, 20)
    envs.processes[1].kill()
    with pytest.raises(UserError, match=r"process died.*\{1: -9\}.*resume with --ckpt_path"):
        collector.collect(None, 20)
    envs.close(terminate=True)
    assert replay.num_frames == 40


@pytest.mark.parametrize(
    ("options", "size", "actions", "told"),
    [
        ({"size": 96}, (64, 64), 17, r"data\.frame_size says 64×64 RGB frames, but .* gives \(96, 96, 3\)"),
        ({}, (64, 64), 6, r"data\.num_actions is 6, but .* has 17: set it to 17"),
        ({"sizes": 64}, (64, 64), 17, r"environment_options .* cannot be made"),
    ],
)
def test_an_environment_that_does_not_fit_is_told(options, size, actions: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_environment("delta_iris/Crafter-v1", options, size, actions)


@pytest.mark.parametrize("name", ["NoSuchEnv-v0", "no_such_module:Env-v0", "CartPole-v1"])
def test_other_environments_are_checked_too(name: str) -> None:
    with pytest.raises(UserError, match=r"data\.(environment|frame_size)"):
        check_environment(name, {}, (64, 64), 2)
