"""AdamW with a linear warm-up, as every module of the agent uses it."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["make_optimizer"]


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, warmup_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the trainable parameters of `module`, and its warm-up (a step is an optimizer step).

    Decay applies to the weights of linear layers only, never to biases, norms, embeddings or convolutions.
    Without decay AdamW is Adam. On a GPU the fused kernel is used.
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
    return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup_steps + 1)))
