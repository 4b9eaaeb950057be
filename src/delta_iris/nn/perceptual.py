"""A perceptual distance between images (LPIPS: Zhang et al., 2018), with weights from a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.errors import UserError
from delta_iris.files import open_regular

__all__ = ["PerceptualDistance"]

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG-16's convolutions in torchvision's `features`; a maximum over 2×2 pixels stands between stages."""
CHANNELS = (64, 128, 256, 512, 512)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which VGG-16 was trained on."""


class PerceptualDistance(nn.Module):
    """Weighted squared distances between normalized features of VGG-16, averaged over pixels and summed over stages.

    The weights are constants, and in no state dict. The file is a dict of tensors, as `torch.save` writes it, with the
    names of torchvision's `vgg16` (`features.0.weight`, `features.0.bias` … `features.28.bias`) and of the weights that
    LPIPS publishes for it (`lin0.model.1.weight` … `lin4.model.1.weight`); others are ignored.

    Args:
        path: of the file, which is read as tensors only.

    Raises:
        UserError: if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        weights, channels = _read(path), 3
        for stage, (convolutions, width) in enumerate(zip(STAGES, CHANNELS, strict=True)):
            for number in convolutions:
                self._take(path, weights, f"features.{number}.weight", (width, channels, 3, 3))
                self._take(path, weights, f"features.{number}.bias", (width,))
                channels = width
            self._take(path, weights, f"lin{stage}.model.1.weight", (1, width, 1, 1))
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) between images (B, 3, H, W) in [0, 1], of at least 16 × 16 pixels, and as many others."""
        x = (torch.cat([images, others]) - self.get_buffer("mean")) / self.get_buffer("std")
        distance = x.new_zeros(len(images))
        for stage, convolutions in enumerate(STAGES):
            if stage > 0:
                x = F.max_pool2d(x, 2)
            for number in convolutions:
                weight, bias = (self.get_buffer(f"features_{number}_{part}") for part in ("weight", "bias"))
                x = F.conv2d(x, weight, bias, padding=1).relu()
            one, other = F.normalize(x.float(), dim=1, eps=1e-10).chunk(2)
            weighted = F.conv2d((one - other).square(), self.get_buffer(f"lin{stage}_model_1_weight"))
            distance = distance + weighted.mean((1, 2, 3))
        return distance

    def _take(self, path: Path, weights: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
        value = weights.get(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            found = "missing" if value is None else "of another shape"
            raise UserError(f"{path} does not hold the weights of VGG-16 and LPIPS: {name} is {found}")
        self.register_buffer(name.replace(".", "_"), value.float(), persistent=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with open_regular(path) as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}, which perceptual_weights names, does not exist") from None
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or no file of tensors ({str(error).splitlines()[0][:100]})") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} is damaged or no file of tensors: it must hold a dict")
    return weights
