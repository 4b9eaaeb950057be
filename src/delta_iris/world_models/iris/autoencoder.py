"""The convolutional encoder and decoder of a frame, with self-attention (VQGAN: Esser et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.cnn import ResidualBlock, Upsample, group_norm

__all__ = ["AutoencoderConfig", "ConvDecoder", "ConvEncoder"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a `ConvEncoder` and of the `ConvDecoder` that mirrors it.

    Args:
        channels: number of channels, the same at every resolution.
        residual_blocks: number of residual blocks of the encoder at each resolution; the decoder has one more.
        attention_at: heights of a feature map, in pixels, at which self-attention follows each residual block.

    Raises:
        ValueError: if a number is not positive.
    """

    channels: int = 64
    residual_blocks: int = 2
    attention_at: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        for name in ("channels", "residual_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")


class SelfAttention(nn.Module):
    """Attention with one head among all pixels of a feature map, with a residual connection.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a feature map (B, channels, H, W) into another of the same shape."""
        pixels = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        queries, keys, values = pixels.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.out(attended.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


def _level(height: int, blocks: int, config: AutoencoderConfig) -> list[nn.Module]:
    """The residual blocks, and possibly attention, at one resolution."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers.append(ResidualBlock(config.channels, config.channels))
        if height in config.attention_at:
            layers.append(SelfAttention(config.channels))
    return layers


def _middle(channels: int) -> list[nn.Module]:
    return [ResidualBlock(channels, channels), SelfAttention(channels), ResidualBlock(channels, channels)]


class ConvEncoder(nn.Module):
    """Encodes frames as feature maps of a lower resolution.

    Args:
        height: of a frame, in pixels.
        halvings: how often the resolution is halved.
        latent_channels: channels of a feature map.
        config: sizes of the network.
    """

    def __init__(self, height: int, halvings: int, latent_channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for level in range(halvings + 1):
            layers += _level(height // 2**level, config.residual_blocks, config)
            if level < halvings:
                layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        layers += [*_middle(channels), group_norm(channels), nn.SiLU()]
        # The second convolution projects to the space of the codebook.
        layers += [nn.Conv2d(channels, latent_channels, 3, padding=1), nn.Conv2d(latent_channels, latent_channels, 1)]
        self.layers = nn.Sequential(*layers)

    @compile_region()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, 3, H, W) in [0, 1] into feature maps (B, latent_channels, h, w)."""
        return self.layers((frames * 2 - 1).contiguous(memory_format=torch.channels_last))


class ConvDecoder(nn.Module):
    """Decodes feature maps into frames, the mirror of a `ConvEncoder`.

    Args:
        height: of a frame, in pixels.
        halvings: how often the encoder halves the resolution.
        latent_channels: channels of a feature map.
        config: sizes of the network.
    """

    def __init__(self, height: int, halvings: int, latent_channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(latent_channels, latent_channels, 1),
            nn.Conv2d(latent_channels, channels, 3, padding=1),
            *_middle(channels),
        ]
        for level in range(halvings, -1, -1):
            layers += _level(height // 2**level, config.residual_blocks + 1, config)
            if level > 0:
                layers += [Upsample(), nn.Conv2d(channels, channels, 3, padding=1)]
        layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    @compile_region()
    def forward(self, latents: Tensor) -> Tensor:
        """Decode feature maps (B, latent_channels, h, w) into frames (B, 3, H, W), not clamped."""
        return (self.layers(latents.contiguous(memory_format=torch.channels_last)) + 1) / 2
