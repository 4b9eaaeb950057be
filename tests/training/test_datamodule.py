"""Tests of collection, test episodes, segments and checkpoints of the data module, on Catch."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delta_iris.data.collector import EpisodeStats
from delta_iris.data.sampler import SegmentSampler
from delta_iris.data.segment import SegmentBatch
from delta_iris.errors import UserError
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.training.systems.model_free import ModelFreeSchedule
from tests.training.catch_helpers import (
    BURN_IN,
    EPISODE_LENGTH,
    FRAME_SIZE,
    HORIZON,
    make_catch_data,
    make_model_free,
    make_trainer,
)

Progress = Callable[[int, list[EpisodeStats]], bool]


def go_on(frames: int, episodes: list[EpisodeStats]) -> bool:
    """Never stop a collection early."""
    return False


def set_up(folder: Path, seed: int = 3, schedule: ModelFreeSchedule | None = None, **changes: Any) -> ReplayDataModule:
    """Return a data module as it is when a run begins, attached to a Trainer and a system."""
    trainer, data = make_trainer(folder), make_catch_data(**changes)
    trainer.strategy.connect(make_model_free(schedule))
    data.trainer = trainer
    torch.manual_seed(seed)
    data.setup("fit")
    return data


@pytest.fixture
def data(tmp_path: Path) -> Iterator[ReplayDataModule]:
    module = set_up(tmp_path)
    yield module
    module.teardown("fit")


def read_batches(data: ReplayDataModule, steps: int, **options: Any) -> list[SegmentBatch]:
    return list(data.phase_batches(data.learner.phases[0], steps, **({"update_counts": True} | options)))


def assert_equal(a: list[SegmentBatch], b: list[SegmentBatch]) -> None:
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "name", ["num_envs", "num_test_envs", "val_episodes", "test_episodes", "val_batches", "val_batch_size"]
)
def test_numbers_below_one_raise(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0: it must be 1 or more"):
        make_catch_data(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_size": (16, 32)}, "data.frame_size says 16×32 RGB frames"),
        ({"num_actions": 4}, "data.num_actions is 4, but delta_iris/Catch-v0 has 3"),
        ({"environment": "delta_iris/Nothing-v0"}, "cannot create environment 'delta_iris/Nothing-v0'"),
        ({"environment_options": {"cells": 1}}, "data.environment_options"),
        ({"val_episodes": 3}, "data.val_episodes is 3, but each of the 2 data.num_test_envs"),
        ({"test_episodes": 3}, "data.test_episodes is 3, but each of the 2 data.num_test_envs"),
    ],
)
def test_a_configuration_that_does_not_fit_the_environment_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_catch_data(**changes).setup("test")


@pytest.mark.parametrize("key", ["data.num_envs", "model.init_args.schedule.actor_critic.batch_size"])
def test_a_number_that_cannot_be_split_across_processes_raises(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    data = make_catch_data()
    assert data.split_across_ranks(key, 5) == 5
    monkeypatch.setattr(ReplayDataModule, "world_size", 2)
    assert data.split_across_ranks(key, 6) == 3
    with pytest.raises(UserError, match=f"{key} is 5, which cannot be split evenly across 2 processes"):
        data.split_across_ranks(key, 5)


def test_recent_frames_are_split_across_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplayDataModule, "world_size", 2)
    data = set_up(tmp_path)
    sampler = data.samplers["actor_critic"]
    assert isinstance(sampler, SegmentSampler)
    assert sampler.recent_steps == 50
    assert data.collector.envs.num_envs == 1
    data.teardown("fit")


def test_samplers_draw_what_the_phases_need(data: ReplayDataModule) -> None:
    assert list(data.samplers) == ["actor_critic"]
    sampler = data.samplers["actor_critic"]
    assert isinstance(sampler, SegmentSampler)
    assert (sampler.length, sampler.pad_start, sampler.pad_end) == (BURN_IN + HORIZON + 1, BURN_IN, 1)
    assert (sampler.priority_exponent, sampler.recent_steps) == (0.0, 100)


def test_every_environment_collects_the_same_number_of_frames(data: ReplayDataModule) -> None:
    reports: list[tuple[int, int]] = []

    def progress(frames: int, episodes: list[EpisodeStats]) -> bool:
        reports.append((frames, len(episodes)))
        return False

    episodes = data.collect(None, 2 * EPISODE_LENGTH + 1, 0.0, progress)
    assert [episode.length for episode in episodes] == [EPISODE_LENGTH] * 2
    assert [frames for frames, _ in reports] == [2] * (EPISODE_LENGTH + 1)
    assert sum(ended for _, ended in reports) == 2
    assert data.replay.num_frames == 2 * (EPISODE_LENGTH + 1)


def test_checkpoints_contain_what_was_committed(tmp_path: Path, data: ReplayDataModule) -> None:
    data.collect(None, 100, 0.0, go_on)
    data.commit()
    state = data.state_dict()
    read_batches(data, 3)
    data.end_phase()
    # An interrupted collection is not part of the run.
    data.collect(None, 40, 0.0, go_on)
    assert data.replay.num_frames == 140
    assert data.state_dict()["ranks"][0]["replay"] == state["ranks"][0]["replay"]
    data.teardown("fit")
    resumed = set_up(tmp_path)
    resumed.load_state_dict(state)
    resumed.on_run_start()
    assert resumed.replay.num_frames == 100
    first = read_batches(resumed, 3)
    resumed.load_state_dict(state)
    assert_equal(read_batches(resumed, 3), first)
    resumed.teardown("fit")


def test_a_checkpoint_within_a_phase_contains_the_sampler_before_it(data: ReplayDataModule) -> None:
    data.collect(None, 100, 0.0, go_on)
    data.commit()
    batches = read_batches(data, 5)
    within = data.state_dict()
    data.end_phase()
    after = data.state_dict()
    following = read_batches(data, 5)
    data.load_state_dict(within)
    assert_equal(read_batches(data, 5, skip=2), batches[2:])
    data.end_phase()
    assert_equal(read_batches(data, 5), following)
    data.load_state_dict(after)
    assert_equal(read_batches(data, 5), following)


def test_damaged_episodes_end_a_resumed_run_or_are_left_out_on_request(tmp_path: Path, data: ReplayDataModule) -> None:
    data.collect(None, 200, 0.0, go_on)
    data.commit()
    state = data.state_dict()
    lengths = data.replay.lengths.tolist()
    data.teardown("fit")
    chunks = data.replay.folder / "chunks.bin"
    content = bytearray(chunks.read_bytes())
    content[-10] ^= 1  # in the last chunk: recent episodes are drawn from
    chunks.write_bytes(content)
    lenient = set_up(tmp_path, skip_damaged_episodes=True)
    lenient.load_state_dict(state)
    (damaged,) = lenient.replay.damaged_episodes
    lengths[damaged] = 0
    assert lenient.replay.lengths.tolist() == lengths
    for _ in range(20):
        read_batches(lenient, 5)
        assert damaged not in {episode for batch in range(5) for episode in lenient.episodes_of(batch)}
    lenient.teardown("fit")
    strict = set_up(tmp_path)
    strict.load_state_dict(state)
    with pytest.raises(UserError, match=rf"chunks\.bin is damaged .*episode {damaged}, .*data\.skip_damaged_episodes"):
        read_batches(strict, 100)
    strict.teardown("fit")


@pytest.mark.parametrize("steps", [{"steps": 4}, {"steps": 0, "first_epoch_steps": 4}, {"steps": 4, "start_epoch": 9}])
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm whose size could be known")
def test_batches_that_do_not_fit_into_shared_memory_are_refused_before_the_run(
    tmp_path: Path, steps: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is room for two batches, but four are read ahead, and the trainer holds one.
    size = SegmentBatch.num_bytes(100_000, BURN_IN + HORIZON + 1, (*FRAME_SIZE, 3))
    room = os.statvfs_result((1, 1, 2 * size, 2 * size, 2 * size, 0, 0, 0, 0, 0))
    schedule = ModelFreeSchedule(actor_critic=PhaseSchedule(batch_size=100_000, **steps))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    with pytest.raises(UserError, match=r"data\.num_workers is 1: .*shared memory"):
        set_up(tmp_path, schedule=schedule, num_workers=1)


def test_one_process_reads_for_all_epochs_and_ends_with_the_run(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    data, readers = set_up(tmp_path, num_workers=1), set[BaseProcess]()
    others = set(multiprocessing.active_children()) - before
    for _ in range(3):
        data.collect(None, 100, 0.0, go_on)
        data.commit()
        read_batches(data, 3)
        readers |= set(multiprocessing.active_children()) - before - others
    assert len(readers) == 1
    data.teardown("fit")
    assert set(multiprocessing.active_children()) == before


def test_the_reading_process_ends_after_an_error(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    data = set_up(tmp_path, num_workers=1)
    others = set(multiprocessing.active_children()) - before
    data.collect(None, 100, 0.0, go_on)
    data.commit()
    next(iter(data.phase_batches(data.learner.phases[0], 3, update_counts=True)))
    assert len(set(multiprocessing.active_children()) - before - others) == 1
    data.on_exception(ValueError())
    assert set(multiprocessing.active_children()) - before == others
    data.teardown("fit")


def test_draws_lower_priorities_only_on_request(data: ReplayDataModule) -> None:
    data.collect(None, 100, 0.0, go_on)
    read_batches(data, 5, update_counts=False)
    assert not data.samplers["actor_critic"].state_dict()["counts"].any()
    read_batches(data, 5)
    batch_size = data.learner.phases[0].schedule.batch_size
    assert data.samplers["actor_critic"].state_dict()["counts"].sum() == 5 * batch_size


def test_the_random_numbers_continue_after_a_resume(tmp_path: Path, data: ReplayDataModule) -> None:
    data.collect(None, 100, 0.0, go_on)
    data.commit()
    state = data.state_dict()
    expected = torch.rand(3), np.random.random(3), data.collector.random.integers(1 << 30)  # noqa: NPY002
    data.teardown("fit")
    resumed = set_up(tmp_path, seed=4)
    resumed.load_state_dict(state)
    resumed.on_run_start()
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.random(3), expected[1])  # noqa: NPY002
    assert resumed.collector.random.integers(1 << 30) == expected[2]
    resumed.teardown("fit")


@pytest.mark.parametrize("stop_within", [False, True], ids=["between collections", "in a collection"])
def test_a_resumed_collection_equals_one_that_was_never_stopped(
    tmp_path: Path, data: ReplayDataModule, stop_within: bool
) -> None:
    first, second = 2 * (EPISODE_LENGTH + 3), 2 * (2 * EPISODE_LENGTH + 5)
    data.collect(None, first, 0.3, go_on)
    data.commit()
    if stop_within:
        data.collect(None, second, 0.3, lambda frames, episodes: data.replay.num_frames >= first + 20)
    state = data.state_dict()
    data.teardown("fit")
    folder = data.replay.folder
    stopped = tmp_path / "stopped"
    shutil.copytree(folder, stopped)

    def collect_again() -> dict[str, bytes]:
        resumed = set_up(tmp_path, seed=5)
        resumed.load_state_dict(state)
        resumed.on_run_start()
        assert resumed.replay.num_frames == first
        resumed.collect(None, second, 0.3, go_on)
        resumed.commit()
        assert sorted(resumed.replay.open_episodes) == [0, 1]
        resumed.teardown("fit")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    again = collect_again()
    shutil.rmtree(folder)
    unstopped = set_up(tmp_path)
    unstopped.on_run_start()
    for frames in (first, second):
        unstopped.collect(None, frames, 0.3, go_on)
        unstopped.commit()
    unstopped.teardown("fit")
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert again == expected


def test_a_checkpoint_of_another_number_of_processes_raises(data: ReplayDataModule) -> None:
    state = data.state_dict()
    with pytest.raises(UserError, match=r"made by 2 process\(es\).*--trainer\.devices 2 \(now 1\)"):
        data.load_state_dict({"ranks": state["ranks"] * 2})


def test_outside_of_fitting_a_checkpoint_changes_nothing(data: ReplayDataModule) -> None:
    state, other = data.state_dict(), make_catch_data()
    other.load_state_dict(state)
    assert other.state_dict() == {}


def test_a_new_run_refuses_the_replay_of_another(tmp_path: Path, data: ReplayDataModule) -> None:
    data.collect(None, 40, 0.0, go_on)
    data.teardown("fit")
    other = set_up(tmp_path)
    with pytest.raises(UserError, match="already holds the replay of a run: resume it with --ckpt_path"):
        other.on_run_start()
    other.teardown("fit")


def test_test_episodes_start_from_the_same_frames_each_time(data: ReplayDataModule) -> None:
    policy = data.learner.make_policy()
    first_frames = []
    for number in (2, 4):
        episodes = data.run_test_episodes(policy, number, go_on)
        assert [episode.length for episode in episodes] == [EPISODE_LENGTH] * number
        held_out = data.held_out()
        assert held_out.num_episodes == number
        assert held_out.frame_shape == (*FRAME_SIZE, 3)
        first_frames.append([held_out.read(episode, 0, 1).frames for episode in (0, 1)])
    assert np.array_equal(first_frames[0], first_frames[1])
    # They are not part of the replay.
    assert data.replay.num_frames == 0


def test_held_out_segments_are_those_of_the_last_test_episodes(data: ReplayDataModule) -> None:
    data.run_test_episodes(data.learner.make_policy(), 2, go_on)
    loader = data.val_dataloader()
    batches = list(loader)
    assert len(batches) == data.val_batches
    length = data.learner.segment_length
    for batch in batches:
        assert batch.frames.shape == (data.val_batch_size, length, 3, *FRAME_SIZE)
        assert batch.mask.all()
    assert_equal(list(loader), batches)
