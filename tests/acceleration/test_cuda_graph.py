"""Tests of captured functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from delta_iris.acceleration.cuda_graph import CudaGraphed


@pytest.mark.gpu
def test_graph_equals_the_function_and_restores_mutated_tensors() -> None:
    weight, counter = torch.ones(3, device="cuda"), torch.zeros((), device="cuda")

    def noisy(x: Tensor) -> Tensor:
        counter.add_(1)
        return x * weight + torch.rand_like(x)

    graphed = CudaGraphed(noisy, lambda: [counter], torch.cuda.graph_pool_handle())
    inputs = [torch.randn(3, device="cuda") for _ in range(3)] + [torch.randn(2, 3, device="cuda")]
    for _ in range(2):
        torch.cuda.manual_seed(0)
        expected = [noisy(x) for x in inputs]
        counter.zero_()
        torch.cuda.manual_seed(0)
        found = [graphed(x).clone() for x in inputs]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert counter == len(inputs)
        # The graph reads the weight's memory; a reset graph is captured again.
        weight.mul_(2)
        graphed.reset()


@pytest.mark.gpu
def test_graph_reads_modified_weights() -> None:
    weight = torch.ones(3, device="cuda")
    graphed = CudaGraphed(lambda x: x * weight, list, torch.cuda.graph_pool_handle())
    x = torch.randn(3, device="cuda")
    assert torch.equal(graphed(x), x)
    weight.fill_(3)
    assert torch.equal(graphed(x), 3 * x)
