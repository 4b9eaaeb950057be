"""Tests of LaProp against its formula, and of adaptive gradient clipping against its definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from delta_iris.nn.laprop import LaProp, clip_adaptively
from delta_iris.nn.optim import mask_step

RATE, BETA1, BETA2, EPS = 0.03, 0.9, 0.99, 1e-8


def expected_steps(start: float, gradients: list[float]) -> list[float]:
    """A scalar after each step, by the formula of the class."""
    value, momentum, square, values = start, 0.0, 0.0, []
    for number, gradient in enumerate(gradients, start=1):
        square = BETA2 * square + (1 - BETA2) * gradient**2
        normalized = gradient / (math.sqrt(square / (1 - BETA2**number)) + EPS)
        momentum = BETA1 * momentum + (1 - BETA1) * normalized
        value -= RATE * momentum / (1 - BETA1**number)
        values.append(value)
    return values


def make(values: list[float]) -> tuple[list[nn.Parameter], LaProp]:
    parameters = [nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in values]
    return parameters, LaProp(parameters, RATE, (BETA1, BETA2), EPS)


def test_steps_follow_the_formula() -> None:
    gradients = [[0.5, -2.0], [1e-3, -2.5], [30.0, 0.0], [-0.7, 1e4], [0.1, 3.0]]
    parameters, optimizer = make([1.0, -2.0])
    for step, each in enumerate(gradients):
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        for index, (parameter, start) in enumerate(zip(parameters, (1.0, -2.0), strict=True)):
            expected = expected_steps(start, [row[index] for row in gradients])[step]
            assert parameter.item() == pytest.approx(expected, rel=1e-12)


def test_the_first_step_has_the_size_of_the_learning_rate() -> None:
    parameters, optimizer = make([0.0, 0.0])
    for parameter, gradient in zip(parameters, (1e-6, -1e6), strict=True):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()
    assert [p.item() for p in parameters] == pytest.approx([-RATE, RATE], rel=0.02)  # ε is a hundredth of 1e-6


@pytest.mark.parametrize("first", [False, True])
def test_a_masked_step_changes_nothing(first: bool) -> None:
    """Neither weights nor state, whatever the gradient is; and the steps after it are as if it had not been."""
    parameters, optimizer = make([1.0])
    twins, twin = make([1.0])

    def step(gradient: float, skip: bool) -> None:
        parameters[0].grad = torch.tensor([gradient], dtype=torch.float64)
        assert mask_step(optimizer, torch.tensor(float(skip))) is False
        optimizer.step()
        if not skip:
            twins[0].grad = torch.tensor([gradient], dtype=torch.float64)
            twin.step()

    if not first:
        step(2.0, False)
    step(math.nan, True)
    step(math.inf, True)
    step(3.0, False)
    assert torch.equal(parameters[0], twins[0])
    for key, value in twin.state[twins[0]].items():
        assert torch.equal(optimizer.state[parameters[0]][key], value)


def test_state_survives_saving() -> None:
    parameters, optimizer = make([1.0])
    parameters[0].grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    others, other = make([parameters[0].item()])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    others[0].grad = parameters[0].grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step()
    other.step()
    assert torch.equal(parameters[0], others[0])


def clip(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    parameter = nn.Parameter(weight)
    parameter.grad = gradient.clone()
    norm = clip_adaptively([parameter, nn.Parameter(weight)], 0.3)
    return parameter.grad, norm


def test_each_gradient_is_scaled_to_a_share_of_its_tensors_norm() -> None:
    weight = torch.tensor([[3.0, 4.0]])  # norm 5, so that 1.5 is allowed
    assert torch.equal(clip(weight, torch.tensor([[0.0, 1.5]]))[0], torch.tensor([[0.0, 1.5]]))
    clipped, norm = clip(weight, torch.tensor([[6.0, 8.0]]))
    torch.testing.assert_close(clipped, torch.tensor([[0.9, 1.2]]))
    assert norm == 10


def test_weights_of_zero_may_have_small_gradients() -> None:
    clipped, _ = clip(torch.zeros(2), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.3e-3))
    assert torch.equal(clip(torch.zeros(2), torch.zeros(2))[0], torch.zeros(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float) -> None:
    assert not clip(torch.ones(2), torch.tensor([bad, 1.0]))[1].isfinite()
