"""Convolutional encoders and decoders (spec of the CNN rows: GroupNorm, SiLU, 3×3 convolutions)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from delta_iris.errors import UserError
from delta_iris.nn.acceleration import region

__all__ = ["ConvDecoder", "ConvEncoder", "FrameEncoder", "ResidualBlock"]


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # The same in terms that leave channels last in memory: what PyTorch's own is compiled to would move them first
        # and, for the next convolution, back.
        groups = x.float().unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
        normal = ((groups - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def _group_norm(channels: int) -> nn.GroupNorm:
    return _GroupNorm(math.gcd(32, channels), channels)


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
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]
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
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
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
