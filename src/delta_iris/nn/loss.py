"""The result of a loss function."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["LossOutput"]


class LossOutput(NamedTuple):
    """A loss, and what else its computation gave.

    Attributes:
        loss: () differentiable scalar.
        metrics: detached scalars to log, by name.
        aux: what the module needs after the backward pass, such as the latents that move a codebook.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    aux: Any = None

    def to_dict(self) -> dict[str, Tensor]:
        """Loss and metrics in one dict, as Lightning's `training_step` returns them."""
        return {"loss": self.loss} | self.metrics
