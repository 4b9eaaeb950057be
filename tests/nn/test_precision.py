"""Tests of precision contexts."""

from __future__ import annotations

import torch

from delta_iris.nn.precision import full_precision


def test_full_precision_disables_autocast() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x.device):
            assert (x @ x).dtype == torch.float32
