"""Tests of IRIS's tokenizer: what a frame's tokens depend on, sizes, the loss, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from delta_iris.data.segment import to_float
from delta_iris.errors import UserError
from delta_iris.world_models.iris.autoencoder import AutoencoderConfig, SelfAttention
from delta_iris.world_models.iris.frame_tokenizer import FrameLossWeights, FrameTokenizer, count_halvings
from tests.helpers import CODES, FRAMES, SIZE, make_frame_tokenizer, make_moving_ramp, make_segment, scramble
from tests.world_models.tokenizer_helpers import decode, encode_latents, train_step


def test_tokens_depend_on_their_frame_only() -> None:
    tokenizer, segment, t = make_frame_tokenizer(), make_segment(padded=True), 4
    changed = scramble(segment, (torch.arange(FRAMES) != t).expand(3, FRAMES))
    changed.actions[:, t] += 1
    with torch.no_grad():
        before, after = encode_latents(tokenizer, segment), encode_latents(tokenizer, changed)
    assert before.shape == (3, FRAMES, 4, 8)
    # A convolution over a batch with other pictures in it may round differently.
    torch.testing.assert_close(before[:, t], after[:, t], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, t + 1], after[:, t + 1], atol=1e-3)


def test_a_frame_is_decoded_from_its_tokens_only() -> None:
    tokenizer, segment, t = make_frame_tokenizer(), make_segment(), 4
    tokens = torch.randint(0, CODES, (3, FRAMES, 4), generator=torch.Generator().manual_seed(0))
    other = (tokens + 1) % CODES
    other[:, t] = tokens[:, t]
    changed = scramble(segment, torch.ones(3, FRAMES, dtype=torch.bool))
    with torch.no_grad():
        before, after = decode(tokenizer, segment, tokens), decode(tokenizer, changed, other)
    assert before.shape == segment.frames.shape
    torch.testing.assert_close(before[:, t], after[:, t], atol=1e-5, rtol=1e-5)
    # A codebook as it is initialized hardly differs from code to code, but for rounding it would not at all.
    assert not torch.equal(before[:, t + 1], after[:, t + 1])


def test_loss_equals_its_definition() -> None:
    weights = FrameLossWeights(l1=0.3, l2=0.7, codebook=0.2, commitment=0.5)
    tokenizer, segment = make_frame_tokenizer(loss_weights=weights), make_segment(padded=True)
    output, reconstruction = tokenizer.loss(segment), tokenizer.reconstruct(segment)
    error = (reconstruction.frames - to_float(segment.frames))[segment.mask]
    distance = reconstruction.latents - tokenizer.quantizer.lookup(reconstruction.tokens)
    squared = distance[segment.mask].square().mean()
    expected = {"l1": error.abs().mean(), "l2": error.square().mean(), "commitment": squared, "codebook": squared}
    assert output.metrics.keys() == expected.keys()
    for name, value in expected.items():
        # float32 sums in another order.
        torch.testing.assert_close(output.metrics[name], value.detach(), rtol=1e-5, atol=1e-6)
    total = sum(getattr(weights, name) * value for name, value in expected.items())
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("term", ["codebook", "commitment"])
def test_each_of_the_two_distances_moves_one_side(term: str) -> None:
    """The codebook's moves codewords to latents, the commitment moves latents to codewords."""
    weights = FrameLossWeights(**({"l1": 0.0, "l2": 0.0, "codebook": 0.0, "commitment": 0.0} | {term: 1.0}))
    tokenizer = make_frame_tokenizer(loss_weights=weights)
    tokenizer.loss(make_segment()).loss.backward()

    def norm(parameters: Any) -> float:
        return float(sum(p.grad.abs().sum() for p in parameters if p.grad is not None))

    codebook, encoder = norm(tokenizer.quantizer.parameters()), norm(tokenizer.encoder.parameters())
    assert (codebook > 0) == (term == "codebook")
    assert (encoder > 0) == (term == "commitment")


def test_padding_changes_no_loss() -> None:
    tokenizer, segment = make_frame_tokenizer(), make_segment(padded=True)
    changed = scramble(segment, ~segment.mask)
    torch.testing.assert_close(tokenizer.loss(segment).loss, tokenizer.loss(changed).loss, rtol=1e-5, atol=1e-6)


def test_learns_to_reconstruct_single_frames() -> None:
    tokenizer, ramp = make_frame_tokenizer(tokens=16), make_moving_ramp().select([0])
    frames = type(ramp)(*(field.transpose(0, 1)[::2] for field in ramp))
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    first = train_step(tokenizer, frames, optimizer)
    for _ in range(60):
        last = train_step(tokenizer, frames, optimizer)
    assert last["l2"] < 0.1 * first["l2"]
    # It was trained on every other frame; those between are measured too, against copying the last one.
    errors, tokens = tokenizer.evaluate(ramp)
    assert errors["l2"].total < errors["copy_l2"].total
    assert tokens.shape == (1, FRAMES, 16)


def test_attention_stands_where_it_is_configured() -> None:
    def count(**options: Any) -> tuple[int, int]:
        tokenizer = make_frame_tokenizer(autoencoder=AutoencoderConfig(8, **options))
        halves = tokenizer.encoder, tokenizer.decoder
        one, other = (sum(isinstance(each, SelfAttention) for each in half.modules()) for half in halves)
        return one, other

    # One in the middle; one after each residual block at 16×16 and 8×8, of which the decoder has one more.
    assert count(attention_at=()) == (1, 1)
    assert count(attention_at=(8, 16), residual_blocks=2) == (5, 7)
    assert count(attention_at=(4,), residual_blocks=1) == (2, 3)


def test_tokens_say_how_often_a_frame_is_halved() -> None:
    assert count_halvings((64, 64), 64) == 3
    assert count_halvings((64, 64), 16) == 4
    assert count_halvings((32, 64), 32) == 3
    with pytest.raises(
        ValueError, match=r"tokens_per_frame 5 cannot be reached .*: choose one of \[256, 64, 16, 4, 1\]"
    ):
        FrameTokenizer(SIZE, 5, FRAMES, 5)


def test_a_perceptual_loss_without_its_file_raises(tmp_path: Path) -> None:
    weights = FrameLossWeights(perceptual=1.0)
    with pytest.raises(ValueError, match="it needs a file, perceptual_weights"):
        make_frame_tokenizer(loss_weights=weights)
    # An agent that was trained with it can be loaded without; training needs it.
    tokenizer = make_frame_tokenizer(loss_weights=weights, perceptual_weights=tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"none\.pt.* does not exist"):
        tokenizer.configure_optimizers()
