"""Tests of compiled regions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from delta_iris.acceleration.compile import compile_region, compiled_regions, is_compiling


@compile_region()
def traced(x: Tensor) -> Tensor:
    return x + 1 if torch.compiler.is_compiling() else x


@compile_region()
def calls_traced(x: Tensor) -> Tensor:
    return traced(x) * 2


def test_regions_are_compiled_inside_the_context_only() -> None:
    x = torch.zeros(2)
    assert not is_compiling()
    assert torch.equal(traced(x), x)
    with compiled_regions(backend="eager"):
        assert is_compiling()
        assert torch.equal(traced(x), x + 1)
        assert torch.equal(calls_traced(x), x + 2)
    assert not is_compiling()
    assert torch.equal(traced(x), x)


def test_disabled_context_changes_nothing() -> None:
    with compiled_regions(enabled=False):
        assert not is_compiling()
    with compiled_regions(backend="eager"), compiled_regions(enabled=False):
        assert is_compiling()


def test_context_ends_after_an_error() -> None:
    with pytest.raises(RuntimeError), compiled_regions(backend="eager"):
        raise RuntimeError
    assert not is_compiling()
