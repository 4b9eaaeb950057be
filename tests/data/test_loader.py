"""Segments that the dataset and its loader read from a replay."""

from __future__ import annotations

from pathlib import Path

import torch

from delta_iris.data.loader import SegmentDataset, segment_loader
from delta_iris.data.replay import Replay

from .replay_helpers import SHAPE, fill


def test_background_loading_yields_the_same_batches_in_order(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 300)
    indices = [[(episode, start) for episode in range(4)] for start in range(-5, 30)]
    dataset = SegmentDataset(tmp_path, SHAPE, 21)
    expected = [dataset.__getitems__(batch) for batch in indices]
    loader = segment_loader(SegmentDataset(tmp_path, SHAPE, 21), indices, num_workers=2, skip=3)
    loaded = list(loader)
    assert len(loaded) == len(expected) - 3
    assert len(loader) == len(expected)
    for batch, expected_batch in zip(loaded, expected[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected_batch, strict=True))


def test_creating_an_iterator_leaves_the_global_random_numbers_untouched(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 40)
    state = torch.get_rng_state()
    next(iter(segment_loader(SegmentDataset(tmp_path, SHAPE, 5), [[(0, 0)]], num_workers=0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_is_first_marks_only_the_first_step_of_an_episode(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 74)
    dataset = SegmentDataset(tmp_path, SHAPE, 6)
    batch = dataset.__getitems__([(1, -2), (1, 0), (1, 1), (0, 34), (0, -5)])
    assert batch.is_first.nonzero().tolist() == [[0, 2], [1, 0], [4, 5]]


def test_a_single_item_is_a_batch_of_one(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 40)
    dataset = SegmentDataset(tmp_path, SHAPE, 6)
    for field, expected in zip(dataset[0, 3], dataset.__getitems__([(0, 3)]), strict=True):
        assert torch.equal(field, expected)
