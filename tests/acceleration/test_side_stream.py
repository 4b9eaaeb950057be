"""Tests of side streams."""

from __future__ import annotations

import pytest
import torch

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.acceleration.side_stream import run_on_side_stream


@pytest.mark.parametrize("enabled", [False, True])
def test_function_runs_when_its_result_is_requested_on_a_cpu(enabled: bool) -> None:
    calls: list[int] = []
    with compiled_regions(enabled, backend="eager"):
        result = run_on_side_stream(lambda: calls.append(1), torch.device("cpu"), 0)
        assert not calls
        result()
    assert calls == [1]


@pytest.mark.gpu
def test_side_stream_waits_for_earlier_work_and_is_waited_for() -> None:
    device = torch.device("cuda")
    x = torch.rand(1000, 1000, device=device)
    with compiled_regions(backend="eager"):
        squared = x @ x
        results = [run_on_side_stream(lambda: squared @ squared, device, index) for index in (0, 1)]
        expected = squared @ squared
        for result in results:
            assert torch.equal(result(), expected)
