"""Vector quantization: the interface, and l2-normalized codes with a moving-average codebook (paper §2.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from delta_iris.distributed import world_size
from delta_iris.nn.statistics import code_entropy

__all__ = ["CodebookConfig", "Quantizer", "VectorQuantizer"]

MIN_UPDATES = 500
"""Updates after which code resets may be restricted; at the first threshold, finding a dead code takes 114."""


@dataclass(frozen=True)
class CodebookConfig:
    """A codebook of unit vectors.

    Args:
        size: number of codewords N.
        dim: dimension D of a codeword.
        decay: share of a chosen codeword that stays at each update; the rest is the mean of the latents that chose it.
            The paper's is 0.99. A codebook that slow lags behind a Transformer encoder: its error is 30 to 90 % of the
            latents' variance, instead of 3 to 16 % at 0.8.
        usage_decay: decay of the running frequency of each codeword.
        dead_code_threshold: codewords used less than this share of the uniform frequency 1/N are reset to random
            latents of the batch.
        late_reset_threshold: replaces `dead_code_threshold` once the dynamics have learned from the tokens. The authors
            keep 0.1.

    Raises:
        ValueError: if a size is not positive or a decay is not in [0, 1).
    """

    size: int = 1024
    dim: int = 64
    decay: float = 0.99
    usage_decay: float = 0.98
    dead_code_threshold: float = 0.1
    late_reset_threshold: float = 0.001

    def __post_init__(self) -> None:
        if self.size < 1 or self.dim < 1:
            raise ValueError(f"size is {self.size} and dim {self.dim}: both must be 1 or more")
        for name in ("decay", "usage_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")


class Quantizer(nn.Module, ABC):
    """Replaces latents by the nearest of N codewords.

    Attributes:
        codebook_size: N.
    """

    codebook: Tensor
    """(N, D) float32 codewords."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size

    @abstractmethod
    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest codewords.

        Args:
            latents: (…, D).

        Returns:
            tokens (…) int64, and the latents (…, D) float32 in the space in which codewords are compared with them.
        """

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codewords (…, D) of tokens (…)."""
        return F.embedding(tokens, self.codebook)

    def straight_through(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Codewords whose gradient passes to the latents, and the squared commitment error.

        Args:
            latents: (…, D) as `forward` returns them.
            tokens: (…) the codewords chosen for them.

        Returns:
            both (…, D). Neither has a gradient with respect to the codebook.
        """
        codes = self.lookup(tokens).detach()
        return latents + (codes - latents).detach(), (latents - codes).square()

    @abstractmethod
    def update(self, latents: Tensor, tokens: Tensor, mask: Tensor, skip: Tensor | None = None) -> dict[str, Tensor]:
        """Update what is not learned by gradient, after the backward pass of a batch, and measure the codebook's use.

        Args:
            latents: (M, D) as `forward` returned them.
            tokens: (M,) the codewords chosen for them.
            mask: (M,) bool, false for padding.
            skip: () bool, true to leave everything unchanged; the same on all processes. None stands for false.

        Returns:
            metrics, `codebook_entropy` (bits, of this batch) and `codes_used` (in this batch) among them.
        """

    def restrict_code_reset(self) -> None:
        """From now on dynamics learn from the tokens: codewords should keep their meaning. By default nothing to do."""


class VectorQuantizer(Quantizer):
    """A codebook learned by exponential moving average, with resets of dead codes (paper §2.1).

    Args:
        config: sizes, decays and thresholds.
    """

    usage: Tensor
    """(N,) running frequency of each codeword."""
    reset_threshold: Tensor
    """() the share of the uniform frequency under which a codeword is reset now."""
    num_updates: Tensor
    """() how often the codebook was updated."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__(config.size)
        self.decay, self.usage_decay = config.decay, config.usage_decay
        self.late_reset_threshold = config.late_reset_threshold
        self.register_buffer("codebook", F.normalize(torch.randn(config.size, config.dim), dim=-1))
        self.register_buffer("usage", torch.full((config.size,), 1 / config.size))
        # Tensors, because captured steps read them in place.
        self.register_buffer("reset_threshold", torch.tensor(config.dead_code_threshold))
        self.register_buffer("num_updates", torch.tensor(0))

    def restrict_code_reset(self) -> None:
        """From now on, reset only codes that are practically unused, unless the codebook is still young.

        A reset code takes over latents that other codes stood for, and dynamics that know those codes do not know it.
        Resetting rare codes as well, which a young codebook needs, undid most of what the dynamics had learned.
        """
        restricted = torch.full_like(self.reset_threshold, self.late_reset_threshold)
        self.reset_threshold.copy_(torch.where(self.num_updates < MIN_UPDATES, self.reset_threshold, restricted))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest codeword by cosine.

        Args:
            latents: (…, D).

        Returns:
            tokens (…) int64, and the latents on the unit sphere (…, D) float32.
        """
        # A small product, worth full precision: rounding would choose another token.
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=-1)
            return (unit @ self.codebook.T).argmax(-1), unit

    @torch.no_grad()
    def update(self, latents: Tensor, tokens: Tensor, mask: Tensor, skip: Tensor | None = None) -> dict[str, Tensor]:
        """Move the codebook towards a batch. All processes hold the same codebook afterwards.

        Args:
            latents: (M, D) on the unit sphere.
            tokens: (M,) the codewords chosen for them.
            mask: (M,) bool, false for padding.
            skip: () bool, true to leave all buffers unchanged; the same on all processes. None stands for false.

        Returns:
            `codebook_entropy` (bits, of this batch), `codes_used` (in this batch) and `codes_reset`.
        """
        with torch.autocast(latents.device.type, enabled=False):
            unit = latents.float()
            # A product with the one-hot matrix instead of index_add_, whose order of additions on a GPU is random.
            chosen = F.one_hot(tokens, self.codebook_size).to(unit.dtype) * mask.unsqueeze(-1)
            statistics = torch.cat([chosen.T @ unit, chosen.sum(0).unsqueeze(-1)], dim=-1)
            if world_size() > 1:
                dist.all_reduce(statistics)
            sums, counts = statistics[:, :-1], statistics[:, -1]
            moved = self.decay * self.codebook + (1 - self.decay) * F.normalize(sums, dim=-1)
            codebook = torch.where(counts.unsqueeze(-1) > 0, F.normalize(moved, dim=-1), self.codebook)
            total = counts.sum().clamp(min=1)
            usage = self.usage_decay * self.usage + (1 - self.usage_decay) * counts / total
            dead = (usage < self.reset_threshold / self.codebook_size) & (counts.sum() > 0)
            codebook = torch.where(dead.unsqueeze(-1), self._sample_latents(unit, mask), codebook)
            usage = torch.where(dead, 1 / self.codebook_size, usage)
            if skip is None:
                skip = torch.zeros_like(self.num_updates, dtype=torch.bool)
            self.codebook.copy_(torch.where(skip, self.codebook, codebook))
            self.usage.copy_(torch.where(skip, self.usage, usage))
            self.num_updates.add_(~skip)
        return {
            "codebook_entropy": code_entropy(counts),
            "codes_used": (counts > 0).sum().float(),
            "codes_reset": dead.sum().float(),
        }

    def _sample_latents(self, unit: Tensor, mask: Tensor) -> Tensor:
        """N random latents of the batch, (N, D); those of process 0 on all processes."""
        cumulative = mask.float().cumsum(0)
        draws = torch.rand(self.codebook_size, device=unit.device) * cumulative[-1]
        samples = unit[torch.searchsorted(cumulative, draws, right=True).clamp(max=len(unit) - 1)]
        if world_size() > 1:
            dist.broadcast(samples, src=0)
        return samples
