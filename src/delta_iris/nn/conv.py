"""Convolutional blocks and the frame encoder (spec of the CNN rows: GroupNorm, SiLU, 3×3 convolutions)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from delta_iris.errors import UserError

__all__ = ["FrameEncoder", "ResidualBlock"]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


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


class FrameEncoder(nn.Module):
    """A CNN that turns one frame into a small feature map.

    One residual block a multiplier; the resolution halves (2×2 convolution of stride 2) after the blocks named in
    `halvings`, counted from 1 (0: before the first).

    Args:
        frame_size: height and width of the frames, in pixels.
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
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        halvings: Sequence[int] = (1, 3, 4),
        latent_channels: int = 8,
    ) -> None:
        super().__init__()
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
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        width_in = channels
        for number, multiplier in enumerate((0, *multipliers)):
            if number > 0:
                layers.append(ResidualBlock(width_in, channels * multiplier))
                width_in = channels * multiplier
            if number in halvings:
                layers.append(nn.Conv2d(width_in, width_in, 2, stride=2))
        layers += [_group_norm(width_in), nn.SiLU(), nn.Conv2d(width_in, latent_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.num_features = latent_channels * (height // factor) * (width // factor)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, 3, H, W) in [0, 1] into features (B, num_features)."""
        # The models work on pixels centred on zero.
        return self.layers(frames * 2 - 1).flatten(1)
