"""Convolutions with max-pooling or upsampling folded into them, so that they work at the lower resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PooledConvolution", "UpsampledConvolution"]


def _placing(kernel: int) -> Tensor:
    """Where the elements of a kernel's row lie on a map whose pixels are pairs of pixels.

    Args:
        kernel: length of the row, odd.

    Returns:
        (2, small kernel, 2, kernel) of zeros and ones: by output pixel of a pair, small pixel, and pixel in it.
    """
    reach = (kernel // 2 + 1) // 2
    offsets = torch.arange(2).view(2, 1, 1, 1) + torch.arange(kernel) - kernel // 2
    pixels = 2 * torch.arange(-reach, reach + 1).view(-1, 1, 1) + torch.arange(2).view(2, 1)
    return (offsets == pixels).float()


def _transform_kernel(matrix: Tensor, weight: Tensor) -> Tensor:
    """matrix · kernel · matrixᵀ: (R, k) and (out, in, k, k) → (out, in, R, R), in float32 under autocast, too."""
    rows = (matrix.unsqueeze(-1) * weight.unsqueeze(-3)).sum(-2)
    return (rows.unsqueeze(-2) * matrix).sum(-1)


class PooledConvolution(nn.Conv2d):
    """A convolution, then 2×2 max-pooling, of maps with few channels, computed at the lower resolution.

    GPUs convolve few channels slowly. Here the 2×2 pixels that are pooled are channels, in the input and in the output,
    and the kernel is as much smaller. Where pooled pixels are equal, they share the gradient.

    Args:
        in_channels: channels of the large map.
        out_channels: channels of the small map.
        kernel: size of the convolution at the higher resolution, odd.
    """

    placing: Tensor
    """See `_placing`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.register_buffer("placing", _placing(kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / 2, W / 2)."""
        assert self.bias is not None
        small = _transform_kernel(self.placing.flatten(0, 2), self.weight)
        small = small.unflatten(3, self.placing.shape[:3]).unflatten(2, self.placing.shape[:3])
        # (out, in, row phase, row, pixel row, column phase, column, pixel column)
        small = small.permute(2, 5, 0, 1, 4, 7, 3, 6).flatten(3, 5).flatten(0, 2)
        # Tensor cores want a multiple of eight channels.
        missing = (0, 0, 0, 0, 0, -small.shape[1] % 8)
        pixels, small = F.pad(F.pixel_unshuffle(x, 2), missing), F.pad(small, missing)
        maps = F.conv2d(pixels, small, self.bias.repeat(4), padding=small.shape[-1] // 2)
        return maps.unflatten(1, (4, -1)).amax(1)


class UpsampledConvolution(nn.Conv2d):
    """Nearest-neighbour upsampling by two, then a convolution, computed at the lower resolution.

    Pixels (2i + a, 2j + b) of the output, for each a and b, are a convolution of the small map with a smaller kernel,
    each element of which is the sum of those that fall on the same small pixel: of 25 products, nine remain.

    Args:
        in_channels: channels of the small map.
        out_channels: channels of the large map.
        kernel: size of the convolution at the higher resolution, odd.
    """

    folding: Tensor
    """(2, small kernel, kernel) of zeros and ones: which elements of a kernel's row are summed, for a = 0 and 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        # Both pixels of a pair hold the same.
        self.register_buffer("folding", _placing(kernel).sum(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, 2 · H, 2 · W)."""
        assert self.bias is not None
        small = _transform_kernel(self.folding.flatten(0, 1), self.weight)
        small = small.unflatten(3, self.folding.shape[:2]).unflatten(2, self.folding.shape[:2])
        # (out, in, row phase, row, column phase, column)
        small = small.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        maps = F.conv2d(x, small, self.bias.repeat_interleave(4), padding=small.shape[-1] // 2)
        return F.pixel_shuffle(maps, 2)
