"""Tests of the Transformer: rotary embeddings, masks, stepping with a cache, dropout and compiled attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.nn.kv_cache import AttentionKind
from delta_iris.nn.transformer import (
    KEY_MULTIPLE,
    TILE,
    Transformer,
    TransformerConfig,
    _Layer,
    _rotate,
    block_mask,
    rotary_embedding,
    sparse_block_mask,
)


def test_rotary_scores_depend_on_distances_only() -> None:
    torch.manual_seed(0)
    dim, length, shift = 16, 9, 4
    query, key = torch.randn(2, 1, 1, 1, dim).expand(-1, -1, -1, length, -1)
    scores = []
    for first in (0, shift):
        rotary = rotary_embedding(torch.arange(first, first + length), dim)
        scores.append((_rotate(query, rotary) @ _rotate(key, rotary).mT)[0, 0])
    # Cosines and sines are float32; a score is a sum of 16 products of magnitude about one.
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[0].diagonal(), (query * key).sum(-1)[0, 0], atol=1e-5, rtol=1e-5)
    by_distance = torch.stack([scores[0].diagonal(k)[0] for k in range(1 - length, length)])
    assert torch.pdist(by_distance.unsqueeze(1)).min() > 1e-3


def test_rotary_embedding_of_position_zero_is_the_identity() -> None:
    x = torch.randn(1, 1, 1, 8)
    assert torch.equal(_rotate(x, rotary_embedding(torch.zeros(1, dtype=torch.int64), 8)), x)


def test_mask_of_each_attention_kind() -> None:
    valid = torch.tensor([[False, True, True]])
    rows = {
        "block_causal": ["110000", "110000", "001100", "001100", "001111", "001111"],
        "causal": ["100000", "110000", "001000", "001100", "001110", "001111"],
    }
    attention: AttentionKind
    for attention in ("block_causal", "causal"):
        mask = block_mask(valid, 2, attention=attention, keys=6)[0, 0]
        assert ["".join(str(int(allowed)) for allowed in row) for row in mask] == rows[attention]


@pytest.mark.parametrize("frames", [1, 3, 8, 21])
def test_padding_of_keys_is_masked_and_changes_nothing(frames: int) -> None:
    torch.manual_seed(0)
    valid, length = torch.ones(2, frames, dtype=torch.bool), frames * 5
    mask = block_mask(valid, 5, attention="block_causal")
    assert mask.shape[-1] % KEY_MULTIPLE == 0
    assert mask.shape[2:] == (length, -(-length // KEY_MULTIPLE) * KEY_MULTIPLE)
    assert not mask[..., length:].any()
    stack, x = Transformer(16, 2, 2).double(), torch.randn(2, length, 16, dtype=torch.float64)
    # The masked keys change the order of the softmax's sums, which is barely visible in float64.
    torch.testing.assert_close(stack(x, mask), stack(x, mask[..., :length]), atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize(("frames", "block"), [(9, 5), (21, 65), (20, 66), (4, 64), (3, 128), (7, 37)])
def test_sparse_mask_equals_dense_mask(frames: int, block: int) -> None:
    valid = torch.ones(5, frames, dtype=torch.bool)
    valid[0, : frames // 2], valid[1, 2:], valid[2, 0], valid[3] = False, False, False, False
    length = frames * block
    dense = block_mask(valid, block, attention="block_causal")[:, 0, :, :length]
    sparse = sparse_block_mask(valid, block)
    index = torch.arange(length)
    rows = torch.arange(len(valid)).view(-1, 1, 1)
    assert torch.equal(sparse.mask_mod(rows, rows, index[:, None], index[None, :]), dense)
    # Nothing is allowed in the tiles that are skipped, and everything in the tiles listed as full.
    tiles = -(-length // TILE)
    padded = F.pad(dense, (0, tiles * TILE - length) * 2)
    by_tile = padded.view(len(valid), tiles, TILE, tiles, TILE).transpose(2, 3).flatten(3)
    partial, full = (torch.zeros(len(valid), tiles, tiles, dtype=torch.bool) for _ in range(2))
    assert sparse.full_kv_num_blocks is not None
    assert sparse.full_kv_indices is not None
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
    # Without padding no work is wasted: every partial tile, except at the ragged end, is partly masked.
    inner = length // TILE
    assert (by_tile.any(-1) & ~by_tile.all(-1))[4, :inner, :inner][partial[4, :inner, :inner]].all()
    assert by_tile[4].any(-1)[(partial | full)[4]].all()


@pytest.mark.parametrize(("attention", "tokens_per_step"), [("block_causal", 3), ("causal", 1), ("causal", 2)])
def test_steps_with_a_cache_equal_the_forward_pass(attention: AttentionKind, tokens_per_step: int) -> None:
    torch.manual_seed(0)
    stack, x = Transformer(16, 2, 2), torch.randn(2, 12, 16)
    valid = torch.tensor([[True] * 4, [False, True, True, True]])
    expected = stack(x, block_mask(valid, 3, attention=attention))
    cache = stack.make_cache(valid, 3, attention)
    found = torch.cat([stack.step(part, cache) for part in x.split(tokens_per_step, 1)], 1)
    assert cache.position == 12
    # The sums are float32 and in another order.
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


def test_stack_without_layers_steps_like_it_transforms() -> None:
    stack, x = Transformer(16, 0, 2), torch.randn(2, 6, 16)
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(stack.step(x, stack.make_cache(valid, 2, "block_causal")), x)


def test_dropout_keeps_the_expectation() -> None:
    """Dropout multiplies the attention output of a layer by 0 or 2; here the MLP output is zero."""
    torch.manual_seed(0)
    layer = Transformer(8, 1, 2, dropout=0.5).layers[0]
    assert isinstance(layer, _Layer)
    projection = layer.mlp[-1]
    assert isinstance(projection, nn.Linear)
    x, attended = torch.randn(1, 3, 8), torch.randn(1, 3, 2, 4)
    with torch.no_grad():
        projection.weight.zero_()
        added = layer.attention_output(x, attended) - x
        draws = torch.stack([layer.attention_output(x, attended, drop=True) - x for _ in range(4000)])
    factors = draws / added
    assert set(factors.round(decimals=2).unique().tolist()) == {0.0, 2.0}
    # The mean of 4,000 draws has a standard deviation of 1/√4000 = 0.016; allow five of them for each of 24 numbers.
    torch.testing.assert_close(factors.mean(0), torch.ones_like(added), atol=0.08, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dim": 10, "layers": 1, "heads": 4}, "dim"),
        ({"dim": 0, "layers": 1, "heads": 4}, "dim"),
        ({"dim": 8, "layers": 1, "heads": 0}, "heads"),
        ({"dim": 8, "layers": -1, "heads": 4}, "layers"),
        ({"dim": 8, "layers": 1, "heads": 4, "dropout": 1.0}, "dropout"),
        ({"dim": 8, "layers": 1, "heads": 4, "dropout": -0.1}, "dropout"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} is"):
        TransformerConfig(**arguments)  # type: ignore[arg-type]


def test_dim_that_is_no_multiple_of_heads_raises() -> None:
    with pytest.raises(ValueError, match=r"dim is 10: .* multiple of heads, which is 4"):
        Transformer(10, 1, 4)


def check_compiled_attention(dim: int, blocks: int, block_size: int) -> None:
    """Compare outputs and gradients of a stack with two heads, plain and compiled, on a GPU."""
    torch.manual_seed(0)
    stack = Transformer(dim, 2, 2).cuda()
    valid = torch.ones(3, blocks, dtype=torch.bool, device="cuda")
    valid[0, : blocks // 3], valid[1, -blocks // 4 :] = False, False
    x = torch.randn(3, blocks * block_size, dim, device="cuda", requires_grad=True)
    results = []
    for enabled in (False, True):
        with compiled_regions(enabled):
            rotary = rotary_embedding(torch.arange(blocks, device="cuda").repeat_interleave(block_size), dim // 2)
            y = stack(x, stack.attention_mask(valid, block_size), rotary)
            y.square().mean().backward()
        gradients = [p.grad for p in (x, *stack.parameters())]
        assert all(gradient is not None for gradient in gradients)
        results.append([y.detach(), *(gradient for gradient in gradients if gradient is not None)])
        x.grad = None
        stack.zero_grad()
    for plain, compiled in zip(*results, strict=True):
        assert (plain - compiled).norm() < 1e-5 * plain.norm()


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
def test_sparse_attention_equals_dense_attention() -> None:
    check_compiled_attention(128, 21, 65)


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize(("blocks", "block_size"), [(9, 17), (21, 5), (11, 33)])
def test_compiled_attention_equals_plain_attention_for_odd_lengths(blocks: int, block_size: int) -> None:
    """Narrow heads have strides that are no multiples of 128 bytes, which Inductor's padding would round up."""
    check_compiled_attention(32, blocks, block_size)
