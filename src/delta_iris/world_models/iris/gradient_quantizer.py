"""A codebook that is learned by gradient (VQ-VAE: van den Oord et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from delta_iris.distributed import world_size
from delta_iris.nn.precision import full_precision
from delta_iris.nn.statistics import code_entropy
from delta_iris.world_models.tokens.quantizer import Quantizer

__all__ = ["GradientCodebookConfig", "GradientQuantizer"]


@dataclass(frozen=True)
class GradientCodebookConfig:
    """A codebook that is learned by gradient.

    Args:
        size: number of codewords N.
        dim: dimension D of a codeword.

    Raises:
        ValueError: if a size is not positive.
    """

    size: int = 512
    dim: int = 512

    def __post_init__(self) -> None:
        if self.size < 1 or self.dim < 1:
            raise ValueError(f"size is {self.size} and dim {self.dim}: both must be 1 or more")


class GradientQuantizer(Quantizer):
    """A codebook whose nearest codeword is the one at the least Euclidean distance.

    The codebook is a parameter. Its gradient comes from the distance of codewords to latents; see
    `FrameTokenizer.loss_terms`.

    Args:
        config: sizes.
    """

    keeps_precision: ClassVar[bool] = True
    """In copies for inference: with rounded codewords, frames would get other tokens."""

    def __init__(self, config: GradientCodebookConfig) -> None:
        super().__init__(config.size)
        self.codebook = nn.Parameter(torch.empty(config.size, config.dim).uniform_(-1 / config.size, 1 / config.size))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """See `Quantizer.forward`."""
        # A small product, worth full precision: rounding would choose another token.
        with full_precision(latents.device):
            latents, codebook = latents.float(), self.codebook.float()
            # The squared distance, but for the latent's own square and a factor of −2.
            closeness = latents @ codebook.T - codebook.square().sum(-1) / 2
            return closeness.argmax(-1), latents

    @torch.no_grad()
    def update(self, latents: Tensor, tokens: Tensor, mask: Tensor, skip: Tensor | None = None) -> dict[str, Tensor]:
        """See `Quantizer.update`: only measures, `codebook_entropy` and `codes_used`."""
        counts = torch.zeros(self.codebook_size, device=tokens.device)
        counts.index_add_(0, tokens.flatten(), mask.float().flatten())  # exact in float32, in any order
        if world_size() > 1:
            dist.all_reduce(counts)
        return {"codebook_entropy": code_entropy(counts), "codes_used": (counts > 0).sum().float()}
