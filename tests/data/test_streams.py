"""Segments that run on across episodes: what they hold, and how often each is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.data.streams import EpisodeStreams, StreamSampler

from .replay_helpers import SHAPE


def make_streams(lengths: list[int], environments: list[int], final_frames: list[bool]) -> EpisodeStreams:
    return EpisodeStreams(np.array(lengths), np.array(environments), np.array(final_frames))


def write(folder: Path) -> dict[int, list[tuple[int, int, float, int, bool]]]:
    """Write episodes of two environments that take turns; each frame is filled with its number in the stream.

    Returns:
        for each environment, of each frame: its number, action, reward, end and whether it is an episode's first.
    """
    replay, streams = Replay(folder, SHAPE), {}
    for environment, lengths in ((0, [3, 5, 4, 6]), (1, [7, 2, 9])):
        stream: list[tuple[int, int, float, int, bool]] = []
        for number, length in enumerate(lengths):
            for t in range(length):
                ended = t == length - 1 and number < len(lengths) - 1  # the last one is under way
                cut, value = number == 1, len(stream)
                final = np.full(SHAPE, value + 1, np.uint8) if ended and number != 2 else None
                reward = 0.5 * value
                frame = np.full(SHAPE, value, np.uint8)
                replay.append(environment, frame, value % 5, reward, ended and not cut, ended and cut, final)
                stream.append((value, value % 5, reward, int(ended and not cut), t == 0))
                if final is not None:
                    stream.append((value + 1, 0, 0.0, 0, False))
        streams[environment] = stream
    replay.close()
    return streams


def rows_of(batch: SegmentBatch, row: int) -> list[tuple[int, int, float, int, bool]]:
    assert batch.mask[row].all()
    fields = batch.frames[row, :, 0, 0, 0], batch.actions[row], batch.rewards[row], batch.terminated[row]
    return list(zip(*(field.tolist() for field in fields), batch.is_first[row].tolist(), strict=True))


def test_segments_hold_the_environments_frames_in_order(tmp_path: Path) -> None:
    expected = write(tmp_path)
    streams, length = ReplayReader(tmp_path, SHAPE).streams(), 9
    dataset = SegmentDataset(tmp_path, SHAPE)
    checked = 0
    for environment, stream in expected.items():
        position = 0
        for episode in np.flatnonzero(streams.environments == environment).tolist():
            for start in range(int(streams.lengths[episode])):
                wanted = stream[position + start : position + start + length]
                if len(wanted) < length:
                    with pytest.raises(IndexError, match="fewer than 9 frames"):
                        streams.request(length, [(episode, start)])
                    continue
                assert rows_of(dataset[streams.request(length, [(episode, start)])], 0) == wanted
                checked += 1
            position += int(streams.frames[episode])
        assert position == len(stream)
    assert checked > 15


def test_frames_that_were_collected_later_can_be_read(tmp_path: Path) -> None:
    replay, dataset = Replay(tmp_path, SHAPE), SegmentDataset(tmp_path, SHAPE)
    for grown in range(3):
        for t in range(10):
            replay.append(0, np.full(SHAPE, 10 * grown + t, np.uint8), t % 5, 0.0, t == 9, False)
        replay.flush()
        streams = ReplayReader(tmp_path, SHAPE).streams()
        batch = dataset[streams.request(8, [(grown, 2), (max(0, grown - 1), 9 if grown else 0)])]
        assert batch.frames[0, :, 0, 0, 0].tolist() == [10 * grown + t for t in range(2, 10)]


def test_a_span_after_an_episodes_end_is_its_final_frame_or_refused(tmp_path: Path) -> None:
    write(tmp_path)
    dataset, lengths = SegmentDataset(tmp_path, SHAPE), ReplayReader(tmp_path, SHAPE).lengths
    for episode, spans in ((2, [(0, 2, 4, 5)]), (0, [(0, 0, 3, 5)]), (0, [(0, 0, 3, 3)])):
        assert lengths[episode] == spans[0][2]
        with pytest.raises(IndexError):
            dataset[SegmentRequest(3, [spans], int(lengths.sum()))]


def test_each_possible_start_is_equally_likely() -> None:
    # Environment 0: 4 + 1, 6 (no final frame) and 3 frames; environment 1: 5 + 1. A damaged episode is passed over.
    streams = make_streams([4, 5, 0, 6, 3], [0, 1, 0, 0, 0], [True, True, False, False, False])
    sampler = StreamSampler(4, seed=0)
    sampler.load_state_dict(sampler.state_dict() | {"newest": {0: 14, 1: 6}})
    drawn = Counter(index for _ in range(300) for index in sampler.draw(streams, 50))
    expected = {(0, t) for t in range(4)} | {(3, t) for t in range(6)} | {(1, t) for t in range(3)}
    assert set(drawn) == expected
    # 15,000 draws among 13 starts: four standard deviations are 11 %.
    assert all(count == pytest.approx(15_000 / 13, rel=0.12) for count in drawn.values())


def test_new_frames_are_drawn_first_and_once() -> None:
    sampler, length = StreamSampler(4, seed=0), 4
    streams = make_streams([5, 9, 7], [0, 1, 0], [True, False, False])  # 13 and 9 frames
    firsts = [sampler.draw(streams, 3)[0] for _ in range(5)]
    assert firsts == [(0, 0), (0, 4), (1, 0), (2, 2), (1, 4)]
    assert sampler.state_dict()["newest"] == {0: 12, 1: 8}
    later = make_streams([5, 9, 10], [0, 1, 0], [True, False, False])
    assert sampler.draw(later, 1) == [(2, 6)]
    assert sampler.state_dict()["newest"][0] == 12 + length


def test_a_resumed_sampler_draws_on() -> None:
    streams = make_streams([30, 20], [0, 0], [True, True])
    first = StreamSampler(4, seed=0)
    first.draw(streams, 5)
    second = StreamSampler(4, seed=1)
    second.load_state_dict(first.state_dict())
    assert [first.draw(streams, 5) for _ in range(3)] == [second.draw(streams, 5) for _ in range(3)]


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="no environment has 8 frames in a row"):
        StreamSampler(8, seed=0).draw(make_streams([6, 6], [0, 1], [True, True]), 1)


def test_the_replay_knows_which_final_frames_it_has(tmp_path: Path) -> None:
    write(tmp_path)
    streams = ReplayReader(tmp_path, SHAPE).streams()
    assert streams.environments.tolist() == [0] * 4 + [1] * 3
    assert streams.final_frames.tolist() == [True, True, False, False, True, True, False]
    assert torch.from_numpy(streams.frames_after).tolist() == [16, 10, 6, 0, 12, 9, 0]
    Replay(tmp_path / "empty", SHAPE).close()
    assert len(ReplayReader(tmp_path / "empty", SHAPE).streams().lengths) == 0
