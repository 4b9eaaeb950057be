"""LaProp, the optimizer of DreamerV3, and its adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["LaProp", "clip_adaptively"]


class LaProp(torch.optim.Optimizer):
    """LaProp (Ziyin et al., 2020): a gradient is normalized first, and the momentum is that of normalized gradients.

    With bias-corrected averages v of squared gradients and m of normalized ones:

        v ← β₂ v + (1 − β₂) g²,  m ← β₁ m + (1 − β₁) g / (√v̂ + ε),  p ← p − lr · m̂

    Adam divides the momentum instead, so that a gradient after many small ones makes a large step.

    A flag on the device, which `mask_step` sets, skips a step without the host reading it.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: β₁ and β₂.
        eps: ε.
    """

    skips_on_device = True
    found_inf: Tensor | None = None
    """() float32, 1 to let the next step change nothing."""

    def __init__(
        self, params: Iterable[Any], lr: float = 4e-5, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-20
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: recomputes the loss with gradients, if given.

        Returns:
            what the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "momentum": torch.zeros_like(p),
                    "square": torch.zeros_like(p),
                    # On the device, because only there is it known which steps were skipped.
                    "steps": torch.zeros((), dtype=p.dtype, device=p.device),
                }
        momenta, squares, steps = ([self.state[p][key] for p in parameters] for key in ("momentum", "square", "steps"))
        (beta1, beta2), taken = group["betas"], torch.ones_like(steps[0])
        if self.found_inf is not None:
            skip = self.found_inf.bool()
            taken = (~skip).to(taken.dtype)
            # What is not finite would stay so when it is multiplied by zero.
            gradients = [torch.where(skip, 0.0, gradient) for gradient in gradients]
        torch._foreach_add_(steps, [taken] * len(steps))
        # All parameters have taken the same number of steps; a first step that is skipped leaves it at zero.
        number = steps[0].clamp(min=1)
        _average(squares, list(torch._foreach_mul(gradients, gradients)), taken * (1 - beta2))
        scales = torch._foreach_div(squares, 1 - beta2**number)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        _average(momenta, list(torch._foreach_div(gradients, scales)), taken * (1 - beta1))
        changes = torch._foreach_mul(momenta, group["lr"] * taken / (1 - beta1**number))
        torch._foreach_sub_(parameters, changes)


def _average(averages: list[Tensor], values: list[Tensor], weight: Tensor) -> None:
    """Move averages towards values, which are overwritten: averages + weight · (values − averages)."""
    torch._foreach_mul_(averages, 1 - weight)
    torch._foreach_mul_(values, weight)
    torch._foreach_add_(averages, values)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], limit: float, least_norm: float = 1e-3) -> Tensor:
    """Scale each tensor's gradient down to a fraction of the tensor's own norm (Brock et al., 2021).

    Args:
        parameters: with gradients; those without are skipped.
        limit: the largest ratio of norms.
        least_norm: what a smaller norm of a tensor counts as.

    Returns:
        () the norm of all gradients together before they were clipped.
    """
    clipped = [p for p in parameters if p.grad is not None]
    gradients: list[Tensor] = [p.grad for p in clipped if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    limits = torch.stack(torch._foreach_norm([p.detach() for p in clipped])).clamp(min=least_norm) * limit
    # A gradient of zero has a factor of 1: the tiny number only avoids 0 / 0.
    factors = (limits / norms.clamp(min=1e-30)).clamp(max=1)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms.norm()
