"""Image encoders and decoders of DreamerV3 and DreamerV2."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.layers import ACTIVATIONS, MLP, BlockLinear, ImageNorm, initialize
from delta_iris.nn.resampled_convolution import PooledConvolution, UpsampledConvolution

__all__ = ["ImageConfig", "ImageDecoder", "ImageEncoder", "StridedDecoder", "StridedEncoder"]


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image networks.

    Args:
        depth: base number of channels; a sixteenth of the world model's `units` where null.
        multipliers: channels of each stage, as multiples of `depth`; each stage halves the resolution.
        kernel: size of the convolutions, odd.
        strided: DreamerV2's networks instead: convolutions of stride 2 without padding or normalization, for frames of
            64×64 pixels; `multipliers` and `kernel` are then not used.
    """

    depth: int | None = None
    multipliers: tuple[int, ...] = (2, 3, 4, 4)
    kernel: int = 5
    strided: bool = False


def _initialized(layer: nn.Conv2d) -> nn.Conv2d:
    initialize(layer.weight, layer.in_channels * layer.kernel_size[0] ** 2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class ImageEncoder(nn.Module):
    """A stage for each multiplier: convolution, 2×2 max-pooling, RMSNorm and activation.

    Args:
        frame_size: height and width of the frames, in pixels.
        depth: base number of channels.
        config: sizes.
        activation: name of the activation.

    Attributes:
        map_shape: shape of the last feature map, (channels, h, w).
        num_features: number of its elements.

    Raises:
        ValueError: if the frames cannot be halved as often as there are stages.
    """

    def __init__(self, frame_size: tuple[int, int], depth: int, config: ImageConfig, activation: str) -> None:
        super().__init__()
        factor = 2 ** len(config.multipliers)
        if frame_size[0] % factor or frame_size[1] % factor:
            raise ValueError(
                f"images.multipliers has {len(config.multipliers)} stages, each of which halves the frame, but "
                f"{frame_size[0]}×{frame_size[1]} pixels is not a multiple of {factor}: give fewer"
            )
        layers: list[nn.Module] = []
        channels = 3
        for multiplier in config.multipliers:
            if layers:
                width = depth * multiplier
                layers.append(_initialized(nn.Conv2d(channels, width, config.kernel, padding=config.kernel // 2)))
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(_initialized(PooledConvolution(channels, depth * multiplier, config.kernel)))
            channels = depth * multiplier
            layers += [ImageNorm(channels), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.map_shape = (channels, frame_size[0] // factor, frame_size[1] // factor)
        self.num_features = math.prod(self.map_shape)

    @compile_region()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (N, 3, H, W) in [−0.5, 0.5] as features (N, num_features)."""
        return self.layers(frames.contiguous(memory_format=torch.channels_last)).flatten(1)


class ImageDecoder(nn.Module):
    """The mirror of `ImageEncoder`: nearest-neighbour upsampling before each convolution, and a sigmoid.

    The first feature map is a block-linear map of the deterministic state plus an MLP of the latents.

    Args:
        deter: width of the deterministic state.
        stoch: width of the flattened latents.
        hidden: width of the latents' MLP.
        blocks: blocks of the state's map; it must divide `deter` and the map's size.
        encoder: whose last feature map is the first one here.
        depth: base number of channels.
        config: sizes.
        activation: name of the activation.
    """

    def __init__(
        self,
        deter: int,
        stoch: int,
        hidden: int,
        blocks: int,
        encoder: ImageEncoder,
        depth: int,
        config: ImageConfig,
        activation: str,
    ) -> None:
        super().__init__()
        self.blocks, self.map_shape = blocks, encoder.map_shape
        channels = encoder.map_shape[0]
        self.from_deter = BlockLinear(deter, encoder.num_features, blocks)
        self.from_stoch = MLP(stoch, 2 * hidden, 1, encoder.num_features, activation)
        layers: list[nn.Module] = [ImageNorm(channels), ACTIVATIONS[activation]()]
        for multiplier in config.multipliers[-2::-1]:
            layers.append(_initialized(UpsampledConvolution(channels, depth * multiplier, config.kernel)))
            channels = depth * multiplier
            layers += [ImageNorm(channels), ACTIVATIONS[activation]()]
        layers.append(_initialized(UpsampledConvolution(channels, 3, config.kernel)))
        self.layers = nn.Sequential(*layers)

    @compile_region()
    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Decode states (N, deter) and (N, stoch) into frames (N, 3, H, W) float32 in [0, 1]."""
        first = self.from_deter(deter.unflatten(-1, (self.blocks, -1))).flatten(1) + self.from_stoch(stoch)
        x = first.unflatten(-1, self.map_shape).contiguous(memory_format=torch.channels_last)
        return self.layers(x).float().sigmoid()


class StridedEncoder(nn.Module):
    """The encoder of DreamerV2: four 4×4 convolutions of stride 2 with 1, 2, 4 and 8 times the base channels.

    Args:
        frame_size: height and width of the frames, 64×64.
        depth: base number of channels.
        activation: name of the activation.

    Attributes:
        num_features: number of features.

    Raises:
        ValueError: if the frames have another size.
    """

    def __init__(self, frame_size: tuple[int, int], depth: int, activation: str) -> None:
        super().__init__()
        if tuple(frame_size) != (64, 64):
            raise ValueError(f"images.strided needs frames of 64×64 pixels, not {frame_size[0]}×{frame_size[1]}")
        widths = [3, *(depth * 2**stage for stage in range(4))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1] * 4

    @compile_region()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (N, 3, 64, 64) in [−0.5, 0.5] as features (N, num_features)."""
        return self.layers(frames).flatten(1)


class StridedDecoder(nn.Module):
    """The decoder of DreamerV2: a linear layer, then transposed convolutions of kernels 5, 5, 6 and 6 and stride 2.

    Args:
        deter: width of the deterministic state.
        stoch: width of the flattened latents.
        depth: base number of channels.
        activation: name of the activation.
    """

    def __init__(self, deter: int, stoch: int, depth: int, activation: str) -> None:
        super().__init__()
        widths = [32 * depth, 4 * depth, 2 * depth, depth, 3]
        self.first = nn.Linear(deter + stoch, widths[0])
        layers: list[nn.Module] = []
        for index, kernel in enumerate((5, 5, 6, 6)):
            layers.append(nn.ConvTranspose2d(widths[index], widths[index + 1], kernel, stride=2))
            layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers[:-1])

    @compile_region()
    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """Decode states (N, deter) and (N, stoch) into frames (N, 3, 64, 64) float32, not clamped."""
        return self.layers(self.first(torch.cat([deter, stoch], -1))[:, :, None, None]).float() + 0.5
