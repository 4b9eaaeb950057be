"""Runs whose disk fills up: one true line, and what was there stays readable and is resumed once there is space."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.faults.runs import RUN, assert_equal_runs, fit

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# The replay and the logs of an epoch take some 0.6 MiB, a checkpoint 4; the second epoch begins with some 9 of them.
@pytest.mark.slow
@pytest.mark.parametrize("free", [0.1, 0.3, 1.5, 6.0, 9.2, 9.6, 12.0])
def test_a_full_disk_is_said_and_nothing_is_lost(
    disk: Path, tmp_path_factory: pytest.TempPathFactory, free: float
) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(int((24 - free) * MIB)))
    output = fit(cwd=disk, status=2)
    reason = r"delta-iris: (the disk|\S+ cannot be written: the disk) .*(is full|free some space)"
    assert re.match(reason, output.splitlines()[-1])
    ballast.unlink()
    saved = list((disk / RUN / "checkpoints").glob("*.ckpt"))
    assert bool(saved) == (free > 5)
    if not saved:
        return  # a new start is all that is left, which other tests make
    fit("--ckpt_path", "last", cwd=disk)
    if free < 9:
        return  # of the two checkpoints of the first epoch, only the first was saved
    whole = tmp_path_factory.mktemp("whole")
    fit(cwd=whole)
    assert_equal_runs(disk / RUN, whole / RUN)
