"""Convolutional encoders and decoders (spec of the CNN rows: GroupNorm, SiLU, 3×3 convolutions)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import region
from delta_iris.errors import UserError

__all__ = ["ConvDecoder", "ConvEncoder", "FrameEncoder", "ResidualBlock"]


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # The same in sums over pixels, a channel at a time: with channels last in memory, each pass forwards and
        # backwards then reads along it. PyTorch's own is compiled to one that moves channels first and back.
        pixels = x.float()
        sums = torch.stack([pixels.sum((2, 3)), pixels.square().sum((2, 3))])
        mean, square = (sums.unflatten(2, (self.num_groups, -1)).sum(3) / (x[0].numel() // self.num_groups)).unbind(0)
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        mean, scale = (each.repeat_interleave(self.num_channels // self.num_groups, 1) for each in (mean, scale))
        factor = scale * self.weight
        return pixels * factor[:, :, None, None] + (self.bias - mean * factor)[:, :, None, None]


def _group_norm(channels: int) -> nn.GroupNorm:
    return _GroupNorm(math.gcd(32, channels), channels)


class _FewChannels(nn.Conv2d):
    """A 3×3 convolution of a few channels, such as a picture's."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Tensor cores take channels by eights; the further ones are zero.
        further = (0, 0, 0, 0, 0, -self.in_channels % 8)
        return F.conv2d(F.pad(x, further), F.pad(self.weight, further), self.bias, padding=1)


class _Double(nn.Module):
    """Each pixel four times. PyTorch's own is compiled to one whose gradient is gathered by index."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 convolution, twice; a 1×1 skip where the channels change. (B, C, H, W) → (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            _group_norm(out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


class ConvEncoder(nn.Module):
    """A CNN that turns a picture into a small feature map.

    One residual block a multiplier; the resolution halves (2×2 convolution of stride 2) after the blocks named in
    `halvings`, counted from 1 (0: before the first).

    Args:
        frame_size: height and width of the pictures, in pixels.
        in_channels: channels of the pictures.
        channels: channels of the first block.
        multipliers: channels of each block, in multiples of `channels`.
        halvings: blocks after which the resolution halves.
        latent_channels: channels of the feature map.

    Raises:
        UserError: where halving does not divide the frame.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        in_channels: int,
        channels: int,
        multipliers: Sequence[int],
        halvings: Sequence[int],
        latent_channels: int,
    ) -> None:
        super().__init__()
        factor = 2 ** len(halvings)
        height, width = _check_halvings(frame_size, multipliers, halvings)
        layers: list[nn.Module] = [_FewChannels(in_channels, channels)]
        width_in = channels
        for number, multiplier in enumerate((0, *multipliers)):
            if number > 0:
                layers.append(ResidualBlock(width_in, channels * multiplier))
                width_in = channels * multiplier
            if number in halvings:
                layers.append(nn.Conv2d(width_in, width_in, 2, stride=2))
        layers += [_group_norm(width_in), nn.SiLU(), nn.Conv2d(width_in, latent_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.latent_shape = (latent_channels, height // factor, width // factor)
        self.num_features = math.prod(self.latent_shape)

    @region()
    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, *latent_shape)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class FrameEncoder(ConvEncoder):
    """A `ConvEncoder` of RGB frames, whose features come as one vector."""

    def __init__(
        self,
        frame_size: tuple[int, int],
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        halvings: Sequence[int] = (1, 3, 4),
        latent_channels: int = 8,
    ) -> None:
        super().__init__(frame_size, 3, channels, multipliers, halvings, latent_channels)

    @region()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, 3, H, W) in [0, 1] into features (B, num_features)."""
        # The models work on pixels centred on zero.
        return super().forward(frames * 2 - 1).flatten(1)


class ConvDecoder(nn.Module):
    """The mirror of a `ConvEncoder` of the same arguments: from a small map to a picture.

    Its blocks in reverse, from the channels that each gives to those it takes; the resolution doubles (nearest, then a
    3×3 convolution) where the encoder's halves.

    Args:
        in_channels: channels of the small map.
        out_channels: channels of the picture.
        channels, multipliers, halvings: of the encoder.
    """

    def __init__(
        self, in_channels: int, out_channels: int, channels: int, multipliers: Sequence[int], halvings: Sequence[int]
    ) -> None:
        super().__init__()
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1)]
        for number in range(len(multipliers), -1, -1):
            if number in halvings:
                layers.append(_Double())
                layers.append(nn.Conv2d(widths[number], widths[number], 3, padding=1))
            if number > 0:
                layers.append(ResidualBlock(widths[number], widths[number - 1]))
        layers += [_group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    @region()
    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, H, W)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))


def _check_halvings(
    frame_size: tuple[int, int], multipliers: Sequence[int], halvings: Sequence[int]
) -> tuple[int, int]:
    if len(set(halvings)) != len(halvings) or not set(halvings) <= set(range(len(multipliers) + 1)):
        raise UserError(
            f"the CNN's halvings {list(halvings)} must be different numbers from 0 to {len(multipliers)}, "
            "the number of its multipliers"
        )
    factor = 2 ** len(halvings)
    height, width = frame_size
    if height % factor or width % factor:
        raise UserError(
            f"data.frame_size {height}×{width} cannot be halved {len(halvings)} times: give the CNN fewer "
            f"`halvings`, or frames whose sides are multiples of {factor}"
        )
    return height, width
