"""Tests of wrappers listed in a configuration."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers

from delta_iris.envs.make import make_env
from delta_iris.envs.state import get_env_state, set_env_state
from delta_iris.envs.vector import check_env, make_vector_env
from delta_iris.envs.wrapper_list import GAME_WRAPPERS, TRAINING_WRAPPERS, check_wrappers
from delta_iris.errors import UserError

CATCH = "delta_iris/Catch-v0"


def test_a_list_makes_what_code_makes() -> None:
    listed = make_env(
        CATCH,
        ["GrayscaleObservation", {"ResizeObservation": {"shape": [8, 12]}}, {"TimeLimit": {"max_episode_steps": 3}}],
    )
    inner = wrappers.ResizeObservation(wrappers.GrayscaleObservation(make_env(CATCH)), (8, 12))
    coded = wrappers.TimeLimit(inner, 3)
    expected, _ = coded.reset(seed=5)
    assert np.array_equal(listed.reset(seed=5)[0], np.repeat(expected[..., None], 3, axis=-1))
    for _ in range(3):
        (frame, *rest), (expected, *others) = listed.step(1), coded.step(1)
        assert np.array_equal(frame[..., 0], expected)
        assert rest[:3] == others[:3]
    assert rest[2]


def test_the_order_of_a_list_is_that_of_its_wrappers() -> None:
    resize: dict[str, Any] = {"ResizeObservation": {"shape": [8, 8]}}
    skip: dict[str, Any] = {"MaxAndSkipObservation": {"skip": 2}}
    for order in ([resize, skip], [skip, resize]):
        env, names = make_env(CATCH, order), []
        while isinstance(env, gym.Wrapper):
            names.append(type(env).__name__)
            env = env.env
        assert names[::-1] == [next(iter(each)) for each in order]


def test_frames_are_drawn_where_observations_are_none() -> None:
    env = make_env(
        "CartPole-v1", ["AddRenderObservation", {"ResizeObservation": {"shape": [32, 48]}}], render_mode="rgb_array"
    )
    frame, _ = env.reset(seed=0)
    assert (frame.shape, frame.dtype) == ((32, 48, 3), np.uint8)


def test_environments_of_a_pool_are_wrapped_and_checked() -> None:
    limit: list[Any] = [{"ResizeObservation": {"shape": [8, 8]}}, {"TimeLimit": {"max_episode_steps": 2}}]
    envs = make_vector_env(CATCH, {}, 2, wrappers=limit)
    assert envs.reset(seed=0)[0].shape == (2, 8, 8, 3)
    envs.step(np.ones(2, np.int64))
    assert envs.step(np.ones(2, np.int64))[3].all()
    envs.close()
    check_env(CATCH, {}, (8, 8), 3, wrappers=limit)
    with pytest.raises(UserError, match=r"ResizeObservation: \{shape: \[16, 8\]\} in data.wrappers"):
        check_env(CATCH, {}, (16, 8), 3, wrappers=limit)


def test_the_state_of_a_listed_environment_is_restored() -> None:
    listed: list[Any] = ["GrayscaleObservation", {"TimeLimit": {"max_episode_steps": 7}}]
    env, other = make_env(CATCH, listed), make_env(CATCH, listed)
    env.reset(seed=0)
    env.step(2)
    other.reset(seed=9)
    set_env_state(other, get_env_state(env))
    for _ in range(6):
        (frame, *rest), (expected, *others) = other.step(1), env.step(1)
        assert np.array_equal(frame, expected)
        assert rest == others
    assert rest[2]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("ClipReward", "data.wrappers is 'ClipReward': it must be a list"),
        ([{"ResizeObservation": {"shape": [8, 8]}, "TimeLimit": {}}], r"data.wrappers\[0\] is .*: write one wrapper"),
        ([3], r"data.wrappers\[0\] is 3: write one wrapper with its arguments"),
        ([{"ResizeObservation": [8, 8]}], r"data.wrappers\[0\] is .*: write one wrapper"),
        (["TimeLimits"], r"data.wrappers\[0\] names the wrapper 'TimeLimits', which is not known: choose TimeLimit"),
        (["ResizeObs"], "choose ResizeObservation"),
        (["RecordVideo"], "which a configuration cannot use; it can use AddRenderObservation, "),
        (["TransformObservation"], "which a configuration cannot use"),
        (["os.system"], "is not known"),
        (["ClipReward"], "would change the returns that tests report: list it in data.training_wrappers"),
        (
            [{"ResizeObservation": {"size": [8, 8]}}],
            r"data.wrappers\[0\].ResizeObservation: unknown argument 'size': it takes shape",
        ),
        (
            ["ResizeObservation"],
            r"data.wrappers\[0\].ResizeObservation: the argument 'shape' is missing: it takes shape",
        ),
        ([{"AtariPreprocessing": {"terminal_on_life_loss": True}}], "list EpisodicLife in data.training_wrappers"),
    ],
)
def test_entries_that_cannot_be_used_are_named(entries: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_wrappers("data.wrappers", entries, GAME_WRAPPERS)
    assert "\n" not in str(caught.value)


def test_training_wrappers_change_rewards_and_ends_only() -> None:
    check_wrappers("data.training_wrappers", ["EpisodicLife", {"ClipReward": {"min_reward": -1}}], TRAINING_WRAPPERS)
    with pytest.raises(UserError, match="would change the game that the agent is tested in: list it in data"):
        check_wrappers("data.training_wrappers", ["GrayscaleObservation"], TRAINING_WRAPPERS)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ResizeObservation": {"shape": "small"}}, "the wrapper ResizeObservation cannot be applied with"),
        ({"SelectObservation": {"key": "image"}}, "the observations are no dict, but Box: check data.wrappers"),
        ("AddRenderObservation", "requires render_mode"),
    ],
)
def test_wrappers_that_do_not_fit_the_environment_are_named(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_env(CATCH, [entry])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(GAME_WRAPPERS | TRAINING_WRAPPERS))
def test_no_wrapper_takes_a_function_or_writes_files(name: str) -> None:
    import inspect

    parameters = inspect.signature((GAME_WRAPPERS | TRAINING_WRAPPERS)[name]).parameters
    assert not {"func", "f", "video_folder", "path", "folder"} & set(parameters)
