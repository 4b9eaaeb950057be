"""Tests of λ-returns and of the mask of the steps before an end."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.actor_critic.returns import alive_mask, lambda_returns

steps = st.lists(st.tuples(st.floats(-10, 10), st.booleans(), st.floats(-10, 10)), min_size=1, max_size=12)


@given(steps, st.floats(0, 1), st.floats(0, 1))
def test_returns_equal_their_recursive_definition(
    steps: list[tuple[float, bool, float]], gamma: float, lambda_: float
) -> None:
    def expected(t: int) -> float:
        if t == len(steps):
            return steps[-1][2]
        reward, ended, next_value = steps[t]
        return reward if ended else reward + gamma * ((1 - lambda_) * next_value + lambda_ * expected(t + 1))

    rewards, terminated, next_values = torch.tensor([steps], dtype=torch.float64).unbind(-1)
    returns = lambda_returns(rewards, terminated, next_values, gamma, lambda_)
    plain = torch.tensor([[expected(t) for t in range(len(steps))]], dtype=torch.float64)
    torch.testing.assert_close(returns, plain, rtol=1e-12, atol=1e-12)


def test_steps_are_alive_up_to_the_first_end() -> None:
    terminated = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1]])
    assert alive_mask(terminated).tolist() == [[True] * 3, [True, True, False], [True, False, False]]
