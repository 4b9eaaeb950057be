"""AdamW and the learning rate's course, as every module of the agent uses them."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from delta_iris.errors import UserError

__all__ = ["check_decay", "make_optimizer"]


def check_decay(key: str, final_fraction: float, decay_steps: int) -> None:
    """Refuse a fall of the learning rate that is none; `key` is the module's in the configuration.

    Raises:
        UserError: unless both say that it falls, or neither.
    """
    if not 0 <= final_fraction <= 1 or decay_steps < 0 or (final_fraction < 1) != (decay_steps > 0):
        raise UserError(
            f"{key}.final_fraction is {final_fraction} and decay_steps {decay_steps}: give a "
            "fraction from 0 to 1 and the number of steps in which the learning rate falls to it, or neither"
        )


def make_optimizer(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    final_fraction: float = 1.0,
    decay_steps: int = 0,
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the trainable parameters of `module`, and its learning rate's schedule.

    Weight decay applies to the weights of linear layers only, never to biases, norms, embeddings or convolutions.
    Without it AdamW is Adam. On a GPU the fused kernel is used.

    Args:
        module: to train.
        learning_rate: its two factors, of warm-up and of decay, multiply it.
        weight_decay: of linear layers.
        warmup_steps: optimizer steps in which the first factor rises to 1, linearly.
        final_fraction: what the second factor falls to, linearly from 1.
        decay_steps: optimizer steps until it has, counted from the first.
    """
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, fused=parameters[0].is_cuda
    )

    def scale(step: int) -> float:
        fallen = min(1.0, step / decay_steps) if decay_steps else 0.0
        return min(1.0, (step + 1) / (warmup_steps + 1)) * (1 + (final_fraction - 1) * fallen)

    return optimizer, LambdaLR(optimizer, scale)
