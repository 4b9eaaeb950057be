"""Every kind of damage to the files: each is named, or what is read equals what was written."""

from __future__ import annotations

import logging
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import INDEX_RECORD, TRUNCATED, Steps
from delta_iris.data.replay_index import read_records, record_checks
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.sampler import SegmentSampler
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill, random_step, read_files

NAMES = ("replay.json", "chunks.bin", "index.bin")


def write_replay(folder: Path) -> None:
    """Write episodes of three environments: some with a final frame, some cut off, some unfinished."""
    replay, generator = Replay(folder, SHAPE), np.random.default_rng(0)
    for t in range(60):
        for environment in range(3):
            ended = bool(generator.random() < 0.06)
            final = random_step(generator)[0] if ended and environment else None
            replay.append(environment, *random_step(generator), ended, False, final)
        if t % 20 == 10:
            replay.flush()
            replay.truncate(t % 3, random_step(generator)[0])
    replay.close()


def read_all(reader: ReplayReader) -> dict[int, tuple[Steps, NDArray[np.uint8] | None]]:
    """Read every episode that has steps, and its final frame."""
    episodes = [episode for episode in range(reader.num_episodes) if reader.length(episode)]
    return {e: (reader.read(e, 0, reader.length(e)), reader.final_frame(e)) for e in episodes}


def check_equal(found: dict[int, Any], original: dict[int, Any], skipped: bool) -> None:
    """Every episode that was read is one of the originals; those may be cut off only where a file ends early."""
    for episode, (steps, final_frame) in found.items():
        expected, expected_final = original[episode]
        length = len(steps.actions)
        assert length <= len(expected.actions)
        for field, expected_field in zip(steps[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(field, expected_field[:length])
        if steps.terminated[-1] or steps.truncated[-1] or not skipped:
            for field, expected_field in zip(steps[3:], expected[3:], strict=True):
                assert field.tolist() in (expected_field[:length].tolist(), [False] * length)
        if final_frame is not None:
            np.testing.assert_array_equal(final_frame, expected_final)


def mutations(folder: Path, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name of a file and its damaged content: flipped bits, overwritten ranges, and early ends."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        name = NAMES[generator.choice(3, p=[0.1, 0.4, 0.5])]
        data = bytearray((folder / name).read_bytes())
        start = int(generator.integers(len(data)))
        kind = generator.integers(4)
        if kind <= 1:
            data[start] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            length = int(generator.integers(1, 80))
            data[start : start + length] = (
                bytes(len(data[start : start + length]))
                if generator.random() < 0.3
                else generator.bytes(len(data[start : start + length]))
            )
        else:
            del data[start:]
        yield name, bytes(data)


def outcome_of(call: Callable[[], object]) -> str | None:
    """Return the message of the `UserError` that a call raises, or None."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def fuzz(tmp_path: Path, count: int, seed: int) -> dict[str, int]:
    """Damage one file after the other; return how often damage was named, and how often it changed nothing."""
    write_replay(tmp_path / "whole")
    original = read_all(ReplayReader(tmp_path / "whole", SHAPE))
    position = Replay(tmp_path / "whole", SHAPE).position()
    folder, outcomes = tmp_path / "damaged", {"named": 0, "equal": 0, "refused to resume": 0}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in mutations(tmp_path / "whole", count, seed):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / name).write_bytes(data)
        message = outcome_of(lambda: check_equal(read_all(ReplayReader(folder, SHAPE)), original, False))
        outcomes["named" if message else "equal"] += 1
        assert message is None or str(folder) in message  # the file, or the folder of files that do not fit
        if name != "replay.json":
            # Told to leave damaged episodes out, the others are as they were, in the reader and in the writer.
            reader = ReplayReader(folder, SHAPE, skip_damaged=True)
            damaged = reader.verify()
            kept = {e: reader for e in range(reader.num_episodes) if e not in damaged and reader.length(e)}
            episodes = {e: (reader.read(e, 0, reader.length(e)), reader.final_frame(e)) for e in kept}
            check_equal(episodes, original, True)
            Replay(folder, SHAPE, skip_damaged=True).close()
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "whole", folder)
            (folder / name).write_bytes(data)
        message = outcome_of(lambda: Replay(folder, SHAPE).rollback(position))
        if message is None:
            message = outcome_of(lambda: check_equal(read_all(ReplayReader(folder, SHAPE)), original, False))
        assert message is None or str(folder) in message
        outcomes["refused to resume"] += message is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024  # KiB
    return outcomes


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_damage_is_named_or_without_effect(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 300, seed=0)
    assert outcomes["named"] > 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_much_damage_is_named_or_without_effect(tmp_path: Path, seed: int) -> None:
    print(fuzz(tmp_path, 2_000, seed))


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_of_a_small_replay_is_named(tmp_path: Path, name: str) -> None:
    """Exhaustive but for the middle of the chunks: each bit of metadata and index, every 40th byte of the chunks."""
    fill(Replay(tmp_path, SHAPE), 40)
    data = (tmp_path / name).read_bytes()
    for byte in range(0, len(data), 40 if name == "chunks.bin" else 1):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[byte] ^= 1 << bit
            (tmp_path / name).write_bytes(flipped)
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                read_all(ReplayReader(tmp_path, SHAPE))


def damage_record(folder: Path, number: int, **fields: int) -> None:
    """Change fields of a record, and give it the checksum that fits."""
    records = read_records(folder / "index.bin", 2).copy()
    for name, value in fields.items():
        records[name][number] = value
    records["check"] = record_checks(records)
    (folder / "index.bin").write_bytes(records.tobytes())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": 2**63}, "chunk lies outside of chunks.bin"),
        ({"offset": 2**64 - 1}, "chunk lies outside of chunks.bin"),
        ({"offset": 5}, "does not follow the one before"),
        ({"size": 2**32 - 1}, "size cannot be"),
        ({"steps": 17}, "steps cannot be"),
        ({"steps": 0}, "steps cannot be"),
        ({"steps": 0, "flags": TRUNCATED}, "steps cannot be"),
        ({"flags": 8}, "steps cannot be"),
        ({"flags": 4}, "steps cannot be"),
        ({"episode": 2**32 - 1}, "numbers cannot be"),
        ({"environment": 2**32 - 1}, "numbers cannot be"),
        ({"episode": 1}, r"episode [01]: its chunks do not follow"),
        ({"environment": 1}, "episode 0: its chunks do not follow"),
        ({"first_step": 15}, "episode 0: its chunks do not follow"),
        ({"flags": 1}, "episode 0: its chunks do not follow"),
    ],
)
def test_records_that_cannot_be_are_named_whatever_their_checksum(
    tmp_path: Path, fields: dict[str, int], message: str
) -> None:
    """As two processes that write at once would leave them, or a hostile hand."""
    fill(Replay(tmp_path, SHAPE), 74)
    damage_record(tmp_path, 1, **fields)
    with pytest.raises(UserError, match=rf"index\.bin is damaged.*{message}.*data\.skip_damaged_episodes"):
        ReplayReader(tmp_path, SHAPE)


def test_a_wrong_size_of_the_data_is_found_before_it_is_decompressed(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 37)
    damage_record(tmp_path, 2, steps=6)  # 5 in truth
    with pytest.raises(UserError, match=r"chunks\.bin is damaged.*episode 0, step 32"):
        ReplayReader(tmp_path, SHAPE).read(0, 30, 38)


def test_an_index_that_lost_records_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    """Cutting off what has no record would destroy all other data."""
    fill(Replay(tmp_path, SHAPE), 200)
    chunks = (tmp_path / "chunks.bin").read_bytes()
    (tmp_path / "index.bin").write_bytes((tmp_path / "index.bin").read_bytes()[: 2 * INDEX_RECORD.itemsize])
    with pytest.raises(UserError, match=r"index\.bin is damaged: it ends after 2 records"):
        ReplayReader(tmp_path, SHAPE)
    replay = Replay(tmp_path, SHAPE)
    with pytest.raises(UserError, match=r"index\.bin is damaged: it ends after 2 records"):
        fill(replay, 1)
    replay.close()
    assert (tmp_path / "chunks.bin").read_bytes() == chunks


def test_a_torn_tail_is_cut_off_by_the_writer(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 100)
    files = read_files(tmp_path)
    for name, tail in (("chunks.bin", b"half a chunk"), ("index.bin", bytes(7))):
        with (tmp_path / name).open("ab") as file:
            file.write(tail)
    Replay(tmp_path, SHAPE)
    assert read_files(tmp_path) == files


def test_damage_after_a_position_does_not_keep_a_run_from_resuming(tmp_path: Path) -> None:
    """As a power loss leaves it: only what a checkpoint names is synced."""
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 74)
    position, files = replay.position(), read_files(tmp_path)
    fill(replay, 100, seed=1)
    replay.close()
    for name, start in (("index.bin", len(files[1]) + 50), ("chunks.bin", len(files[0]) + 5)):
        data = bytearray((tmp_path / name).read_bytes())
        data[start : start + 60] = bytes(60)
        (tmp_path / name).write_bytes(data)
    resumed = Replay(tmp_path, SHAPE)
    with pytest.raises(UserError, match=r"index\.bin is damaged at byte"):
        resumed.position()
    resumed.rollback(position)
    assert read_files(tmp_path) == files
    fill(resumed, 50, seed=2)
    assert resumed.num_frames == 124


def test_damaged_episodes_are_left_out_when_told_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One by its record, one by its chunk; their numbers stay, and nothing of them is drawn."""
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 6 * 37)
    position = replay.position()
    replay.close()
    for name, byte in (("index.bin", 4 * INDEX_RECORD.itemsize), ("chunks.bin", -3)):
        data = bytearray((tmp_path / name).read_bytes())
        data[byte] ^= 64
        (tmp_path / name).write_bytes(data)
    replay = Replay(tmp_path, SHAPE, skip_damaged=True)
    assert caplog.messages == [f"{tmp_path}: 2 damaged episode(s) left out: 1, 5"]
    assert replay.lengths.tolist() == [37, 0, 37, 37, 37, 0]
    replay.rollback(position)
    assert replay.lengths.tolist() == [37, 0, 37, 37, 37, 0]
    fill(replay, 40)
    assert replay.lengths.tolist() == [37, 0, 37, 37, 37, 0, 37, 3]
    drawn = SegmentSampler(5, 4, 4, seed=0).draw(replay.lengths, 500, update_counts=True)
    assert {episode for episode, _ in drawn} == {0, 2, 3, 4, 6, 7}


def test_a_killed_process_may_leave_an_episode_without_steps() -> None:
    """Another environment's later episode was on disk before."""
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder), SHAPE)
        generator = np.random.default_rng(0)
        replay.append(0, *random_step(generator), False, False)
        replay.append(1, *random_step(generator), True, False)
        assert replay.lengths.tolist() == [0, 1]
        reader = ReplayReader(Path(folder), SHAPE)
        assert [reader.length(0), reader.length(1)] == [0, 1]
        assert reader.final_frame(0) is None
        with pytest.raises(IndexError, match="has no steps"):
            reader.read(0, 0, 1)
        replay.close()
