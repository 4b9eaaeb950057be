"""Vector quantization with factorized, l2-normalized codes and a moving-average codebook (paper §2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from delta_iris.distributed import world_size

__all__ = ["VectorQuantizer", "code_entropy"]

GROWN_UP = 500
"""Updates after which a codebook may settle; finding an unused codeword takes the first threshold 114 of them."""


def code_entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of the code frequencies given by `counts` (N,)."""
    frequencies = counts / counts.sum().clamp(min=1)
    return -torch.xlogy(frequencies, frequencies).sum() / math.log(2)


class VectorQuantizer(nn.Module):
    """A codebook of unit vectors, learnt by exponential moving average, with revival of unused codewords.

    Args:
        codebook_size: number of codewords N.
        code_dim: dimension D of a codeword.
        decay: of a chosen codeword towards the mean of its vectors.
        usage_decay: of the running frequency of each codeword.
        revival_threshold: codewords used less than this share of 1/N become random vectors of the batch.
        settled_threshold: takes its place once a world model has learned from the tokens, see `settle`.
    """

    codebook: Tensor
    usage: Tensor
    threshold: Tensor
    """(): the share that holds now."""
    updates: Tensor
    """(): how often the codebook has moved."""

    def __init__(
        self,
        codebook_size: int = 1024,
        code_dim: int = 64,
        decay: float = 0.99,
        usage_decay: float = 0.98,
        revival_threshold: float = 0.1,
        settled_threshold: float = 0.001,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.decay, self.usage_decay, self.settled_threshold = decay, usage_decay, settled_threshold
        self.register_buffer("codebook", F.normalize(torch.randn(codebook_size, code_dim), dim=-1))
        self.register_buffer("usage", torch.full((codebook_size,), 1 / codebook_size))
        # A tensor, for captured steps read it where it is.
        self.register_buffer("threshold", torch.tensor(revival_threshold))
        self.register_buffer("updates", torch.tensor(0))

    def settle(self) -> None:
        """Revive from now on only codewords that are not used at all, unless the codebook is still young.

        A revived codeword stands for what others stood for before, and a world model that knows those does not know
        it: reviving the rare ones as well, as a young codebook needs, undid most of what one had learned.
        """
        settled = torch.full_like(self.threshold, self.settled_threshold)
        self.threshold.copy_(torch.where(self.updates < GROWN_UP, self.threshold, settled))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest codewords by cosine.

        Args:
            latents: (…, D).

        Returns:
            tokens (…) int64, and the latents on the unit sphere (…, D) float32.
        """
        # A small product, worth full precision: a wrong choice is a wrong token.
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=-1)
            return (unit @ self.codebook.T).argmax(-1), unit

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codewords (…, D) of tokens (…)."""
        return F.embedding(tokens, self.codebook)

    def straight_through(self, unit: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Codewords that hand their gradient to the latents, and the commitment error, both (…, D)."""
        codes = self.lookup(tokens)
        return unit + (codes - unit).detach(), (unit - codes).square()

    @torch.no_grad()
    def update(self, unit: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Move the codebook towards a batch; all processes hold the same codebook after it.

        Args:
            unit: (M, D) latents on the unit sphere.
            tokens: (M,) the codewords chosen for them.
            mask: (M,) booleans; padding does not count.

        Returns:
            `codebook_entropy` (bits, of this batch), `codewords_in_use` (in this batch), `revived`.
        """
        with torch.autocast(unit.device.type, enabled=False):
            unit = unit.float()
            # A product with the one-hot matrix rather than index_add_, whose order of additions on a GPU is random.
            chosen = F.one_hot(tokens, self.codebook_size).to(unit.dtype) * mask.unsqueeze(-1)
            statistics = torch.cat([chosen.T @ unit, chosen.sum(0).unsqueeze(-1)], dim=-1)
            if world_size() > 1:
                dist.all_reduce(statistics)
            sums, counts = statistics[:, :-1], statistics[:, -1]
            moved = self.decay * self.codebook + (1 - self.decay) * F.normalize(sums, dim=-1)
            codebook = torch.where(counts.unsqueeze(-1) > 0, F.normalize(moved, dim=-1), self.codebook)
            total = counts.sum().clamp(min=1)
            usage = self.usage_decay * self.usage + (1 - self.usage_decay) * counts / total
            dead = (usage < self.threshold / self.codebook_size) & (counts.sum() > 0)
            codebook = torch.where(dead.unsqueeze(-1), self._candidates(unit, mask), codebook)
            self.codebook.copy_(codebook)
            self.usage.copy_(torch.where(dead, 1 / self.codebook_size, usage))
            self.updates.add_(1)
        return {
            "codebook_entropy": code_entropy(counts),
            "codewords_in_use": (counts > 0).sum().float(),
            "revived": dead.sum().float(),
        }

    def _candidates(self, unit: Tensor, mask: Tensor) -> Tensor:
        """N random vectors of the batch, (N, D); those of process 0 on all of them, if it has any."""
        cumulative = mask.float().cumsum(0)
        draws = torch.rand(self.codebook_size, device=unit.device) * cumulative[-1]
        candidates = unit[torch.searchsorted(cumulative, draws, right=True).clamp(max=len(unit) - 1)]
        if world_size() > 1:
            dist.broadcast(candidates, src=0)
        return candidates
