"""Tests of the phase that trains a Dreamer, and of its schedule and optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.data.segment import SegmentBatch
from delta_iris.errors import UserError
from delta_iris.nn.optim import mask_step
from delta_iris.training.phase import split_batch
from delta_iris.training.schedule import CollectionSchedule
from delta_iris.training.systems.dreamer import Dreamer, DreamerSchedule, TrainRatio
from delta_iris.training.systems.dreamer_optimizers import AdamConfig, JointOptimizer, OneLaProp, ThreeAdams
from delta_iris.training.systems.dreamer_phase import DreamerBatch, DreamerPhase
from tests.dreamer_helpers import (
    ACTIONS,
    HORIZON,
    LENGTH,
    V2_SIZES,
    make_actor_critic,
    make_dreamer,
    make_stream,
    make_world_model,
)


def phase_of(system: Dreamer) -> DreamerPhase:
    phase = system.phases[0]
    assert isinstance(phase, DreamerPhase)
    return phase


def prepare(system: Dreamer, batch: int = 4) -> DreamerBatch:
    torch.manual_seed(4)
    return phase_of(system).prepare(make_stream(batch, first=(0, 5)))


def step(system: Dreamer, batch: DreamerBatch) -> dict[str, Tensor]:
    """Gradients and buffers after the backward pass of a batch, and its metrics."""
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    metrics = system.forward_backward(system.phases[0], batch)
    gradients = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    return gradients | {f"buffer {name}": each for name, each in system.named_buffers()} | metrics


def test_losses_are_a_function_of_the_batch() -> None:
    system = make_dreamer()
    batch = prepare(system)
    first, second = (phase_of(system).loss(batch, None).loss for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_add_up_to_it(size: int) -> None:
    # Without clipping, which is not linear.
    optimizer = OneLaProp(clip=1e9)
    whole = make_dreamer(optimizer)
    expected = step(whole, prepare(whole))
    schedule = DreamerSchedule(CollectionSchedule(64), TrainRatio(2.0, batch_size=4, micro_batch_size=size))
    parts = make_dreamer(optimizer, schedule)
    found = step(parts, prepare(parts))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Sums in another order; gradients are up to 100.
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_no_gradient_passes_between_world_model_and_actor_critic() -> None:
    system = make_dreamer()
    phase, batch = phase_of(system), prepare(system)
    both = phase.loss(batch, None).loss
    with_both = torch.autograd.grad(both, list(system.world_model.parameters()), allow_unused=True)
    posterior = system.world_model.filter(system.world_model.initial_state(4), batch.segment, batch.posterior)
    alone, _ = system.world_model.loss(posterior, batch.segment)
    for one, other in zip(with_both, torch.autograd.grad(alone, list(system.world_model.parameters())), strict=True):
        assert torch.equal(one, other)


def test_imagination_starts_from_every_frame_and_follows_model_and_policy() -> None:
    system = make_dreamer()
    phase, batch = phase_of(system), prepare(system, 2)
    model = system.world_model
    posterior = model.filter(model.initial_state(2), batch.segment, batch.posterior)
    alive = torch.ones(2, LENGTH, dtype=torch.bool)
    imagined = phase.imagine(posterior, alive, batch)
    assert imagined.features.shape == (2 * LENGTH, HORIZON + 1, model.num_features)
    assert torch.equal(imagined.features[:, 0], posterior.features.flatten(0, 1))
    row = LENGTH + 3  # the fourth frame of the second segment
    state = model.initial_state(1)._replace(deter=posterior.deter[1, 3:4], stoch=posterior.stoch[1, 3:4])
    for t in range(HORIZON):
        action = system.actor_critic.sample(model.actor_input(state), batch.actions[1, 3:4, t])
        assert torch.equal(action, imagined.actions[row : row + 1, t])
        state = model.rssm.imagine_step(state, model.one_hot(action), batch.prior[1, 3:4, t])
        torch.testing.assert_close(model.actor_input(state)[0], imagined.features[row, t + 1])
        reward, continues = model.predict(model.actor_input(state))
        torch.testing.assert_close(reward[0], imagined.rewards[row, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(continues[0], imagined.continues[row, t])
    assert not imagined.features.requires_grad


def test_everything_is_trained_but_the_slow_critic() -> None:
    system = make_dreamer()
    named = step(system, prepare(system))
    for name, parameter in system.named_parameters():
        assert (name in named) == parameter.requires_grad, name
        assert parameter.requires_grad != name.startswith("actor_critic.slow_critic"), name
    registered = [id(p) for p in system.parameters()]
    assert len(registered) == len(set(registered))
    assert not any(name.startswith("joint") for name in system.state_dict())


def test_in_half_precision_everything_is_trained_too() -> None:
    """Weights that were cast without gradients, to imagine, are not taken for the losses."""
    system = make_dreamer()
    with torch.autocast("cpu", torch.bfloat16):
        named = step(system, prepare(system))
    for name, parameter in system.named_parameters():
        assert (name in named) == parameter.requires_grad, name
        if name in named:
            assert bool(named[name].isfinite().all()), name
    assert named["skipped"] == 0


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    system = make_dreamer()
    batch = prepare(system)
    bad = batch._replace(segment=batch.segment._replace(rewards=batch.segment.rewards * torch.nan))
    before = {name: value.clone() for name, value in system.state_dict().items()}
    skipped = step(system, bad)["skipped"]
    assert skipped == 1
    phase_of(system).after_batch(skipped.bool())
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())


@pytest.mark.parametrize(
    ("ratio", "frames", "first", "expected"),
    [(512, 500, None, (250, 250)), (32, 500, 2000, (62, 16)), (1, 10, None, (1, 1))],
)
def test_the_train_ratio_counts_the_frames_of_all_batches(
    ratio: float, frames: int, first: int | None, expected: tuple[int, int]
) -> None:
    schedule = TrainRatio(ratio, batch_size=16).in_steps(CollectionSchedule(frames, first), 64)
    assert (schedule.steps_in(0), schedule.steps_in(1)) == expected


@pytest.mark.parametrize("wrong", [{"train_ratio": 0.0}, {"batch_size": 0}, {"micro_batch_size": 0}])
def test_ratios_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainRatio(**wrong)


def test_sizes_that_do_not_fit_are_refused_by_their_keys() -> None:
    with pytest.raises(UserError, match=r"model\.init_args\.context is 9"):
        Dreamer((16, 16), ACTIONS, lambda *_: make_world_model(), lambda *_: make_actor_critic(), None, 8, 9)
    with pytest.raises(UserError, match=r"model\.init_args\.actor_critic\.init_args\.horizon is 0"):
        make_dreamer(horizon=0)


# --- optimizers ---


def test_three_adams_have_their_own_rates_and_clipping() -> None:
    configs = [AdamConfig(rate, max_grad_norm=norm) for rate, norm in ((1e-3, 1e-2), (2e-3, 1e9), (3e-3, 1e-3))]
    optimizer = ThreeAdams(*configs)
    system = make_dreamer(optimizer)
    parts = phase_of(system).joint.parts
    before, after = make_dreamer(ThreeAdams(*[AdamConfig(max_grad_norm=1e9)] * 3)), step(system, prepare(system))
    unclipped = step(before, prepare(before))
    prefixes = {"world_model": "world_model.", "actor": "actor_critic.actor.", "critic": "actor_critic.critic."}
    for (name, prefix), config in zip(prefixes.items(), configs, strict=True):
        norms = [
            torch.stack([value.norm() for key, value in each.items() if key.startswith(prefix)]).norm()
            for each in (unclipped, after)
        ]
        assert float(norms[1]) == pytest.approx(min(float(norms[0]), config.max_grad_norm), rel=1e-3), name
    made, _ = optimizer.make(parts)
    assert [group["lr"] for group in made.param_groups] == [1e-3, 2e-3, 3e-3] == optimizer.learning_rates(3)
    assert [len(group["params"]) for group in made.param_groups] == [
        sum(p.requires_grad for p in part.parameters()) for part in parts.values()
    ]


def test_laprop_warms_up() -> None:
    optimizer, schedule = OneLaProp(0.4, warmup_steps=3).make({"world_model": torch.nn.Linear(2, 2)})
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 0.0), ("clip", -1.0), ("beta2", 1.0), ("warmup_steps", -1)]
)
def test_optimizer_arguments_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        OneLaProp(**{name: value})  # type: ignore[arg-type]


def test_adam_arguments_out_of_range_are_refused() -> None:
    AdamConfig(weight_decay=0.0)
    for name in ("learning_rate", "eps", "max_grad_norm"):
        with pytest.raises(ValueError, match=name):
            AdamConfig(**{name: 0.0})


@pytest.mark.parametrize("optimizer", [OneLaProp(), ThreeAdams()])
def test_nothing_waits_for_the_device(optimizer: JointOptimizer) -> None:
    """Tensors of the device `meta` have shapes but no values: to read one on the host is an error."""
    with torch.device("meta"):
        system = make_dreamer(optimizer)
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    phase, made = phase_of(system), phase_of(system).joint.configure_optimizers()["optimizer"]
    batch = phase.prepare(SegmentBatch(*(field.to("meta") for field in make_stream(4, first=(0, 5)))))
    for _ in range(2):
        metrics = system.forward_backward(phase, batch)
        if isinstance(optimizer, OneLaProp):  # the fused Adam is PyTorch's own
            assert mask_step(made, metrics["skipped"]) is False
            made.step()
        phase.after_batch(metrics["skipped"].bool())
    policy = system.make_policy()
    action, memory = policy.act(torch.rand(2, 3, 16, 16, device="meta"), policy.initial_memory(2))
    policy.act(torch.rand(2, 3, 16, 16, device="meta"), memory)
    assert action.is_meta


@pytest.mark.parametrize("v2", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_regions_compute_the_same(v2: bool) -> None:
    """Each region is traced as a whole: what would wait for the device, or depends on its values, is an error."""
    changes: dict[str, Any] = {"value": "gaussian", "bootstrap": "slow_critic"} if v2 else {}
    model: dict[str, Any] = {"rssm": V2_SIZES, "activation": "elu", "norm": False} if v2 else {}
    system = make_dreamer(world_model=model, **changes)
    batch = prepare(system)
    expected = {name: value.clone() for name, value in step(system, batch).items()}
    system = make_dreamer(world_model=model, **changes)
    with compiled_regions(backend="eager"):
        found = step(system, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_split_batches_hold_their_own_random_numbers() -> None:
    batch = prepare(make_dreamer())
    parts = split_batch(batch, 3)
    assert torch.equal(torch.cat([part.prior for part in parts]), batch.prior)


def train_on_gpu(system: Dreamer, steps: int = 4) -> dict[str, Tensor]:
    """Train on different batches; returns all weights and buffers."""
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    system.to("cuda")
    phase = phase_of(system)
    optimizer = phase.joint.configure_optimizers()["optimizer"]
    torch.manual_seed(9)
    for number in range(steps):
        segment = SegmentBatch(*(field.roll(number, 0).cuda() for field in make_stream(4, first=(0, 5))))
        prepare_batch, forward_backward = system.step_functions(phase)
        metrics = forward_backward(prepare_batch(segment))
        mask_step(optimizer, metrics["skipped"])
        optimizer.step()
        phase.after_batch(metrics["skipped"].bool())
    result = {name: value.clone() for name, value in system.state_dict().items()}
    system.release_graphs()
    return result


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", [OneLaProp(), ThreeAdams()])
def test_captured_updates_equal_plain_updates(optimizer: JointOptimizer) -> None:
    """Recurrence, imagination, percentiles and clipping are in the graph; random numbers are equal too."""
    plain, captured = make_dreamer(optimizer), make_dreamer(optimizer)
    plain.use_compile = False
    expected, found = train_on_gpu(plain), train_on_gpu(captured)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
