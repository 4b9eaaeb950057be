"""The last frame, moved: what need not be painted anew in the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import region
from delta_iris.errors import UserError

__all__ = ["Motion", "check_motions"]


def check_motions(motions: int, least_painted: float) -> None:
    """Whether a tokenizer can have these arguments.

    Raises:
        UserError: where one is out of its range.
    """
    if motions < 0:
        raise UserError(f"model.tokenizer.init_args.motions is {motions}: give 0 (none) or a number of copies")
    if not 0 <= least_painted < 1:
        raise UserError(f"model.tokenizer.init_args.least_painted is {least_painted}: give a share from 0 to below 1")


class Motion(nn.Module):
    """Makes each pixel a mixture of what is painted, the last frame, and copies of it that are moved (CDNA: Finn et
    al., 2016).

    A copy is moved as a whole, by a small kernel of its own: the product of a distribution over rows and one over
    columns, at most `reach` pixels away; beyond the picture's edges its outermost pixels go on. To scroll a picture,
    each of the two has to choose one offset; a Transformer over patches would have to carry every pixel from patch to
    patch, a CNN from layer to layer.

    Copying is learned in a hundred steps. While gradients are computed in training, a least share keeps one on
    painting, and so on the tokens, which otherwise may say nothing for hundreds of steps more.

    Args:
        dim: width of the vectors that say how to move.
        copies: M, how many copies of the last frame, 1 or more.
        reach: how far a pixel can move in each direction, in pixels.
        least_painted: least share of a pixel that is painted while gradients are computed in training, from 0 to
            below 1.

    Attributes:
        channels: of what is to be painted: three colours, then the logits of the shares of these, of the last frame and
            of each moved copy.
    """

    def __init__(self, dim: int, copies: int, reach: int, least_painted: float) -> None:
        super().__init__()
        self.copies, self.reach, self.least_painted = copies, reach, least_painted
        self.channels = 3 + 2 + copies
        self.kernels = nn.Linear(dim, copies * 2 * (2 * reach + 1))
        # Kernels differ from the beginning, or the copies would all learn the same.
        nn.init.normal_(self.kernels.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.kernels.bias)

    @region()
    def forward(self, outputs: Tensor, frames: Tensor, vectors: Tensor) -> Tensor:
        """The next frame.

        Args:
            outputs: (B, T, channels, H, W), what a decoder painted.
            frames: (B, T, 3, H, W), the last frame of each.
            vectors: (B, T, dim), how it moves.

        Returns:
            (B, T, 3, H, W).
        """
        painted, logits = outputs.split([3, self.channels - 3], dim=2)
        sources = torch.cat([painted.unsqueeze(2), frames.unsqueeze(2), self.move(frames, vectors)], dim=2)
        mixed = (logits.float().softmax(2).unsqueeze(3) * sources).sum(2)
        if self.least_painted and self.training and torch.is_grad_enabled():
            mixed = torch.lerp(mixed, painted.to(mixed.dtype), self.least_painted)
        return mixed

    def move(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """The copies of each frame, moved as its vector says.

        Args:
            frames: (B, T, 3, H, W).
            vectors: (B, T, dim).

        Returns:
            (B, T, M, 3, H, W); under autocast in its type, in which what has been rounded once is moved as it is.
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
