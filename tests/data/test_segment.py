"""The training batch."""

from __future__ import annotations

import pytest
import torch

from delta_iris.data.segment import SegmentBatch, to_float


def make_batch(batch: int = 4, steps: int = 9) -> SegmentBatch:
    """Return random segments; the first starts with padding and the second ends with it."""
    mask, is_first = torch.ones(batch, steps, dtype=torch.bool), torch.zeros(batch, steps, dtype=torch.bool)
    mask[0, :3], mask[1, -2:], is_first[0, 3] = False, False, True
    return SegmentBatch(
        torch.randint(0, 256, (batch, steps, 3, 4, 6), dtype=torch.uint8),
        torch.randint(0, 5, (batch, steps)),
        torch.randn(batch, steps),
        torch.randint(0, 2, (batch, steps)),
        mask,
        is_first,
    )


def test_slice_time_slices_every_field() -> None:
    batch = make_batch()
    for field, whole in zip(batch.slice_time(2, -1), batch, strict=True):
        assert torch.equal(field, whole[:, 2:-1])
    for field, whole in zip(batch.slice_time(None, None), batch, strict=True):
        assert torch.equal(field, whole)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_windows_are_all_segments_of_consecutive_steps(length: int) -> None:
    batch = make_batch()
    windows = batch.windows(length)
    number = 9 - length + 1
    for field, whole in zip(windows, batch, strict=True):
        assert len(field) == 4 * number
        for row in range(4):
            for start in range(number):
                assert torch.equal(field[row * number + start], whole[row, start : start + length])


@pytest.mark.parametrize("length", [0, 10])
def test_windows_longer_than_the_segments_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"length is {length}: it must be between 1 and the 9 steps"):
        make_batch().windows(length)


def test_select_indexes_the_batch_axis_of_every_field() -> None:
    batch = make_batch()
    for rows in (slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True, False])):
        for field, whole in zip(batch.select(rows), batch, strict=True):
            assert torch.equal(field, whole[1:3])


def test_transition_mask_requires_both_steps_to_be_real() -> None:
    expected = torch.ones(4, 8, dtype=torch.bool)
    expected[0, :3] = False
    expected[1, -2:] = False
    assert torch.equal(make_batch().transition_mask, expected)


def test_to_float_scales_uint8_and_leaves_floats_unscaled() -> None:
    scaled = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert torch.equal(scaled, torch.tensor([0, 51, 255]) / 255)
    assert to_float(torch.tensor([0.25])).tolist() == [0.25]
