"""The key-value cache of a Transformer over blocks of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["AttentionKind", "KVCache"]

AttentionKind = Literal["block_causal", "causal"]
"""Which tokens of its own block a token attends to: all of them, or itself and those before it."""


class KVCache:
    """Keys and values of every layer of a Transformer, in static memory.

    The tensors have room for the longest sequence. Attention must mask the positions that are not written yet.

    Args:
        layers: number of layers.
        heads: number of attention heads H.
        dim: dimension of a head Dh.
        valid: (B, T) booleans, false for blocks of padding. The cache keeps a reference, so that in-place changes
            affect later steps.
        block_size: number of tokens in a block.
        attention: `"block_causal"` or `"causal"`; see `delta_iris.nn.transformer.block_mask`.
        dtype: dtype of keys and values.
        device_position: whether the position is kept on the device, so that a CUDA graph of a few steps can be launched
            at any position.

    Attributes:
        tokens: capacity in tokens.
        keys: (layers, B, H, tokens, Dh).
        values: (layers, B, H, tokens, Dh).
        position: number of tokens written so far, an int or a () int64 tensor.
    """

    position: int | Tensor

    def __init__(
        self,
        layers: int,
        heads: int,
        dim: int,
        valid: Tensor,
        block_size: int,
        attention: AttentionKind,
        dtype: torch.dtype,
        device_position: bool = False,
    ) -> None:
        self.valid, self.block_size = valid, block_size
        self.attention: AttentionKind = attention
        # Attention kernels require aligned rows of the mask.
        self.tokens = -(-valid.shape[1] * block_size // 16) * 16
        self.keys = torch.zeros(layers, len(valid), heads, self.tokens, dim, device=valid.device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.tensor(0, device=valid.device) if device_position else 0

    def next(self, number: int) -> slice | Tensor:
        """Return an index of the sequence positions of the next `number` tokens."""
        if isinstance(self.position, Tensor):
            return self.position + torch.arange(number, device=self.position.device)
        return slice(self.position, self.position + number)

    def advance(self, number: int) -> None:
        """Count `number` tokens as written."""
        self.position += number  # in place, if it is a tensor

    def rewind(self) -> None:
        """Forget all tokens, in place."""
        if isinstance(self.position, Tensor):
            self.position.zero_()
        else:
            self.position = 0
