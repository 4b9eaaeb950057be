"""Tests of motion compensation: against its definition, and inside tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.world_models.delta_iris import CNNTokenizer, TransformerTokenizer
from delta_iris.world_models.delta_iris.motion_compensation import MotionCompensation
from delta_iris.world_models.tokens.tokenizer import Tokenizer
from tests.helpers import make_cnn_tokenizer, make_tokenizer
from tests.world_models.tokenizer_helpers import MakeTokenizer, train_step


def make_motion(num_transforms: int, max_displacement: int, seed: int = 0) -> MotionCompensation:
    """Motion compensation from vectors of five numbers."""
    torch.manual_seed(seed)
    return MotionCompensation(5, num_transforms, max_displacement, min_synthesis_weight=0.05)


def make_translation(down: int, right: int, max_displacement: int) -> MotionCompensation:
    """One copy whose kernel is a single offset."""
    motion = make_motion(1, max_displacement)
    with torch.no_grad():
        motion.kernels.weight.zero_()
        motion.kernels.bias.fill_(-1e4)
        motion.kernels.bias.view(2, -1)[[0, 1], [max_displacement + down, max_displacement + right]] = 0
    return motion


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(2, 6), st.integers(0, 100))
def test_copies_equal_the_definition_pixel_by_pixel(
    num_transforms: int, max_displacement: int, height: int, width: int, seed: int
) -> None:
    motion = make_motion(num_transforms, max_displacement, seed)
    frames, vectors = torch.rand(2, 2, 3, height, width), torch.randn(2, 2, 5)
    with torch.no_grad():
        copies = motion.transform(frames, vectors)
        weights = motion.kernels(vectors).view(2, 2, num_transforms, 2, -1).softmax(-1)
    expected = torch.zeros_like(copies)
    offsets = range(-max_displacement, max_displacement + 1)
    for y in range(height):
        for x in range(width):
            for dy in offsets:
                for dx in offsets:
                    source = frames[..., min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    weight = weights[..., 0, dy + max_displacement] * weights[..., 1, dx + max_displacement]
                    expected[..., y, x] += weight.unsqueeze(-1) * source.unsqueeze(2)
    # Sums of at most 81 float32 terms below one, in another order.
    torch.testing.assert_close(copies, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (0, -2), (-1, 2)])
def test_a_kernel_of_a_single_offset_translates_the_picture(down: int, right: int) -> None:
    frames = torch.rand(2, 3, 3, 8, 9)
    moved = make_translation(down, right, max_displacement=2).transform(frames, torch.zeros(2, 3, 5))[:, :, 0]
    rolled = frames.roll((-down, -right), (-2, -1))
    assert torch.equal(moved[..., 2:-2, 2:-2], rolled[..., 2:-2, 2:-2])


def make_scrolling_segment(seed: int) -> SegmentBatch:
    """Noise that scrolls by three pixels, up or left depending on the action."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, size = 8, 5, 32
    world = torch.randint(0, 256, (batch, 3, 64, 64), generator=generator, dtype=torch.uint8)
    actions = torch.randint(0, 2, (batch, length), generator=generator)
    frames, corner = [], torch.zeros(batch, 2, dtype=torch.int64)
    for t in range(length):
        corners = zip(world, corner.tolist(), strict=True)
        frames.append(torch.stack([w[:, y : y + size, x : x + size] for w, (y, x) in corners]))
        corner += 3 * torch.stack([actions[:, t] == 0, actions[:, t] == 1], 1)
    zeros, mask = torch.zeros(batch, length), torch.ones(batch, length, dtype=torch.bool)
    return SegmentBatch(torch.stack(frames, 1), actions, zeros, zeros.long(), mask, ~mask)


def relative_error_after(steps: int, tokenizer: Tokenizer) -> float:
    """Train, then return the error on new scenes relative to that of copying the last frame."""
    optimizer = tokenizer.configure_optimizers()["optimizer"]
    for seed in range(steps):
        train_step(tokenizer, make_scrolling_segment(seed), optimizer)
    errors = tokenizer.evaluate(make_scrolling_segment(10_000))[0]
    l2, copy_l2 = (float(errors[name].total / errors[name].weight) for name in ("l2", "copy_l2"))
    return l2 / copy_l2


def copy_everything(tokenizer: Tokenizer) -> None:
    """Give all weight to the last frame, whose mixing logit is the second."""
    with torch.no_grad():
        if isinstance(tokenizer, TransformerTokenizer):
            tokenizer.decoder.to_pixels.bias.view(-1, tokenizer.decoder.patch_size**2)[4] = 200.0
        else:
            assert isinstance(tokenizer, CNNTokenizer)
            last = tokenizer.decoder.layers[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.bias[4] = 400.0


def code_gradient(tokenizer: Tokenizer) -> Tensor:
    """The gradient of the layer that the decoder reads codewords with."""
    assert isinstance(tokenizer, TransformerTokenizer | CNNTokenizer)
    code = tokenizer.decoder.code if isinstance(tokenizer, TransformerTokenizer) else tokenizer.code
    assert code.weight.grad is not None
    return code.weight.grad


@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_a_minimum_weight_keeps_a_gradient_where_everything_is_copied(make: MakeTokenizer) -> None:
    gradients = {}
    for weight in (0.0, 0.05):
        tokenizer = make(num_transforms=2, min_synthesis_weight=weight)
        copy_everything(tokenizer)
        tokenizer.reconstruct(make_scrolling_segment(0)).frames.square().mean().backward()
        gradients[weight] = code_gradient(tokenizer).abs().sum()
    assert gradients[0.0] == 0
    assert gradients[0.05] > 0


@pytest.mark.parametrize("chosen", range(5))
def test_a_pixel_comes_from_the_source_of_the_largest_logit(chosen: int) -> None:
    motion = make_motion(num_transforms=3, max_displacement=2)
    outputs, frames, vectors = torch.rand(2, 3, 8, 8, 9), torch.rand(2, 3, 3, 8, 9), torch.randn(2, 3, 5)
    outputs[:, :, 3 + chosen] = 200.0  # the softmax leaves nothing to the others
    with torch.no_grad():
        copies = motion.transform(frames, vectors)
        sources = torch.cat([outputs[:, :, None, :3], frames.unsqueeze(2), copies], dim=2)
        assert torch.equal(motion(outputs, frames, vectors), sources[:, :, chosen])


@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_the_minimum_weight_applies_only_while_gradients_are_computed_in_training(make: MakeTokenizer) -> None:
    segment = make_scrolling_segment(0)
    tokenizer, none = (make(num_transforms=2, min_synthesis_weight=weight) for weight in (0.5, 0.0))
    frames, plain = (each.reconstruct(segment).frames for each in (tokenizer, none))
    assert not torch.allclose(frames, plain, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(tokenizer.reconstruct(segment).frames, plain)
    tokenizer.eval()
    assert torch.equal(tokenizer.reconstruct(segment).frames, plain)


@pytest.mark.parametrize(("make", "options"), [(make_tokenizer, {"dim": 32}), (make_cnn_tokenizer, {})])
def test_scrolling_pictures_are_learned_with_motion_compensation(make: MakeTokenizer, options: dict[str, Any]) -> None:
    options = options | {"optimizer": OptimizerConfig(learning_rate=3e-3)}
    # A few tokens cannot hold noise. Only what enters at the edges, a tenth of the picture, must be guessed.
    assert relative_error_after(60, make(num_transforms=4, **options)) < 0.3
    # The best prediction is the mean of all noise, whose error is half of copying's.
    assert relative_error_after(60, make(num_transforms=0, **options)) > 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_transforms": -1}, r"num_transforms is -1: it must be 0"),
        ({"min_synthesis_weight": 1.0}, r"min_synthesis_weight is 1\.0: it must be at least 0 and below 1"),
        ({"min_synthesis_weight": -0.1}, r"min_synthesis_weight is -0\.1"),
    ],
)
@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_invalid_arguments_raise(make: MakeTokenizer, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
