"""Encoders and decoders of images (GroupNorm, SiLU and 3×3 convolutions) and of vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import compile_region

__all__ = ["CNNConfig", "CNNDecoder", "CNNEncoder", "FrameEncoder", "MLPEncoder", "ResidualBlock", "Upsample"]


@dataclass(frozen=True)
class CNNConfig:
    """Sizes of a `CNNEncoder` and of the `CNNDecoder` that mirrors it.

    Args:
        base_channels: number of channels after the first convolution.
        channel_mults: number of output channels of each residual block, as multiples of `base_channels`.
        downsample_after: numbers of the residual blocks after which the resolution is halved, counted from 1; 0 halves
            it before the first block.
        latent_channels: number of channels of the encoder's feature map.
    """

    base_channels: int = 32
    channel_mults: tuple[int, ...] = (1, 1, 2, 2, 4)
    downsample_after: tuple[int, ...] = (1, 3, 4)
    latent_channels: int = 8


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Inductor compiles PyTorch's group norm to code that moves the channels to the front and back again. Sums over
        # the pixels of each channel instead read channels-last memory in order, in the forward and backward pass.
        pixels = x.float()
        sums = torch.stack([pixels.sum((2, 3)), pixels.square().sum((2, 3))])
        mean, square = (sums.unflatten(2, (self.num_groups, -1)).sum(3) / (x[0].numel() // self.num_groups)).unbind(0)
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        mean, scale = (each.repeat_interleave(self.num_channels // self.num_groups, 1) for each in (mean, scale))
        factor = scale * self.weight
        return pixels * factor[:, :, None, None] + (self.bias - mean * factor)[:, :, None, None]


def _group_norm(channels: int) -> nn.GroupNorm:
    return _GroupNorm(math.gcd(32, channels), channels)


class _InputConv(nn.Conv2d):
    """A 3×3 convolution for inputs with few channels, such as RGB images."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Tensor cores process channels in groups of 8, so pad with zeros to a multiple of 8.
        padding = (0, 0, 0, 0, 0, -self.in_channels % 8)
        return F.conv2d(F.pad(x, padding), F.pad(self.weight, padding), self.bias, padding=1)


class Upsample(nn.Module):
    """Doubles the resolution by nearest-neighbour interpolation.

    Inductor compiles `nn.Upsample` to code whose backward pass gathers the gradient by index, which is slow.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU and a 3×3 convolution, with a residual connection.

    The residual connection is a 1×1 convolution if the number of channels changes.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
    """

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
        """Transform a feature map (B, in_channels, H, W) into (B, out_channels, H, W)."""
        return self.skip(x) + self.layers(x)


class CNNEncoder(nn.Module):
    """A CNN that encodes images into small feature maps.

    It has one residual block for each entry of `config.channel_mults`. A 2×2 convolution of stride 2 halves the
    resolution after the blocks in `config.downsample_after`.

    Args:
        frame_size: height and width of the images, in pixels.
        in_channels: number of channels of the images.
        config: sizes of the network.

    Attributes:
        latent_shape: shape of a feature map, (latent_channels, h, w).
        num_features: number of elements of a feature map.

    Raises:
        ValueError: if `downsample_after` does not fit `channel_mults`, or `frame_size` cannot be halved that often.
    """

    def __init__(self, frame_size: tuple[int, int], in_channels: int, config: CNNConfig) -> None:
        super().__init__()
        _check_downsampling(frame_size, config)
        layers: list[nn.Module] = [_InputConv(in_channels, config.base_channels)]
        channels = config.base_channels
        for number, multiplier in enumerate((0, *config.channel_mults)):
            if number > 0:
                layers.append(ResidualBlock(channels, config.base_channels * multiplier))
                channels = config.base_channels * multiplier
            if number in config.downsample_after:
                layers.append(nn.Conv2d(channels, channels, 2, stride=2))
        layers += [_group_norm(channels), nn.SiLU(), nn.Conv2d(channels, config.latent_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        factor = 2 ** len(config.downsample_after)
        self.latent_shape = (config.latent_channels, frame_size[0] // factor, frame_size[1] // factor)
        self.num_features = math.prod(self.latent_shape)

    @compile_region()
    def forward(self, x: Tensor) -> Tensor:
        """Encode images (B, in_channels, H, W) into feature maps (B, *latent_shape)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class FrameEncoder(CNNEncoder):
    """A `CNNEncoder` of RGB frames that returns flat feature vectors.

    Args:
        frame_size: height and width of the frames, in pixels.
        config: sizes of the network.
    """

    def __init__(self, frame_size: tuple[int, int], config: CNNConfig) -> None:
        super().__init__(frame_size, 3, config)

    @compile_region()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, 3, H, W) in [0, 1] into features (B, num_features)."""
        # The network expects pixels in [−1, 1].
        return super().forward(frames * 2 - 1).flatten(1)


class CNNDecoder(nn.Module):
    """A CNN that decodes small feature maps into images, the mirror of a `CNNEncoder` with the same `config`.

    The encoder's residual blocks follow in reverse order, with input and output channels swapped. Nearest-neighbour
    interpolation and a 3×3 convolution double the resolution where the encoder halves it.

    Args:
        in_channels: number of channels of the feature maps.
        out_channels: number of channels of the images.
        config: sizes of the network; `latent_channels` is not used.
    """

    def __init__(self, in_channels: int, out_channels: int, config: CNNConfig) -> None:
        super().__init__()
        widths = [config.base_channels, *(config.base_channels * multiplier for multiplier in config.channel_mults)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1)]
        for number in range(len(config.channel_mults), -1, -1):
            if number in config.downsample_after:
                layers.append(Upsample())
                layers.append(nn.Conv2d(widths[number], widths[number], 3, padding=1))
            if number > 0:
                layers.append(ResidualBlock(widths[number], widths[number - 1]))
        layers += [_group_norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    @compile_region()
    def forward(self, x: Tensor) -> Tensor:
        """Decode feature maps (B, in_channels, h, w) into images (B, out_channels, H, W)."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class MLPEncoder(nn.Module):
    """An MLP that encodes vectors; each layer is linear, LayerNorm and SiLU.

    Args:
        in_features: number of features of an input vector.
        hidden: width of every layer, including the output.
        layers: number of layers.

    Attributes:
        num_features: number of features of an output vector.

    Raises:
        ValueError: if `layers` is less than 1.
    """

    def __init__(self, in_features: int, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}: it must be at least 1")
        modules: list[nn.Module] = []
        for index in range(layers):
            modules += [nn.Linear(hidden if index else in_features, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        self.layers = nn.Sequential(*modules)
        self.num_features = hidden

    @compile_region()
    def forward(self, x: Tensor) -> Tensor:
        """Encode vectors (B, in_features) into features (B, num_features)."""
        return self.layers(x)


def _check_downsampling(frame_size: tuple[int, int], config: CNNConfig) -> None:
    blocks, halvings = len(config.channel_mults), len(config.downsample_after)
    if len(set(config.downsample_after)) != halvings or not set(config.downsample_after) <= set(range(blocks + 1)):
        raise ValueError(
            f"downsample_after is {list(config.downsample_after)}: it must hold distinct numbers from 0 to {blocks}, "
            "the number of channel_mults"
        )
    factor = 2**halvings
    height, width = frame_size
    if height % factor or width % factor:
        raise ValueError(
            f"frame_size {height}×{width} cannot be halved {halvings} times: shorten downsample_after, or use frames "
            f"whose height and width are multiples of {factor}"
        )
