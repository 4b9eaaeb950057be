"""The key-value cache of a Transformer over blocks of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of every layer of a Transformer, in memory that stays where it is.

    What is not written yet is in it too: attention leaves it out.

    Args:
        layers: number of layers.
        heads: attention heads H.
        dim: dimension of a head Dh.
        valid: (B, T) booleans, false for blocks of padding; read as it is when attending.
        block_size, within: see `delta_iris.nn.transformer.block_mask`.
        dtype: of keys and values.
    """

    def __init__(
        self, layers: int, heads: int, dim: int, valid: Tensor, block_size: int, within: str, dtype: torch.dtype
    ) -> None:
        self.valid, self.block_size, self.within = valid, block_size, within
        # Attention kernels want the rows of a mask aligned.
        self.tokens = -(-valid.shape[1] * block_size // 16) * 16
        self.keys = torch.zeros(layers, len(valid), heads, self.tokens, dim, device=valid.device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.position = 0

    def next(self, number: int) -> slice:
        """Sequence positions of the next tokens."""
        return slice(self.position, self.position + number)
