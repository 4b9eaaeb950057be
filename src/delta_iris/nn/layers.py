"""Layers of DreamerV3: block-diagonal linear maps, MLPs with RMSNorm, and their initialization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "MLP", "BlockLinear", "ImageNorm", "RMSNorm", "initialize"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "elu": nn.ELU}
"""Activations by the names that configurations use."""


class RMSNorm(nn.Module):
    """Divides vectors by their root mean square and scales them; computes in float32.

    Args:
        dim: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize vectors (…, dim) → (…, dim) float32."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()


class ImageNorm(RMSNorm):
    """`RMSNorm` over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize feature maps (B, C, H, W) → (B, C, H, W) float32."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BlockLinear(nn.Module):
    """A linear map with a block-diagonal matrix: block i of the output depends on block i of the input only.

    Args:
        in_features: input width, a multiple of `blocks`.
        out_features: output width, a multiple of `blocks`.
        blocks: number of blocks.

    Raises:
        ValueError: if a width is not a multiple of `blocks`.
    """

    def __init__(self, in_features: int, out_features: int, blocks: int) -> None:
        super().__init__()
        for width in (in_features, out_features):
            if width % blocks:
                raise ValueError(f"blocks is {blocks}: it must divide the width {width}")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, in_features // blocks, out_features // blocks))
        self.bias = nn.Parameter(torch.zeros(blocks, 1, out_features // blocks))
        initialize(self.weight, in_features // blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map blocks (B, blocks, in_features / blocks) to (B, blocks, out_features / blocks)."""
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


class MLP(nn.Sequential):
    """Hidden layers (linear, RMSNorm and activation each), then a linear output layer.

    Args:
        in_features: input width.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        out_features: output width; None ends with the last hidden layer.
        activation: name of the activation, a key of `ACTIVATIONS`.
        norm: whether hidden layers have an RMSNorm.
        output_scale: factor on the initial weights of the output layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        layers: int,
        out_features: int | None = None,
        activation: str = "silu",
        norm: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        modules: list[nn.Module] = []
        for index in range(layers):
            modules.append(_linear(hidden if index else in_features, hidden))
            modules += [RMSNorm(hidden)] if norm else []
            modules.append(ACTIVATIONS[activation]())
        if out_features is not None:
            modules.append(_linear(hidden if layers else in_features, out_features, output_scale))
        super().__init__(*modules)


def _linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    initialize(layer.weight, in_features, scale)
    nn.init.zeros_(layer.bias)
    return layer


def initialize(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Draw initial weights from a normal distribution cut at two standard deviations, of variance scale² / fan_in.

    Args:
        weight: changed in place.
        fan_in: number of inputs of an output.
        scale: factor; 0 for weights of zero.
    """
    # The standard deviation of a standard normal distribution that is cut at ±2.
    cut = 0.87962566
    std = scale / math.sqrt(fan_in) / cut
    if std == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
