"""How a Dreamer agent's parts are optimized together: one LaProp, or three Adams."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_iris.nn.laprop import LaProp, clip_adaptively

__all__ = ["AdamConfig", "JointOptimizer", "OneLaProp", "ThreeAdams"]


class JointOptimizer(ABC):
    """Makes one optimizer of parameter groups, and clips their gradients.

    Attributes:
        learning_rate_key: its key of the learning rate that most depends on, for messages.
    """

    learning_rate_key: ClassVar[str] = "learning_rate"

    @abstractmethod
    def make(self, parts: dict[str, nn.Module]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Create the optimizer and its learning rate schedule.

        Args:
            parts: `world_model`, `actor` and `critic`.
        """

    @abstractmethod
    def learning_rates(self, groups: int) -> list[float]:
        """The learning rates of the parameter groups, before warm-up.

        Args:
            groups: number of them.
        """

    @abstractmethod
    def clip_gradients(self, parts: dict[str, nn.Module]) -> Tensor:
        """Clip the gradients; return their norm before that, () on the device.

        Args:
            parts: as for `make`.
        """


class OneLaProp(JointOptimizer):
    """LaProp with adaptive gradient clipping for all parts (DreamerV3).

    Args:
        learning_rate: after warm-up.
        beta1: decay of the momentum.
        beta2: decay of the squared gradients.
        eps: added to the root of the squared gradients.
        clip: each tensor's gradient is clipped to this share of the tensor's norm.
        least_norm: what a smaller norm of a tensor counts as.
        warmup_steps: steps in which the learning rate rises to its full value.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        learning_rate: float = 4e-5,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-20,
        clip: float = 0.3,
        least_norm: float = 1e-3,
        warmup_steps: int = 1000,
    ) -> None:
        for name, value in (("learning_rate", learning_rate), ("clip", clip), ("least_norm", least_norm)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}: it must be finite and above 0")
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 0 and below 1")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}: it must be at least 0")
        self.learning_rate, self.betas, self.eps = learning_rate, (beta1, beta2), eps
        self.clip, self.least_norm, self.warmup_steps = clip, least_norm, warmup_steps

    def make(self, parts: dict[str, nn.Module]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """See `JointOptimizer.make`: a single group."""
        trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        optimizer = LaProp(trained, self.learning_rate, self.betas, self.eps)
        return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1)))

    def learning_rates(self, groups: int) -> list[float]:
        """See `JointOptimizer.learning_rates`."""
        return [self.learning_rate] * groups

    def clip_gradients(self, parts: dict[str, nn.Module]) -> Tensor:
        """See `JointOptimizer.clip_gradients`: tensor by tensor."""
        return clip_adaptively((p for part in parts.values() for p in part.parameters()), self.clip, self.least_norm)


@dataclass(frozen=True)
class AdamConfig:
    """Adam for one part.

    Args:
        learning_rate: learning rate.
        eps: ε.
        weight_decay: each step multiplies all weights by 1 − learning_rate · weight_decay.
        max_grad_norm: the part's gradients are clipped to this norm.

    Raises:
        ValueError: if an argument is out of range.
    """

    learning_rate: float = 1e-4
    eps: float = 1e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            may_be_zero = each.name == "weight_decay"
            if not (0 <= value < math.inf) or (value == 0 and not may_be_zero):
                raise ValueError(f"{each.name} is {value}: it must be finite and above {'or equal to ' * may_be_zero}0")


class ThreeAdams(JointOptimizer):
    """An Adam for each part, with its own learning rate and clipping (DreamerV2).

    Args:
        world_model: of the world model.
        actor: of the actor.
        critic: of the critic.
    """

    learning_rate_key: ClassVar[str] = "world_model.learning_rate"

    def __init__(
        self,
        world_model: AdamConfig = AdamConfig(2e-4, weight_decay=0.005),
        actor: AdamConfig = AdamConfig(4e-5, weight_decay=0.025),
        critic: AdamConfig = AdamConfig(1e-4),
    ) -> None:
        self.configs = {"world_model": world_model, "actor": actor, "critic": critic}

    def make(self, parts: dict[str, nn.Module]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """See `JointOptimizer.make`: a group for each part, in their order."""
        groups: list[dict[str, Any]] = []
        for name, part in parts.items():
            config, trained = self.configs[name], [p for p in part.parameters() if p.requires_grad]
            options = {"lr": config.learning_rate, "eps": config.eps, "weight_decay": config.weight_decay}
            groups.append({"params": trained, **options})
        optimizer = torch.optim.AdamW(groups, fused=groups[0]["params"][0].is_cuda)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    def learning_rates(self, groups: int) -> list[float]:
        """See `JointOptimizer.learning_rates`."""
        return [config.learning_rate for config in self.configs.values()]

    def clip_gradients(self, parts: dict[str, nn.Module]) -> Tensor:
        """See `JointOptimizer.clip_gradients`: part by part."""
        limits = {name: config.max_grad_norm for name, config in self.configs.items()}
        norms = [nn.utils.clip_grad_norm_(part.parameters(), limits[name]) for name, part in parts.items()]
        return torch.stack(norms).norm()
