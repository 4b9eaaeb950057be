"""Success rates of achievements and the Crafter score, as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["AchievementRates"]


class AchievementRates(Metric):
    """Share of the episodes that unlocked each achievement.

    The Crafter score is the geometric mean of the success rates s_i, in percent: exp(mean(ln(1 + s_i))) − 1
    (Hafner, 2022).

    Args:
        names: of the achievements.
        options: of `torchmetrics.Metric`.
    """

    unlocked: Tensor
    episodes: Tensor
    higher_is_better = True

    def __init__(self, names: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self.names = names
        self.add_state("unlocked", default=torch.zeros(len(names)), dist_reduce_fx="sum")
        self.add_state("episodes", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, counts: dict[str, int]) -> None:
        """Add an episode.

        Args:
            counts: how often each achievement was unlocked in it.
        """
        self.unlocked += torch.tensor([float(counts[name] > 0) for name in self.names], device=self.unlocked.device)
        self.episodes += 1

    def compute(self) -> dict[str, Tensor]:
        """Success rate of each achievement in percent, `score`, and `achievements_per_episode`."""
        rates = 100 * self.unlocked / self.episodes.clamp(min=1)
        values = dict(zip(self.names, rates.unbind(), strict=True))
        return values | {"score": rates.log1p().mean().expm1(), "achievements_per_episode": rates.sum() / 100}
