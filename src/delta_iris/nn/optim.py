"""AdamW with learning rate warm-up and decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["OptimizerConfig", "make_optimizer"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyperparameters of AdamW, its learning rate schedule and gradient clipping.

    Warm-up and decay are linear, both start at the first optimizer step, and their factors are multiplied.

    Args:
        learning_rate: learning rate before warm-up and decay are applied.
        weight_decay: weight decay of the weights of linear layers; 0 makes AdamW Adam.
        warmup_steps: number of optimizer steps in which the learning rate rises to its full value.
        min_lr_factor: factor that the learning rate decays to; 1 for no decay.
        lr_decay_steps: number of optimizer steps in which it decays to `min_lr_factor`; 0 for no decay.
        max_grad_norm: gradients are clipped to this norm.

    Raises:
        ValueError: if an argument is out of range, or only one of `min_lr_factor` and `lr_decay_steps` asks for decay.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 0
    min_lr_factor: float = 1.0
    lr_decay_steps: int = 0
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be finite and above 0")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay}: it must be finite and at least 0")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}: it must be at least 0")
        if not 0 <= self.min_lr_factor <= 1:
            raise ValueError(f"min_lr_factor is {self.min_lr_factor}: it must be from 0 to 1")
        if self.lr_decay_steps < 0:
            raise ValueError(f"lr_decay_steps is {self.lr_decay_steps}: it must be at least 0")
        if (self.min_lr_factor < 1) != (self.lr_decay_steps > 0):
            raise ValueError(
                f"min_lr_factor is {self.min_lr_factor} and lr_decay_steps is {self.lr_decay_steps}: for a decaying "
                "learning rate, set min_lr_factor below 1 and lr_decay_steps above 0; for a constant one, set neither"
            )
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}: it must be above 0")


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Create AdamW for the trainable parameters of a module, and its learning rate schedule.

    Weight decay applies to the weights of linear layers only, not to biases, norms, embeddings or convolutions. On a
    GPU the fused kernel is used.

    Args:
        module: module to train.
        config: hyperparameters; `max_grad_norm` is for the caller, who clips the gradients.

    Returns:
        The optimizer, and the schedule that is stepped after every optimizer step.
    """
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=parameters[0].is_cuda
    )

    def lr_factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
        decayed_fraction = min(1.0, step / config.lr_decay_steps) if config.lr_decay_steps else 0.0
        return warmup * (1 + (config.min_lr_factor - 1) * decayed_fraction)

    return optimizer, LambdaLR(optimizer, lr_factor)
