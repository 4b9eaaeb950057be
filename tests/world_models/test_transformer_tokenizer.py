"""Tests of the Transformer tokenizer: causality, padding, caches, learning."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from delta_iris.data.segment import to_float
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.world_models.delta_iris import TransformerTokenizer
from delta_iris.world_models.delta_iris.encoder import Encoder
from tests.helpers import ACTIONS, FRAMES, make_moving_ramp, make_segment, make_tokenizer, scramble
from tests.world_models.tokenizer_helpers import decode, encode_latents, train_step

VARIANTS: list[dict[str, Any]] = [
    {},
    {"difference": False, "previous_patches": False, "num_transforms": 0},
    {"attention": "causal", "difference": False, "previous_patches": False, "num_transforms": 0},  # the paper's form
    {"patch_size": 8, "encoder_layers": (1, 1), "decoder_layers": (1, 1)},
    {"patch_size": 16, "encoder_layers": (1,), "decoder_layers": (1,)},
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("t", [1, 4, FRAMES - 2])
def test_later_steps_do_not_change_earlier_outputs(changes: dict[str, Any], t: int) -> None:
    tokenizer, segment = make_tokenizer(**changes), make_segment()
    changed = scramble(segment, (torch.arange(FRAMES) > t).expand(3, FRAMES))
    # The action at t belongs to the transition to t + 1, so it may change as well.
    changed.actions[:, t] = (segment.actions[:, t] + 1) % ACTIONS
    with torch.no_grad():
        before, after = encode_latents(tokenizer, segment), encode_latents(tokenizer, changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])
        tokens = tokenizer.encode(segment.frames, segment.actions, segment.mask)
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 1) % tokenizer.codebook_size
        decoded, changed_decoded = decode(tokenizer, segment, tokens), decode(tokenizer, changed, other)
    assert torch.equal(decoded[:, :t], changed_decoded[:, :t])
    assert not torch.equal(decoded[:, t], changed_decoded[:, t])


@pytest.mark.parametrize("changes", VARIANTS)
def test_outputs_depend_on_the_first_frame(changes: dict[str, Any]) -> None:
    tokenizer, segment = make_tokenizer(**changes), make_segment()
    first = torch.zeros(3, FRAMES, dtype=torch.bool)
    first[:, 0] = True
    changed = scramble(segment, first)
    with torch.no_grad():
        before, after = encode_latents(tokenizer, segment), encode_latents(tokenizer, changed)
        tokens = tokenizer.encode(segment.frames, segment.actions, segment.mask)
        decoded, changed_decoded = decode(tokenizer, segment, tokens), decode(tokenizer, changed, tokens)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-6)
    assert not torch.equal(decoded[:, -1], changed_decoded[:, -1])


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_changes_no_result(changes: dict[str, Any]) -> None:
    tokenizer, segment = make_tokenizer(**changes), make_segment(padded=True)
    changed, real = scramble(segment, ~segment.mask), segment.transition_mask
    with torch.no_grad():
        before, after = encode_latents(tokenizer, segment), encode_latents(tokenizer, changed)
        assert torch.equal(before[real], after[real])
        assert not torch.equal(before[~real], after[~real])
        tokens = tokenizer.encode(segment.frames, segment.actions, segment.mask)
        assert torch.equal(decode(tokenizer, segment, tokens)[real], decode(tokenizer, changed, tokens)[real])
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    results = []
    for variant in (segment, changed):
        tokenizer.load_state_dict(state)
        torch.manual_seed(3)
        output = tokenizer.loss(variant)
        metrics = output.to_dict() | tokenizer.update_codebook([output.aux])
        results.append((metrics, tokenizer.quantizer.codebook.clone()))
    (metrics, codebook), (changed_metrics, changed_codebook) = results
    assert metrics.keys() == changed_metrics.keys()
    assert all(torch.equal(metrics[name], changed_metrics[name]) for name in metrics)
    assert torch.equal(codebook, changed_codebook)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("first", [0, 1, 4])
def test_decoding_with_a_cache_equals_the_whole_segment(changes: dict[str, Any], first: int) -> None:
    tokenizer, segment = make_tokenizer(**changes), make_segment(padded=first > 0)
    segment.mask[1, -2:] = True
    frames, actions, real = to_float(segment.frames), segment.actions, segment.transition_mask
    with torch.no_grad():
        tokens = tokenizer.encode(frames, actions, segment.mask)
        whole = decode(tokenizer, segment, tokens)
        codes, cache = tokenizer.quantizer.lookup(tokens), tokenizer.make_decoder_cache(3)
        edges = [0, *range(first, FRAMES)] if first else list(range(FRAMES))
        parts = [
            tokenizer.decode(frames[:, a:b], actions[:, a:b], codes[:, a:b], real[:, a:b], cache)
            for a, b in itertools.pairwise(edges)
        ]
    # float32 sums in another order: a few units of the last place of values around one.
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("attention", "depends"), [("causal", False), ("block_causal", True)])
def test_the_first_patch_depends_on_later_tokens_of_its_frame_only_without_causal_attention(
    attention: str, depends: bool
) -> None:
    tokenizer, segment = make_tokenizer(attention=attention, num_transforms=0), make_segment()
    with torch.no_grad():
        tokens = tokenizer.encode(segment.frames, segment.actions, segment.mask)
        other = tokens.clone()
        other[:, -1, -1] = (other[:, -1, -1] + 1) % tokenizer.codebook_size
        before, after = decode(tokenizer, segment, tokens)[:, -1], decode(tokenizer, segment, other)[:, -1]
    # Patches of the helper's tokenizer have four pixels a side; the first is the top left one.
    assert torch.equal(before[..., :4, :4], after[..., :4, :4]) is not depends
    assert not torch.equal(before[..., -4:, -4:], after[..., -4:, -4:])


def test_frame_features_computed_before_give_the_same_frames(tokenizer: TransformerTokenizer) -> None:
    segment = make_segment()
    frames, actions, real = to_float(segment.frames)[:, :-1], segment.actions[:, :-1], segment.transition_mask
    with torch.no_grad():
        codes = tokenizer.quantizer.lookup(tokenizer.encode(segment.frames, segment.actions, segment.mask))
        features = tokenizer.encode_frame(frames)
        expected = tokenizer.decode(frames, actions, codes, real)
        assert torch.equal(tokenizer.decode(frames, actions, codes, real, None, features), expected)


def test_first_frame_of_a_segment_has_no_action_before_it(tokenizer: TransformerTokenizer) -> None:
    segment = make_segment(padded=True)
    changed = segment._replace(actions=segment.actions.clone())
    changed.actions[0, 2] = (segment.actions[0, 2] + 1) % ACTIONS  # the slot before the first real one
    with torch.no_grad():
        before, after = encode_latents(tokenizer, segment), encode_latents(tokenizer, changed)
    assert torch.equal(before[0, 3:], after[0, 3:])


def test_learns_to_reconstruct() -> None:
    tokenizer = make_tokenizer(dim=32, optimizer=OptimizerConfig(learning_rate=3e-3))
    segment = make_moving_ramp()
    optimizer = tokenizer.configure_optimizers()["optimizer"]
    errors = [float(train_step(tokenizer, segment, optimizer)["l2"]) for _ in range(60)]
    copied = tokenizer.evaluate(segment)[0]["copy_l2"]
    assert errors[-1] < 0.25 * float(copied.total / copied.weight)
    encoder_gradient = tokenizer.encoder.patch.weight.grad
    assert encoder_gradient is not None
    assert encoder_gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_frame": 5}, "tokens_per_frame 5 cannot be reached"),
        ({"patch_size": 7}, "patch_size 7 does not divide frames of 32×32"),
        ({"encoder_layers": (1, 1)}, "encoder_layers has 2 groups and decoder_layers 3"),
        ({"encoder_layers": (1, 1), "decoder_layers": (1, 1)}, "need 3 entries each"),
        ({"dim": 18, "heads": 2}, "dim 18 is not a multiple of twice heads 2"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"tokens_per_frame": 4, "encoder_layers": (1, 2, 1), "decoder_layers": (1, 1, 2)}
    arguments |= {"patch_size": 4, "dim": 16, "heads": 2} | changes
    with pytest.raises(ValueError, match=message):
        TransformerTokenizer((32, 32), ACTIONS, FRAMES, **arguments)


def test_latents_do_not_depend_on_the_position_in_the_segment(tokenizer: TransformerTokenizer) -> None:
    """Time is relative: encode the same frames after padding and without it."""
    segment = make_segment()
    segment.mask[:, :3] = False
    with torch.no_grad():
        padded = encode_latents(tokenizer, segment)[:, 3:]
        alone = encode_latents(tokenizer, segment.slice_time(3, None))
    # float32 sums in another order; latents of a norm around three.
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)
    assert alone.std() > 0.1


def sharpen_attention(encoder: Encoder) -> None:
    """Make attention choose: at first it averages over everything nearly equally."""
    weights: list[Tensor] = [p for name, p in encoder.named_parameters() if name.endswith("qkv.weight")]
    assert len(weights) == 1
    with torch.no_grad():
        weights[0].mul_(20)


def test_latents_depend_on_the_order_of_earlier_frames() -> None:
    """Only the rotary embeddings of time distinguish it: one layer without them would see earlier frames as a set."""
    tokenizer, segment = make_tokenizer(encoder_layers=(1, 0, 0)), make_segment()
    segment = segment._replace(actions=torch.zeros_like(segment.actions))
    swapped = segment._replace(frames=segment.frames[:, [0, 2, 1, *range(3, FRAMES)]])
    sharpen_attention(tokenizer.encoder)
    with torch.no_grad():
        latents, others = (encode_latents(tokenizer, each)[:, 3:] for each in (segment, swapped))
    assert (latents - others).abs().max() > 1e-4
