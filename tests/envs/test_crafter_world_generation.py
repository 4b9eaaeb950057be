"""Incremental world generation against Crafter's own reset."""

from __future__ import annotations

import numpy as np
import pytest

from delta_iris.envs import CrafterEnv
from delta_iris.envs.crafter.determinism import make_crafter
from delta_iris.envs.crafter.world_generation import IncrementalReset

from .crafter_helpers import PlainCrafter, assert_same_state


def test_worlds_equal_those_of_crafters_own_reset() -> None:
    """Reset while the next world is not started, in progress and complete; several times in a row; with a new seed."""
    env, plain, generator = CrafterEnv(), PlainCrafter(), np.random.default_rng(0)
    plan = [(7, 0), (None, 1), (None, 0), (None, 0), (None, 60), (9, 50), (None, 120), (7, 140), (7, 0), (None, 90)]
    for seed, steps in plan:
        frame, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(frame, plain.reset(seed))
        assert_same_state(env.engine, plain.engine)
        for action in generator.integers(17, size=steps):
            frame, reward, *_ = env.step(action)
            expected, expected_reward, *_ = plain.engine.step(action)
            np.testing.assert_array_equal(frame, expected)
            assert reward == expected_reward
        assert_same_state(env.engine, plain.engine)


@pytest.mark.parametrize(("steps", "complete"), [(80, False), (107, True)])
def test_a_world_is_complete_before_most_episodes_end(steps: int, complete: bool) -> None:
    expected = IncrementalReset(make_crafter(64, 10_000), seed=0).finish()
    reset = IncrementalReset(make_crafter(64, 10_000), seed=0)
    for _ in range(steps):
        reset.advance()
    assert (len(reset.env._world.objects) == len(expected._world.objects)) == complete
    if complete:
        assert_same_state(reset.env, expected)


def test_every_step_advances_the_next_world(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = 0

    def count_call(reset: IncrementalReset) -> None:
        nonlocal num_calls
        num_calls += 1

    monkeypatch.setattr(IncrementalReset, "advance", count_call)
    env = CrafterEnv()
    env.reset(seed=0)
    for _ in range(5):
        env.step(0)
    assert num_calls == 5
