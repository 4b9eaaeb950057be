"""What is compiled, captured or cut into parts computes the same as the plain step."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import FRAMES, make_agent, make_cnn_tokenizer, make_tokenizer, make_window, make_world_model
from torch import Tensor

from delta_iris.acceleration.compile import accelerated
from delta_iris.acceleration.inference_copy import FrozenCopy
from delta_iris.actor_critic.module import Lesson
from delta_iris.data.segment import Window, to_float
from delta_iris.nn.cnn import ResidualBlock
from delta_iris.nn.kv_cache import KVCache
from delta_iris.nn.transformer import TILE, Transformer, block_mask, cached_attention, rotation, sparse_block_mask
from delta_iris.training.learner import DeltaIris
from delta_iris.training.schedule import PHASES
from delta_iris.world_models.tokens.quantizer import GROWN_UP
from delta_iris.world_models.tokens.tokenizer import Tokenizer

BATCH = 6


def make_system(tokenizer: Tokenizer | None = None, device: str = "cpu", **world_model: int) -> DeltaIris:
    system = DeltaIris(tokenizer or make_tokenizer(), make_world_model(**world_model), make_agent()).to(device)
    # Without a Trainer there is nothing that would scale or reduce.
    system.manual_backward = lambda loss: loss.backward()
    return system


TOKENIZERS = ["transformer", "cnn", "cnn moved"]


def make_kind(kind: str) -> Tokenizer:
    if kind == "transformer":
        return make_tokenizer()
    return make_cnn_tokenizer(motions=2 if kind == "cnn moved" else 0)


def window_for(system: DeltaIris, phase: str, device: str = "cpu") -> Window:
    window = make_window(BATCH, padded=True)
    frames = system.agent.burn_in + 1 if phase == "agent" else window.valid.shape[1]
    window.valid[1] = True
    return Window(*(field[:, :frames].to(device) for field in window))


def gradients(system: DeltaIris) -> dict[str, Tensor]:
    child = system.child(system.phase)
    return {name: p.grad.clone() for name, p in child.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("phase", "passes"), [*((phase, 1) for phase in PHASES), ("agent", 2)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_batch_give_what_the_whole_gives(phase: str, passes: int, size: int) -> None:
    system, cut = make_system(), make_system()
    for each in (system, cut):
        each.agent.passes = passes
    window = window_for(system, phase)
    for each, micro_batch_size in ((system, None), (cut, size)):
        each.begin_phase(phase, micro_batch_size)
        torch.manual_seed(0)
        each.metrics = each.backward_step(each.inputs(window))
    expected, found = gradients(system), gradients(cut)
    assert expected.keys() == found.keys()
    assert any(gradient.abs().max() > 1e-4 for gradient in expected.values())
    for name, gradient in expected.items():
        # float32 sums in another order; gradients here are at most around one.
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    assert system.metrics.keys() == cut.metrics.keys()
    for name, value in system.metrics.items():
        torch.testing.assert_close(cut.metrics[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for name, buffer in system.child(phase).named_buffers():
        torch.testing.assert_close(dict(cut.child(phase).named_buffers())[name], buffer, atol=1e-6, rtol=1e-5)


def test_codewords_settle_when_a_world_model_begins_to_learn_them() -> None:
    system = make_system()
    system.tokenizer.quantizer.updates.fill_(GROWN_UP)
    for phase, threshold in (("tokenizer", 0.1), ("world_model", 0.001), ("tokenizer", 0.001)):
        system.begin_phase(phase)
        assert float(system.tokenizer.quantizer.threshold) == pytest.approx(threshold)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_region_traces_as_a_whole_and_gives_the_same(phase: str, kind: str) -> None:
    system = make_system(make_kind(kind))
    window = window_for(system, phase)
    system.begin_phase(phase)
    state = copy.deepcopy(system.state_dict())
    results = []
    for enabled in (False, True):
        system.load_state_dict(state)
        torch.manual_seed(0)
        # The tracing of the real thing with a backend that needs no compiler; inductor itself is tried on a GPU.
        with accelerated(enabled, backend="aot_eager"):
            losses = system.backward_step(system.inputs(window))
        results.append((losses, gradients(system)))
    for before, after in zip(*results, strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, atol=2e-6, rtol=1e-4, msg=name)


def test_a_model_with_dropout_compiles_to_train_and_to_step() -> None:
    """One region serves both, with and without dropout."""
    model, window = make_world_model(dropout=0.1), make_window()
    frames, tokens = to_float(window.frames), torch.zeros(3, FRAMES - 1, 4, dtype=torch.int64)
    with accelerated(backend="aot_eager"):
        model.losses(window, tokens)["token_loss"].backward()
        with torch.no_grad():
            cache = model.dynamics.start(frames[:, :3], window.actions[:, :3], tokens[:, :3], window.valid[:, :3])
            stepped, _, _ = model.dynamics.act(model.dynamics.look(frames[:, 3]), window.actions[:, 3], cache)
            whole = model.eval().predict(window, tokens).tokens[:, 3, 0]
    # float32 sums in another order, of logits around one.
    torch.testing.assert_close(stepped, whole, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(("frames", "block"), [(9, 5), (21, 65), (20, 66), (4, 64), (3, 128), (7, 37)])
def test_sparse_masks_allow_what_dense_ones_do(frames: int, block: int) -> None:
    valid = torch.ones(5, frames, dtype=torch.bool)
    valid[0, : frames // 2], valid[1, 2:], valid[2, 0], valid[3] = False, False, False, False
    length = frames * block
    dense = block_mask(valid, block, within="block")[:, 0, :, :length]
    sparse = sparse_block_mask(valid, block)
    index = torch.arange(length)
    rows = torch.arange(len(valid)).view(-1, 1, 1)
    assert torch.equal(sparse.mask_mod(rows, rows, index[:, None], index[None, :]), dense)
    # By tiles: nothing is allowed in those left out, and everything in those said to be full.
    tiles = -(-length // TILE)
    padded = torch.nn.functional.pad(dense, (0, tiles * TILE - length) * 2)
    by_tile = padded.view(len(valid), tiles, TILE, tiles, TILE).transpose(2, 3).flatten(3)
    partial, full = (torch.zeros(len(valid), tiles, tiles, dtype=torch.bool) for _ in range(2))
    lists = (sparse.kv_num_blocks, sparse.kv_indices), (sparse.full_kv_num_blocks, sparse.full_kv_indices)
    for marks, (numbers, indices) in zip((partial, full), lists, strict=True):
        for b in range(len(valid)):
            for i in range(tiles):
                marks[b, i, indices[b, 0, i, : numbers[b, 0, i]]] = True
    assert not by_tile[~(partial | full)].any()
    # The last rows of a full tile may lie beyond the sequence.
    beyond = (torch.arange(tiles * TILE) >= length).view(tiles, 1, TILE, 1).expand(tiles, tiles, TILE, TILE).flatten(2)
    assert (by_tile | beyond)[full].all()
    assert not (partial & full).any()
    # And no more work than there is, without padding: partial tiles hide something, but at the ragged end.
    inner = length // TILE
    assert (by_tile.any(-1) & ~by_tile.all(-1))[4, :inner, :inner][partial[4, :inner, :inner]].all()
    assert by_tile[4].any(-1)[(partial | full)[4]].all()


def test_a_frozen_copy_follows_and_keeps_its_memory(tokenizer) -> None:
    frozen = FrozenCopy(tokenizer, torch.bfloat16)
    places = [p.data_ptr() for p in frozen.module.parameters()]
    window = make_window()
    tokenizer.training_step(window)["loss"].backward()
    tokenizer.update_codebook()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1)
    frozen.refresh()
    assert places == [p.data_ptr() for p in frozen.module.parameters()]
    assert not any(p.requires_grad for p in frozen.module.parameters())
    for copied, source in zip(frozen.module.parameters(), tokenizer.parameters(), strict=True):
        assert torch.equal(copied, source.to(torch.bfloat16))
    assert torch.equal(frozen.module.quantizer.codebook, tokenizer.quantizer.codebook)
    assert frozen.module.quantizer.codebook.dtype == torch.float32


# --- on a GPU ---


@pytest.fixture
def full_precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def check_attention(dim: int, blocks: int, size: int) -> None:
    """Outputs and gradients of a stack with two heads, plain and as it runs accelerated."""
    torch.manual_seed(0)
    stack = Transformer(dim, 2, 2).cuda()
    valid = torch.ones(3, blocks, dtype=torch.bool, device="cuda")
    valid[0, : blocks // 3], valid[1, -blocks // 4 :] = False, False
    x = torch.randn(3, blocks * size, dim, device="cuda", requires_grad=True)
    results = []
    for enabled in (False, True):
        with accelerated(enabled):
            rotary = rotation(torch.arange(blocks, device="cuda").repeat_interleave(size), dim // 2)
            y = stack(x, stack.window_mask(valid, size), rotary)
            y.square().mean().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in stack.parameters())])
        x.grad = None
        stack.zero_grad()
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).norm() < 1e-5 * plain.norm()


@pytest.mark.gpu
def test_sparse_attention_equals_dense_attention(full_precision) -> None:
    check_attention(128, 21, 65)


@pytest.mark.gpu
@pytest.mark.parametrize(("blocks", "size"), [(9, 17), (21, 5), (11, 33)])
def test_compiled_attention_equals_plain_at_odd_lengths(full_precision, blocks: int, size: int) -> None:
    """Narrow heads: strides that are no multiple of 128 bytes, to which Inductor would pad them."""
    check_attention(32, blocks, size)


def run_steps(system: DeltaIris, phase: str, steps: int = 3, again: bool = False) -> list[dict[str, Tensor]]:
    """Losses, gradients, buffers and actions of a few steps, each on other windows; `again`, with optimizer steps."""
    optimizer = torch.optim.SGD(system.agent.network.parameters(), lr=0.1)
    system.begin_phase(phase)
    torch.cuda.manual_seed(0)
    results = []
    for seed in range(steps):
        window = Window(*(field.roll(seed, 0) for field in window_for(system, phase, "cuda")))
        make_inputs, learn = system._step_functions()
        inputs = make_inputs(window)
        actions = inputs.actions.clone() if isinstance(inputs, Lesson) else torch.zeros(())
        for lesson in system.lessons(inputs):
            losses = {name: value.clone() for name, value in learn(lesson).items()}
            buffers = {f"buffer {name}": b.clone() for name, b in system.child(phase).named_buffers()}
            results.append(losses | gradients(system) | buffers | {"actions": actions.float()})
            if again:
                optimizer.step()
    return results


def check_equal(expected: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> None:
    wrong = []
    for step, (plain, fast) in enumerate(zip(expected, found, strict=True)):
        assert plain.keys() == fast.keys()
        for name, value in plain.items():
            # float32 sums in another order; double, for a buffer counts in whole numbers.
            off, size = float((fast[name] - value).double().norm()), float(value.double().norm())
            if off > 1e-4 * size + 1e-6:
                wrong.append(f"step {step}, {name}: off by {off:.2e} of {size:.2e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("block", "within", "new", "position"),
    [(6, "token", 3, 29), (6, "token", 1, 13), (6, "token", 2, 0), (10, "block", 10, 20), (66, "block", 66, 132)],
)
def test_the_decoding_kernel_equals_masked_attention(
    full_precision, block: int, within: str, new: int, position: int
) -> None:
    device = "cuda"
    torch.manual_seed(0)
    valid = torch.ones(2, 7, dtype=torch.bool, device=device)
    valid[0, :2] = False
    cache = KVCache(1, 2, 64, valid, block, within, torch.float32)
    # What is not written yet is there too, and must not be seen.
    for part in (cache.keys, cache.values):
        part.normal_()
    cache.position = position
    qkv = torch.randn(2, new, 3, 2, 64, device=device)
    mask = block_mask(valid, block, within=within, queries=cache.next(new), keys=cache.tokens)
    other = copy.deepcopy(cache)
    expected, found = cached_attention(qkv, cache, 0, mask), cached_attention(qkv, other, 0, None)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)
    assert torch.equal(cache.keys, other.keys)
    assert torch.equal(cache.values, other.values)


@pytest.mark.gpu
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_captured_steps_equal_plain_ones(full_precision, phase: str, kind: str) -> None:
    """The random numbers too, and what the capture itself changes is put back."""
    tokenizer = make_kind(kind)
    system, captured = (make_system(copy.deepcopy(tokenizer), "cuda") for _ in range(2))
    system.accelerate = False
    check_equal(run_steps(system, phase), run_steps(captured, phase))


@pytest.mark.gpu
def test_captured_lessons_equal_plain_ones(full_precision) -> None:
    """Several optimizer steps on parts of what was imagined once: the graph reads the weights as they are by then."""
    tokenizer = make_kind("cnn")
    system, captured = (make_system(copy.deepcopy(tokenizer), "cuda") for _ in range(2))
    system.accelerate = False
    for each in (system, captured):
        each.agent.passes, each.agent.parts = 2, 2
    check_equal(run_steps(system, "agent", again=True), run_steps(captured, "agent", again=True))


@pytest.mark.gpu
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_compiled_and_captured_steps_equal_plain_ones(full_precision, phase: str, kind: str) -> None:
    options = {"dim": 32, "encoder_layers": (1, 1, 1), "decoder_layers": (1, 1, 1)}
    tokenizer = make_tokenizer(**options) if kind == "transformer" else make_kind(kind)
    # Heads of 16, the least that the attention kernels take.
    system, fast = (make_system(copy.deepcopy(tokenizer), "cuda", dim=32) for _ in range(2))
    system.accelerate = False
    expected = run_steps(system, phase)
    with accelerated():
        check_equal(expected, run_steps(fast, phase))


@pytest.mark.parametrize("channels", [8, 64])
def test_group_norm_as_it_is_compiled_equals_pytorchs(channels: int) -> None:
    """64 channels make groups of two; what is compiled is written in other terms."""
    torch.manual_seed(0)
    block = ResidualBlock(channels, channels)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    pictures = (torch.randn(3, channels, 6, 8) + 1).to(memory_format=torch.channels_last)
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend="eager")):
        x = pictures.clone().requires_grad_()
        y = function(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), [x, *block.parameters()])])
    for plain, other in zip(*results, strict=True):
        # A bias that the next norm takes off again has a gradient of zero, but for rounding.
        assert (plain - other).norm() < 1e-5 * plain.norm() + 3e-5


def test_a_stack_of_no_layers_steps_as_it_transforms() -> None:
    stack, x = Transformer(16, 0, 2), torch.randn(2, 6, 16)
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(stack.step(x, stack.make_cache(valid, 2, "block")), x)
