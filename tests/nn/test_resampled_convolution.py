"""Tests of convolutions at the lower resolution: they equal what they stand for, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.nn.cnn import Upsample
from delta_iris.nn.resampled_convolution import PooledConvolution, UpsampledConvolution


def results(output: Tensor, layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The output, and gradients of a random function of it."""
    assert layer.bias is not None
    torch.manual_seed(1)
    loss = (output * torch.randn(output.shape, dtype=output.dtype)).sum()
    return [output, *torch.autograd.grad(loss, [x, layer.weight, layer.bias])]


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_upsampled_convolution(kernel: int) -> None:
    layer = UpsampledConvolution(3, 2, kernel).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(Upsample()(x), layer.weight, layer.bias, padding=kernel // 2)
    # In float64 only the order of sums differs.
    torch.testing.assert_close(results(layer(x), layer, x), results(plain, layer, x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_pooled_convolution(kernel: int) -> None:
    layer = PooledConvolution(3, 2, kernel).double()
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    plain = F.max_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2), 2)
    torch.testing.assert_close(results(layer(x), layer, x), results(plain, layer, x), atol=1e-12, rtol=1e-12)


def test_equal_pixels_share_the_gradient_of_pooling() -> None:
    layer = PooledConvolution(1, 1, 1).double()
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.detach().expand(1, 1, 2, 2) / 4)
