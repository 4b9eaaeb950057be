"""Tests of the communication between processes; see also tests/integration/test_ranks.py."""

from __future__ import annotations

import torch
from torch import nn

from delta_iris.distributed import average_gradients, gather_objects, world_size


def test_single_process_needs_no_communication() -> None:
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    assert average_gradients(module.parameters(), torch.tensor(2.0)) == 2
    assert module.weight.grad is not None
    assert torch.equal(module.weight.grad, torch.ones(1, 2))
    assert gather_objects("object") == ["object"]
    assert world_size() == 1
