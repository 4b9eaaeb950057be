"""The last frame, moved: what painting the next one may begin from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Motion"]


class Motion(nn.Module):
    """Copies of a picture, each moved as a whole by a small kernel of its own (CDNA: Finn et al., 2016).

    A kernel is the product of a distribution over rows and one over columns, at most `reach` pixels away; beyond the
    picture's edges its outermost pixels go on. To scroll a picture, each of the two has to choose one offset; a
    Transformer over patches would have to carry every pixel from patch to patch.

    Args:
        dim: width of the vectors that say how to move.
        copies: M, how many copies of a picture.
        reach: how far a pixel can move in each direction, in pixels.
    """

    def __init__(self, dim: int, copies: int, reach: int) -> None:
        super().__init__()
        self.copies, self.reach = copies, reach
        self.kernels = nn.Linear(dim, copies * 2 * (2 * reach + 1))
        # Kernels differ from the beginning, or the copies would all learn the same.
        nn.init.normal_(self.kernels.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.kernels.bias)

    def forward(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """Move each frame as its vector says.

        Args:
            frames: (B, T, C, H, W).
            vectors: (B, T, dim).

        Returns:
            (B, T, M, C, H, W); under autocast in its type, in which what has been rounded once is moved as it is.
        """
        shares = self.kernels(vectors).float().unflatten(-1, (self.copies, 2, -1)).softmax(-1)
        height, width = frames.shape[-2:]
        vertical, horizontal = self._banded(shares[..., 0, :], height), self._banded(shares[..., 1, :], width)
        # Matrix products, the rows of all copies at once: a convolution would have kernels of its own for each frame.
        rows = torch.einsum("btmij,btcjw->btmciw", vertical, frames)
        return torch.einsum("btmvw,btmciw->btmciv", horizontal, rows)

    def _banded(self, shares: Tensor, size: int) -> Tensor:
        """From shares (…, 2 · reach + 1) the matrices (…, size, size) that take share k of i from i + k − reach."""
        offsets = torch.arange(-self.reach, self.reach + 1, device=shares.device)
        pixels = torch.arange(size, device=shares.device)
        source = (pixels.unsqueeze(1) + offsets).clamp(0, size - 1)
        return torch.einsum("...k,ikj->...ij", shares, (source.unsqueeze(2) == pixels).to(shares.dtype))
