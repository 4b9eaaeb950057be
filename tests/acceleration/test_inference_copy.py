"""Tests of inference copies."""

from __future__ import annotations

import torch
from torch import nn

from delta_iris.acceleration.inference_copy import InferenceCopy


def test_copy_follows_its_source_in_place() -> None:
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    copied = InferenceCopy(source, torch.bfloat16)
    addresses = [p.data_ptr() for p in copied.module.parameters()]
    source(torch.randn(2, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    copied.sync()
    assert addresses == [p.data_ptr() for p in copied.module.parameters()]
    assert not any(p.requires_grad for p in copied.module.parameters())
    for parameter, original in zip(copied.module.parameters(), source.parameters(), strict=True):
        assert torch.equal(parameter, original.to(torch.bfloat16))
    for copied_buffer, buffer in zip(copied.module.buffers(), source.buffers(), strict=True):
        assert copied_buffer.dtype == buffer.dtype
        assert torch.equal(copied_buffer, buffer)
