"""Tests of the optimizer and its learning rate schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from delta_iris.nn.optim import OptimizerConfig, make_optimizer, mask_step, rewind_schedule


def learning_rates(steps: int, config: OptimizerConfig) -> list[float]:
    """Return the learning rates of the first optimizer steps."""
    optimizer, schedule = make_optimizer(nn.Linear(2, 2), config)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_learning_rate_warms_up_and_stays_constant() -> None:
    assert learning_rates(6, OptimizerConfig(0.4, warmup_steps=3)) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert learning_rates(2, OptimizerConfig(0.4)) == pytest.approx([0.4, 0.4])


def test_learning_rate_decays_linearly() -> None:
    config = OptimizerConfig(0.4, min_lr_factor=0.25, lr_decay_steps=4)
    assert learning_rates(7, config) == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1, 0.1, 0.1])


def test_warm_up_and_decay_are_multiplied() -> None:
    config = OptimizerConfig(0.4, warmup_steps=1, min_lr_factor=0.25, lr_decay_steps=4)
    assert learning_rates(2, config) == pytest.approx([0.2, 0.325])


def test_weight_decay_applies_to_weights_of_linear_layers_only() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2), nn.Conv2d(1, 1, 3))
    optimizer, _ = make_optimizer(module, OptimizerConfig(weight_decay=0.1))
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decayed] == [id(module[0].weight)]


def test_frozen_parameters_are_not_optimized() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer, _ = make_optimizer(module, OptimizerConfig())
    optimized: set[torch.Tensor] = {p for group in optimizer.param_groups for p in group["params"]}
    assert optimized == set(module[0].parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_a_masked_step_changes_nothing(fused: bool) -> None:
    """The fused kernel on the CPU reads the flag as that on a GPU does."""
    module = nn.Linear(2, 2)
    optimizer, _ = make_optimizer(module, OptimizerConfig(0.1))
    for group in optimizer.param_groups:
        group["fused"] = fused
    states = []
    for skip in (0.0, 1.0, 0.0):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan if skip else 1.0)
        assert mask_step(optimizer, torch.tensor(skip)) == (bool(skip) and not fused)
        optimizer.step()
        steps = [float(state["step"]) for state in optimizer.state.values()]
        states.append((module.weight.detach().clone(), steps))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1] == [1.0, 1.0]
    assert not torch.equal(states[1][0], states[2][0])
    assert states[2][1] == [2.0, 2.0]


def test_a_rewound_schedule_goes_on_as_if_its_last_steps_had_not_been() -> None:
    config = OptimizerConfig(0.4, warmup_steps=3, min_lr_factor=0.5, lr_decay_steps=6)
    optimizer, schedule = make_optimizer(nn.Linear(2, 2), config)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    rewind_schedule(schedule, 3)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(2):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == learning_rates(5, config)[2:]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"min_lr_factor": 1.5, "lr_decay_steps": 5}, "min_lr_factor"),
        ({"min_lr_factor": -0.1, "lr_decay_steps": 5}, "min_lr_factor"),
        ({"min_lr_factor": 0.1}, "lr_decay_steps"),
        ({"lr_decay_steps": 5}, "min_lr_factor"),
        ({"lr_decay_steps": -5}, "lr_decay_steps"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**arguments)  # type: ignore[arg-type]
