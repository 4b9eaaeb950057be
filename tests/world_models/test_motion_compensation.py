"""Moved copies of a picture: against the definition, and what a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import make_cnn_tokenizer, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.data.segment import Window
from delta_iris.errors import UserError
from delta_iris.world_models.delta_iris.motion_compensation import Motion
from delta_iris.world_models.delta_iris.transformer_tokenizer import TransformerTokenizer
from delta_iris.world_models.tokens.tokenizer import Tokenizer

Make = Callable[..., Tokenizer]


def make_motion(copies: int, reach: int, seed: int = 0) -> Motion:
    torch.manual_seed(seed)
    return Motion(5, copies, reach, least_painted=0.05)


def moving(down: int, right: int, reach: int) -> Motion:
    """One copy whose kernel is a single offset."""
    motion = make_motion(1, reach)
    with torch.no_grad():
        motion.kernels.weight.zero_()
        motion.kernels.bias.fill_(-1e4)
        motion.kernels.bias.view(2, -1)[[0, 1], [reach + down, reach + right]] = 0
    return motion


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(2, 6), st.integers(0, 100))
def test_copies_are_what_kernels_say_pixel_by_pixel(
    copies: int, reach: int, height: int, width: int, seed: int
) -> None:
    motion = make_motion(copies, reach, seed)
    frames, vectors = torch.rand(2, 2, 3, height, width), torch.randn(2, 2, 5)
    with torch.no_grad():
        moved = motion.move(frames, vectors)
        shares = motion.kernels(vectors).view(2, 2, copies, 2, -1).softmax(-1)
    expected = torch.zeros_like(moved)
    for y in range(height):
        for x in range(width):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    source = frames[..., min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    share = shares[..., 0, dy + reach] * shares[..., 1, dx + reach]
                    expected[..., y, x] += share.unsqueeze(-1) * source.unsqueeze(2)
    # Sums of at most 81 float32 terms below one, in another order.
    torch.testing.assert_close(moved, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (0, -2), (-1, 2)])
def test_a_sharp_kernel_moves_every_pixel_whole(down: int, right: int) -> None:
    frames = torch.rand(2, 3, 3, 8, 9)
    moved = moving(down, right, reach=2).move(frames, torch.zeros(2, 3, 5))[:, :, 0]
    rolled = frames.roll((-down, -right), (-2, -1))
    assert torch.equal(moved[..., 2:-2, 2:-2], rolled[..., 2:-2, 2:-2])


def scrolling(seed: int) -> Window:
    """Noise that scrolls three pixels up or left, whole pictures at a time, as the action says."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, size = 8, 5, 32
    world = torch.randint(0, 256, (batch, 3, 64, 64), generator=generator, dtype=torch.uint8)
    actions = torch.randint(0, 2, (batch, length), generator=generator)
    frames, at = [], torch.zeros(batch, 2, dtype=torch.int64)
    for t in range(length):
        frames.append(
            torch.stack([w[:, y : y + size, x : x + size] for w, (y, x) in zip(world, at.tolist(), strict=True)])
        )
        at += 3 * torch.stack([actions[:, t] == 0, actions[:, t] == 1], 1)
    nothing = torch.zeros(batch, length)
    return Window(torch.stack(frames, 1), actions, nothing, nothing.long(), torch.ones(batch, length, dtype=torch.bool))


def error_after(steps: int, tokenizer: Tokenizer) -> float:
    """Of new scenes, as a share of what copying the last frame is wrong by."""
    optimizer = tokenizer.configure_optimizers()["optimizer"]
    for seed in range(steps):
        losses = tokenizer.training_step(scrolling(seed))
        optimizer.zero_grad()
        losses["loss"].backward()
        tokenizer.update_codebook()
        optimizer.step()
    errors = tokenizer.evaluate(scrolling(10_000))[0]
    l2, copy_l2 = (float(errors[name].total / errors[name].number) for name in ("l2", "copy_l2"))
    return l2 / copy_l2


def copies_all(tokenizer: Tokenizer) -> None:
    """Of the shares, the second is the last frame's: let it take all."""
    with torch.no_grad():
        if isinstance(tokenizer, TransformerTokenizer):
            tokenizer.decoder.paint.bias.view(-1, tokenizer.decoder.patch_size**2)[4] = 200.0
        else:
            tokenizer.decoder.layers[-1].bias[4] = 400.0


@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_painting_and_tokens_keep_a_gradient_where_all_is_copied(make: Make) -> None:
    gradients = {}
    for least in (0.0, 0.05):
        tokenizer = make(motions=2, least_painted=least)
        copies_all(tokenizer)
        painted = tokenizer.reconstruct(scrolling(0))[0]
        painted.square().mean().backward()
        code = next(module.code for module in tokenizer.modules() if hasattr(module, "code"))
        gradients[least] = code.weight.grad.abs().sum()
    assert gradients[0.0] == 0
    assert gradients[0.05] > 0


@pytest.mark.parametrize("chosen", range(5))
def test_a_pixel_is_what_its_shares_say(chosen: int) -> None:
    motion = make_motion(copies=3, reach=2)
    outputs, frames, vectors = torch.rand(2, 3, 8, 8, 9), torch.rand(2, 3, 3, 8, 9), torch.randn(2, 3, 5)
    outputs[:, :, 3 + chosen] = 200.0  # of the logits' softmax nothing is left for the others
    with torch.no_grad():
        sources = torch.cat([outputs[:, :, None, :3], frames.unsqueeze(2), motion.move(frames, vectors)], dim=2)
        assert torch.equal(motion(outputs, frames, vectors), sources[:, :, chosen])


@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_a_least_share_is_painted_while_gradients_are_computed_in_training(make: Make) -> None:
    tokenizer, none, window = make(motions=2, least_painted=0.5), make(motions=2, least_painted=0.0), scrolling(0)
    painted, plain = (each.reconstruct(window)[0] for each in (tokenizer, none))
    assert not torch.allclose(painted, plain, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(tokenizer.reconstruct(window)[0], plain)
    assert torch.equal(tokenizer.eval().reconstruct(window)[0], plain)


@pytest.mark.parametrize(
    ("make", "options"), [(make_tokenizer, {"dim": 32, "warmup_steps": 0}), (make_cnn_tokenizer, {})]
)
def test_what_scrolls_is_moved_not_painted_again(make: Make, options: dict[str, int]) -> None:
    # Of noise nothing fits in a few tokens; only what enters at the edges, a tenth of the picture, must be guessed.
    assert error_after(60, make(motions=4, learning_rate=3e-3, **options)) < 0.3
    # At best the mean of all noise, half of what copying is wrong by.
    assert error_after(60, make(motions=0, learning_rate=3e-3, **options)) > 0.4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"motions": -1}, r"motions is -1: give 0"),
        ({"least_painted": 1.0}, r"least_painted is 1\.0: give a share from 0 to below 1"),
        ({"least_painted": -0.1}, r"least_painted is -0\.1"),
    ],
)
@pytest.mark.parametrize("make", [make_tokenizer, make_cnn_tokenizer])
def test_what_cannot_be_is_told(make: Make, changes: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(**changes)
