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


@pytest.mark.parametrize(("gradient", "variants"), [(False, 1), (True, 3)])
def test_without_gradients_a_region_is_compiled_once_for_all_batch_sizes(gradient: bool, variants: int) -> None:
    compiled = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal compiled
        compiled += 1
        return graph

    @compile_region()
    def double(x: Tensor) -> Tensor:
        return x * 2

    torch.compiler.reset()
    with torch.set_grad_enabled(gradient), compiled_regions(backend=count):  # type: ignore[arg-type]
        for batch in (4, 2, 7):
            assert torch.equal(double(torch.ones(batch, 3)), torch.full((batch, 3), 2.0))
    assert compiled == variants
