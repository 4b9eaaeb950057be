"""AdamW with learning rate warm-up and decay, and steps that a flag on the device skips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["OptimizerConfig", "make_optimizer", "mask_step", "rewind_schedule"]


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


def mask_step(optimizer: torch.optim.Optimizer, skip: Tensor) -> bool:
    """Let the next `step` of an optimizer change nothing, neither weights nor its own state, if a flag says so.

    The host does not wait for the device if the optimizer is fused, as `make_optimizer`'s is on a GPU, or says that it
    skips on the device, as `LaProp` does. The host reads the flag for any other optimizer.

    Args:
        optimizer: optimizer whose gradients have been computed.
        skip: () float32, 1 to skip the step and 0 to take it.

    Returns:
        Whether the host knows that the step is skipped; always False where the device decides.
    """
    # A checkpoint brings its own groups, so that one from a GPU is fused on a CPU as well, and the other way round.
    if getattr(optimizer, "skips_on_device", False) or all(group.get("fused") for group in optimizer.param_groups):
        # The flag by which GradScaler skips a step of mixed precision; the kernels read it on the device.
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        return False
    if not bool(skip):
        return False
    # Parameters without a gradient are left out of a step.
    optimizer.zero_grad()
    return True


def rewind_schedule(schedule: LambdaLR, steps: int) -> None:
    """Take back steps of a learning rate schedule.

    Args:
        schedule: schedule of `make_optimizer`.
        steps: number of steps to take back.
    """
    schedule.last_epoch -= steps
    groups = schedule.optimizer.param_groups
    for group, rate, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
