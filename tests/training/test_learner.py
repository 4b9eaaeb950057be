"""Tests that compiled, captured and split training steps compute the same as the plain step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.actor_critic.batch import ActorCriticBatch
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.optim import make_optimizer, mask_step
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.training.systems.token_system import TokenSystem
from delta_iris.world_models.tokens.quantizer import MIN_UPDATES, VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import Tokenizer
from tests import helpers
from tests.helpers import (
    FRAMES,
    make_cnn_tokenizer,
    make_dynamics,
    make_frame_tokenizer,
    make_schedule,
    make_segment,
    make_tokenizer,
)

BATCH = 6
PHASES = ["tokenizer", "dynamics", "actor_critic"]
TOKENIZERS = ["transformer", "cnn", "cnn with motion", "frames"]


def make_system(
    tokenizer: Tokenizer | None = None, device: str = "cpu", micro_batch_size: int | None = None, **dynamics: Any
) -> TokenSystem:
    """Return a system whose steps run without a Trainer."""
    schedule = make_schedule(micro_batch_size=micro_batch_size)
    made = None if tokenizer is not None and not tokenizer.context_frames else make_dynamics(**dynamics)
    system = helpers.make_system(tokenizer, made, schedule=schedule).to(device)
    # Without a Trainer; its version would only scale the loss.
    system.manual_backward = Tensor.backward  # type: ignore[method-assign]
    return system


def make_tokenizer_kind(kind: str) -> Tokenizer:
    if kind == "transformer":
        return make_tokenizer()
    if kind == "frames":
        return make_frame_tokenizer()
    return make_cnn_tokenizer(num_transforms=2 if kind == "cnn with motion" else 0)


def make_phase_segment(system: TokenSystem, phase: str, device: str = "cpu") -> SegmentBatch:
    """Return segments as the sampler of a phase draws them: imagination starts from real frames."""
    segment = make_segment(BATCH, padded=True)
    segment.mask[1] = True
    if phase == "actor_critic":
        segment = segment.slice_time(0, system.actor_critic.burn_in + 1)
    return SegmentBatch(*(field.to(device) for field in segment))


def step(system: TokenSystem, segment: SegmentBatch) -> dict[str, Tensor]:
    """Compute the gradients of the present phase; return the metrics."""
    return system.forward_backward(system.phase, system.phase.prepare(segment))


def gradients(system: TokenSystem) -> dict[str, Tensor]:
    module = system.phase.module
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("phase", "update_epochs"), [*((phase, 1) for phase in PHASES), ("actor_critic", 2)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_compute_the_same_as_the_whole_batch(phase: str, update_epochs: int, size: int) -> None:
    whole, split = make_system(), make_system(micro_batch_size=size)
    results = []
    for system in (whole, split):
        system.actor_critic.update_epochs = update_epochs
        system.start_phase(PHASES.index(phase))
        torch.manual_seed(0)
        metrics = step(system, make_phase_segment(system, phase))
        results.append((gradients(system), metrics, dict(system.phase.module.named_buffers())))
    (expected, expected_metrics, expected_buffers), (found, found_metrics, found_buffers) = results
    assert expected.keys() == found.keys()
    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())
    for name, gradient in expected.items():
        # float32 sums in another order; gradients here are at most around one.
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    assert expected_metrics.keys() == found_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(found_metrics[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert expected_buffers.keys() == found_buffers.keys()
    for name, buffer in expected_buffers.items():
        torch.testing.assert_close(found_buffers[name], buffer, atol=1e-6, rtol=1e-5)


def test_code_resets_are_restricted_once_the_dynamics_learn_the_codes() -> None:
    system = make_system()
    quantizer = system.tokenizer.quantizer
    assert isinstance(quantizer, VectorQuantizer)
    quantizer.num_updates.fill_(MIN_UPDATES)
    for phase, threshold in (("tokenizer", 0.1), ("dynamics", 0.001), ("tokenizer", 0.001)):
        system.start_phase(PHASES.index(phase))
        assert float(quantizer.reset_threshold) == pytest.approx(threshold)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_region_traces_without_breaks_and_computes_the_same(phase: str, kind: str) -> None:
    system = make_system(make_tokenizer_kind(kind))
    segment = make_phase_segment(system, phase)
    system.start_phase(PHASES.index(phase))
    state = copy.deepcopy(system.state_dict())
    results = []
    for enabled in (False, True):
        system.load_state_dict(state)
        torch.manual_seed(0)
        # This backend traces as Inductor does but needs no compiler. The GPU tests below use Inductor itself.
        with compiled_regions(enabled, backend="aot_eager"):
            metrics = step(system, segment)
        results.append((metrics, gradients(system)))
    for plain, compiled in zip(*results, strict=True):
        assert plain.keys() == compiled.keys()
        for name, value in plain.items():
            # Compiled group norms sum in another order, in each of the many layers of IRIS's CNN.
            atol = 5e-5 if kind == "frames" else 2e-6
            torch.testing.assert_close(compiled[name], value, atol=atol, rtol=1e-4, msg=name)


def test_dynamics_with_dropout_compile_for_training_and_for_steps() -> None:
    """The same regions run with dropout and without it."""
    dynamics = make_dynamics(transformer=TransformerConfig(dim=16, layers=2, heads=2, dropout=0.1))
    segment, network = make_segment(), dynamics.network
    frames, tokens = to_float(segment.frames), torch.zeros(3, FRAMES - 1, 4, dtype=torch.int64)
    with compiled_regions(backend="aot_eager"):
        dynamics.loss((segment, tokens)).loss.backward()
        with torch.no_grad():
            cache = network.prefill(frames[:, :3], segment.actions[:, :3], tokens[:, :3], segment.mask[:, :3])
            features = network.encode_frame(frames[:, 3])
            stepped, _, _ = network.predict_first_token(features, segment.actions[:, 3], cache)
            whole = dynamics.eval().predict(segment, tokens).tokens[:, 3, 0]
    # float32 sums in another order, of logits around one.
    torch.testing.assert_close(stepped, whole, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_on_frames_that_are_not_finite_changes_nothing(phase: str, device: str) -> None:
    """On a GPU the steps are captured, and the host does not wait for the device."""
    system = make_system(device=device)
    system.start_phase(PHASES.index(phase))
    module: Any = system.phase.module
    optimizer, _ = make_optimizer(module, module.optimizer_config)
    segment = make_phase_segment(system, phase, device)
    segment = segment._replace(frames=to_float(segment.frames))
    bad = segment._replace(frames=segment.frames * torch.nan)
    states, flags = [], []

    def train(batch: SegmentBatch) -> None:
        prepare, forward_backward = system.step_functions(system.phase)
        metrics = forward_backward(prepare(batch))
        mask_step(optimizer, metrics["skipped"])
        optimizer.step()
        flags.append(metrics["skipped"].bool())
        system.phase.after_batch(flags[-1])
        tensors = [*module.state_dict().values(), *(x for each in optimizer.state.values() for x in each.values())]
        states.append([tensor.clone() for tensor in tensors])

    train(segment)  # captures
    train(segment)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in (segment, bad, bad, segment):
            train(batch)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert [bool(flag) for flag in flags] == [False, False, False, True, True, False]
    for index in range(1, len(states)):
        same = all(torch.equal(a, b) for a, b in zip(states[index - 1], states[index], strict=True))
        assert same == bool(flags[index]), index
    assert all(bool(tensor.isfinite().all()) for tensor in states[-1])
    system.release_graphs()


# --- on a GPU ---


def run_steps(system: TokenSystem, phase: str, steps: int = 3, optimize: bool = False) -> list[dict[str, Tensor]]:
    """Run a few steps, each on other segments.

    Args:
        system: on a GPU; its steps are captured unless `use_compile` is false.
        phase: name of the phase.
        steps: number of batches.
        optimize: whether to take an optimizer step after each minibatch of the actor-critic.

    Returns:
        metrics, gradients, buffers and actions of each minibatch.
    """
    optimizer = torch.optim.SGD(system.actor_critic.network.parameters(), lr=0.1)
    system.start_phase(PHASES.index(phase))
    torch.cuda.manual_seed(0)
    results = []
    for seed in range(steps):
        segment = SegmentBatch(*(field.roll(seed, 0) for field in make_phase_segment(system, phase, "cuda")))
        prepare, forward_backward = system.step_functions(system.phase)
        batch = prepare(segment)
        actions = batch.actions.clone() if isinstance(batch, ActorCriticBatch) else torch.zeros(())
        for minibatch in system.phase.minibatches(batch):
            metrics = {name: value.clone() for name, value in forward_backward(minibatch).items()}
            buffers = {f"buffer {name}": b.clone() for name, b in system.phase.module.named_buffers()}
            results.append(metrics | gradients(system) | buffers | {"actions": actions.float()})
            if optimize:
                optimizer.step()
    return results


def check_equal(expected: list[dict[str, Tensor]], found: list[dict[str, Tensor]], tolerance: float = 1e-4) -> None:
    """Assert that two results of `run_steps` are equal but for rounding; report all differences.

    Args:
        expected: of plain steps.
        found: of others.
        tolerance: largest difference of a tensor, relative to its norm.
    """
    wrong = []
    for index, (plain, fast) in enumerate(zip(expected, found, strict=True)):
        assert plain.keys() == fast.keys()
        for name, value in plain.items():
            # float32 sums in another order. Double precision, because some buffers hold integers.
            difference, size = float((fast[name] - value).double().norm()), float(value.double().norm())
            if difference > tolerance * size + 1e-6:
                wrong.append(f"step {index}, {name}: difference {difference:.2e} of {size:.2e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_captured_steps_equal_plain_steps(phase: str, kind: str) -> None:
    """Random numbers are equal too, and what the capture changes is restored."""
    tokenizer = make_tokenizer_kind(kind)
    plain, captured = (make_system(copy.deepcopy(tokenizer), "cuda") for _ in range(2))
    plain.use_compile = False
    check_equal(run_steps(plain, phase), run_steps(captured, phase))


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
def test_captured_minibatches_equal_plain_minibatches() -> None:
    """With several optimizer steps on one batch, the graph reads the weights of the last step."""
    tokenizer = make_tokenizer_kind("cnn")
    plain, captured = (make_system(copy.deepcopy(tokenizer), "cuda") for _ in range(2))
    plain.use_compile = False
    for system in (plain, captured):
        system.actor_critic.update_epochs, system.actor_critic.num_minibatches = 2, 2
    expected = run_steps(plain, "actor_critic", optimize=True)
    check_equal(expected, run_steps(captured, "actor_critic", optimize=True))


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_compiled_and_captured_steps_equal_plain_steps(phase: str, kind: str) -> None:
    options: dict[str, Any] = {"dim": 32, "encoder_layers": (1, 1, 1), "decoder_layers": (1, 1, 1)}
    tokenizer = make_tokenizer(**options) if kind == "transformer" else make_tokenizer_kind(kind)
    # Heads of dimension 16, the smallest that the attention kernels accept.
    transformer = TransformerConfig(dim=32, layers=2, heads=2)
    plain, fast = (make_system(copy.deepcopy(tokenizer), "cuda", transformer=transformer) for _ in range(2))
    plain.use_compile = False
    expected = run_steps(plain, phase)
    # Some thirty layers of IRIS's autoencoder add to the rounding. On a CPU, gradients of plain steps differ from those
    # in float64 by 3e-5, and those of compiled steps by 6e-5; on a GPU the two differ by 2e-4.
    tolerance = 5e-4 if kind == "frames" else 1e-4
    with compiled_regions():
        check_equal(expected, run_steps(fast, phase), tolerance)
