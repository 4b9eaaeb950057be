"""An environment's state: a restored one continues to the bit, in any process."""

from __future__ import annotations

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_iris.envs.make import make_env
from delta_iris.envs.state import from_checkpoint, get_env_state, set_env_state, to_checkpoint
from delta_iris.envs.vector import make_vector_env

CATCH, CRAFTER = "delta_iris/Catch-v0", "delta_iris/Crafter-v1"


def save_and_load(state: Any) -> Any:
    """A state as a checkpoint returns it."""
    return from_checkpoint(through_file(to_checkpoint(state)))


def through_file(value: Any) -> Any:
    """Save and load as checkpoints are."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(env: gym.Env[Any, Any], actions: list[int]) -> list[Any]:
    """Everything that an environment returns, over the ends of episodes."""
    found: list[Any] = []
    for action in actions:
        frame, reward, terminated, truncated, _ = env.step(action)
        found.append((frame.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            found.append(env.reset()[0].tobytes())
    return found


def assert_continues(environment: str, options: dict[str, Any], seed: int, before: list[int], after: list[int]) -> None:
    env, other = make_env(environment, **options), make_env(environment, **options)
    env.reset(seed=seed)
    play(env, before)
    state = save_and_load(get_env_state(env))
    other.reset(seed=seed + 1)
    play(other, after[:3])
    other.reset()
    set_env_state(other, state)
    assert play(other, after) == play(env, after)


@given(
    st.integers(0, 2**32 - 2),
    st.lists(st.integers(0, 2), max_size=50),
    st.lists(st.integers(0, 2), min_size=20, max_size=60),
    st.sampled_from([{}, {"max_episode_steps": 7}]),
)
@settings(max_examples=50, deadline=None)
def test_catch_continues(seed: int, before: list[int], after: list[int], options: dict[str, Any]) -> None:
    assert_continues(CATCH, {"blocks": 4} | options, seed, before, after)


@given(st.integers(0, 2**32 - 2), st.integers(0, 150), st.integers(40, 130))
@settings(max_examples=5, deadline=None)
def test_crafter_continues_over_ends_of_episodes(seed: int, before: int, after: int) -> None:
    generator = np.random.default_rng(seed)
    actions = generator.integers(17, size=before + after).tolist()
    assert_continues(CRAFTER, {"length": 60, "size": 32}, seed, actions[:before], actions[before:])


@pytest.mark.parametrize("environment", [CATCH, CRAFTER])
def test_a_pool_continues_in_other_processes(environment: str) -> None:
    options = {"length": 40, "size": 32} if environment == CRAFTER else {}
    generator = np.random.default_rng(0)
    actions = generator.integers(3, size=(70, 2))
    first, second = (make_vector_env(environment, options, 2) for _ in range(2))
    first.reset(seed=5)
    for t in range(30):
        first.step(actions[t])
    states = through_file(first.get_states())
    second.seed = first.seed
    assert second.set_states(states) == [True, True]
    np.testing.assert_array_equal(second.frames, first.frames)
    for t in range(30, 70):
        for found, expected in zip(second.step(actions[t])[:4], first.step(actions[t])[:4], strict=True):
            np.testing.assert_array_equal(found, expected)
    first.close()
    second.close()


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from([np.arange(6, dtype=kind).reshape(2, 3) for kind in ("u1", "u2", "u4", "u8", "i8", "f2", "f8")]),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
    ),
)


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_pass_through_a_checkpoint(value: Any) -> None:
    def normal(each: Any) -> Any:
        if isinstance(each, np.ndarray):
            return ("array", str(each.dtype), each.tolist())
        if isinstance(each, dict):
            return {key: normal(inner) for key, inner in each.items()}
        return type(each)(map(normal, each)) if isinstance(each, list | tuple) else (type(each), each)

    assert normal(save_and_load(value)) == normal(value)


class StatefulWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that may hold anything."""


class OddState(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper whose state is not plain."""

    def get_state(self) -> Any:
        return {"self": self}

    def set_state(self, state: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (StatefulWrapper, "wrapper StatefulWrapper has no get_state"),
        (lambda env: gym.wrappers.FrameStackObservation(env, 2), "wrapper FrameStackObservation has no get_state"),
        (OddState, "holds a OddState, which is not plain"),
    ],
)
def test_states_that_nobody_can_restore_are_refused(wrap: Any, message: str) -> None:
    env = wrap(make_env(CATCH))
    env.reset(seed=0)
    with pytest.raises(TypeError, match=message):
        get_env_state(env)


def test_an_environment_without_a_state_starts_anew_with_another_seed(caplog: pytest.LogCaptureFixture) -> None:
    def make(**options: Any) -> gym.Env[Any, Any]:
        return StatefulWrapper(make_env(CATCH, cells=16))

    gym.register("Opaque-v0", entry_point=make, order_enforce=False)
    pool = make_vector_env("Opaque-v0", {}, 3)
    first = pool.reset(seed=0)[0]
    states = [pool.get_states() for _ in range(2)][1]
    assert states == [None] * 3
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "environment 'Opaque-v0' cannot be part of a checkpoint, so a resumed run starts its episodes anew"
    ]
    starts = [first.tobytes()]
    for resume in range(1, 4):
        assert pool.set_states(states) == [False] * 3
        assert pool.generations == [resume] * 3
        starts.append(pool.frames.tobytes())
    assert len(set(starts)) == 4
    pool.close()
