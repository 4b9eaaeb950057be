"""Tests of the CNN tokenizer: what a transition depends on, sizes, learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.cnn import CNNConfig
from delta_iris.world_models.delta_iris import CNNTokenizer
from delta_iris.world_models.delta_iris.cnn_tokenizer import token_grid
from tests.helpers import ACTIONS, CODES, FRAMES, make_cnn_tokenizer, make_moving_ramp, make_segment, scramble
from tests.world_models.tokenizer_helpers import decode, encode_latents, train_step


@pytest.fixture(params=[0, 2], ids=["without_motion", "with_motion"])
def cnn(request: pytest.FixtureRequest) -> CNNTokenizer:
    return make_cnn_tokenizer(num_transforms=request.param)


def random_tokens() -> Tensor:
    """Tokens for the transitions of `make_segment()`."""
    return torch.randint(0, CODES, (3, FRAMES - 1, 4), generator=torch.Generator().manual_seed(0))


def latents_and_frames(cnn: CNNTokenizer, segment: SegmentBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Encode a segment, and decode it from given tokens."""
    with torch.no_grad():
        return encode_latents(cnn, segment), decode(cnn, segment, tokens)


def change(segment: SegmentBatch, field: str, t: int) -> SegmentBatch:
    """A copy of the segment with the frames or actions at t changed."""
    changed = segment._replace(**{field: getattr(segment, field).clone()})
    getattr(changed, field)[:, t] = (getattr(segment, field)[:, t] + 1) % ACTIONS
    return changed


@pytest.mark.parametrize("t", [0, 4, FRAMES - 2])
def test_a_transition_depends_only_on_its_two_frames_and_its_action(cnn: CNNTokenizer, t: int) -> None:
    segment, tokens = make_segment(), random_tokens()
    latents, decoded = latents_and_frames(cnn, segment, tokens)
    others = torch.arange(FRAMES)
    changed = scramble(segment, ((others != t) & (others != t + 1)).expand(3, FRAMES))
    # The action at the later frame belongs to the next transition.
    changed.actions[:, t + 1] = (segment.actions[:, t + 1] + 1) % ACTIONS
    changed_latents, changed_decoded = latents_and_frames(cnn, changed, tokens)
    # A convolution over a batch with other pictures in it may round differently.
    torch.testing.assert_close(latents[:, t], changed_latents[:, t], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(decoded[:, t], changed_decoded[:, t], atol=1e-6, rtol=1e-6)
    for field, frame in (("frames", t), ("frames", t + 1), ("actions", t)):
        changed_latents, _ = latents_and_frames(cnn, change(segment, field, frame), tokens)
        assert not torch.allclose(latents[:, t], changed_latents[:, t], atol=1e-6)


def test_decoding_depends_on_the_last_frame_the_action_and_each_token(cnn: CNNTokenizer) -> None:
    segment, tokens = make_segment(), random_tokens()
    _, decoded = latents_and_frames(cnn, segment, tokens)
    for k in range(4):
        other = tokens.clone()
        other[:, 2, k] = (tokens[:, 2, k] + 1) % CODES
        _, changed_decoded = latents_and_frames(cnn, segment, other)
        assert not torch.allclose(decoded[:, 2], changed_decoded[:, 2], atol=1e-6)
        torch.testing.assert_close(decoded[:, 3:], changed_decoded[:, 3:], atol=1e-6, rtol=1e-6)
    for field in ("frames", "actions"):
        _, changed_decoded = latents_and_frames(cnn, change(segment, field, 2), tokens)
        assert not torch.allclose(decoded[:, 2], changed_decoded[:, 2], atol=1e-6)


def test_decoding_step_by_step_equals_the_whole_segment(cnn: CNNTokenizer) -> None:
    segment = make_segment()
    tokens = torch.randint(0, CODES, (3, FRAMES - 1, 4))
    _, decoded = latents_and_frames(cnn, segment, tokens)
    frames, codes = to_float(segment.frames), cnn.quantizer.lookup(tokens)
    cnn.make_decoder_cache(3)
    with torch.no_grad():
        for t in range(FRAMES - 1):
            at = slice(t, t + 1)
            inputs = frames[:, at], segment.actions[:, at], codes[:, at], segment.transition_mask[:, at]
            for step in (cnn.decode(*inputs), cnn.decode(*inputs, None, cnn.encode_frame(frames[:, at]))):
                torch.testing.assert_close(step[:, 0], decoded[:, t], atol=1e-6, rtol=1e-5)


def test_learns_to_reconstruct(cnn: CNNTokenizer) -> None:
    segment = make_moving_ramp()
    optimizer = torch.optim.AdamW(cnn.parameters(), lr=3e-3)
    for _ in range(80):
        train_step(cnn, segment, optimizer)
    errors, _ = cnn.evaluate(segment)
    assert errors["l2"].total < 0.5 * errors["copy_l2"].total


def test_latent_maps_are_cut_into_nearly_square_cells() -> None:
    assert token_grid(4, 8, 8) == (2, 2)
    assert token_grid(8, 8, 16) == (2, 4)
    assert token_grid(1, 8, 8) == (1, 1)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="tokens_per_frame 5 cannot cut the CNN's 8×8 latent map"):
        token_grid(5, 8, 8)
    with pytest.raises(ValueError, match="tokens_per_frame 3 cannot cut the CNN's 16×16 latent map"):
        CNNTokenizer((32, 32), ACTIONS, FRAMES, 3, cnn=CNNConfig(downsample_after=(1,)))
