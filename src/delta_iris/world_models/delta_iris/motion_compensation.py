"""Motion compensation: take pixels from moved copies of the last frame (CDNA: Finn et al., 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region

__all__ = ["MotionCompensation", "check_motion_arguments"]


def check_motion_arguments(num_transforms: int, min_synthesis_weight: float) -> None:
    """Check the arguments of a tokenizer with motion compensation.

    Raises:
        ValueError: if one is out of range.
    """
    if num_transforms < 0:
        raise ValueError(f"num_transforms is {num_transforms}: it must be 0 (none) or a number of copies")
    if not 0 <= min_synthesis_weight < 1:
        raise ValueError(f"min_synthesis_weight is {min_synthesis_weight}: it must be at least 0 and below 1")


class MotionCompensation(nn.Module):
    """Mixes, for each pixel, the synthesized frame, the last frame, and transformed copies of the last frame.

    Each copy is translated as a whole by its own kernel, the product of a distribution over rows and one over columns,
    by at most `max_displacement` pixels; pixels beyond the border repeat it. Scrolling the picture then takes the
    choice of two offsets. Without it, a Transformer has to carry every pixel from patch to patch, and a CNN from layer
    to layer.

    Copying is learned within about 100 steps. During training a minimum weight on the synthesized pixel keeps a
    gradient flowing to the decoder and the tokens, which otherwise may encode nothing for hundreds of steps.

    Args:
        dim: width of the vectors that the kernels are predicted from.
        num_transforms: M, number of copies, 1 or more.
        max_displacement: largest translation in each direction, in pixels.
        min_synthesis_weight: minimum weight of the synthesized pixel while gradients are computed in training, at least
            0 and below 1.

    Attributes:
        channels: channels that a decoder must output: three colours, then the mixing logits of the synthesized frame,
            the last frame and each copy.
    """

    def __init__(self, dim: int, num_transforms: int, max_displacement: int, min_synthesis_weight: float) -> None:
        super().__init__()
        self.num_transforms, self.max_displacement = num_transforms, max_displacement
        self.min_synthesis_weight = min_synthesis_weight
        self.channels = 3 + 2 + num_transforms
        self.kernels = nn.Linear(dim, num_transforms * 2 * (2 * max_displacement + 1))
        # Kernels start out different; otherwise all copies would learn the same.
        nn.init.normal_(self.kernels.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.kernels.bias)

    @compile_region()
    def forward(self, outputs: Tensor, frames: Tensor, vectors: Tensor) -> Tensor:
        """Compose the next frame.

        Args:
            outputs: (B, T, channels, H, W), output of a decoder.
            frames: (B, T, 3, H, W), the last frames.
            vectors: (B, T, dim), which the kernels are predicted from.

        Returns:
            (B, T, 3, H, W).
        """
        synthesized, logits = outputs.split([3, self.channels - 3], dim=2)
        copies = self.transform(frames, vectors)
        sources = torch.cat([synthesized.unsqueeze(2), frames.unsqueeze(2), copies], dim=2)
        mixed = (logits.float().softmax(2).unsqueeze(3) * sources).sum(2)
        if self.min_synthesis_weight and self.training and torch.is_grad_enabled():
            mixed = torch.lerp(mixed, synthesized.to(mixed.dtype), self.min_synthesis_weight)
        return mixed

    def transform(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """Translate M copies of each frame.

        Args:
            frames: (B, T, 3, H, W).
            vectors: (B, T, dim), which the kernels are predicted from.

        Returns:
            (B, T, M, 3, H, W). Under autocast it has autocast's type.
        """
        weights = self.kernels(vectors).float().unflatten(-1, (self.num_transforms, 2, -1)).softmax(-1)
        height, width = frames.shape[-2:]
        vertical = self._band_matrix(weights[..., 0, :], height)
        horizontal = self._band_matrix(weights[..., 1, :], width)
        # Matrix products over the rows of all copies at once: a convolution would need a kernel for each frame.
        rows = torch.einsum("btmij,btcjw->btmciw", vertical, frames)
        return torch.einsum("btmvw,btmciw->btmciv", horizontal, rows)

    def _band_matrix(self, weights: Tensor, size: int) -> Tensor:
        """Matrices (…, size, size) that apply kernels (…, 2 · max_displacement + 1) along one axis."""
        offsets = torch.arange(-self.max_displacement, self.max_displacement + 1, device=weights.device)
        pixels = torch.arange(size, device=weights.device)
        source = (pixels.unsqueeze(1) + offsets).clamp(0, size - 1)
        return torch.einsum("...k,ikj->...ij", weights, (source.unsqueeze(2) == pixels).to(weights.dtype))
