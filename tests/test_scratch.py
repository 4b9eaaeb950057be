"""Tests of the temporary folder of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

START = "from delta_iris.scratch import process_scratch; print(process_scratch(), flush=True); input()"


def start(temporary: Path) -> subprocess.Popen[str]:
    """Start a process that makes its folder and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", START],
        env={"TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def folder(process: subprocess.Popen[str]) -> Path:
    """The folder that a process has made."""
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_only_folders_of_processes_that_have_ended_are_removed(tmp_path: Path) -> None:
    killed, lasting = start(tmp_path), start(tmp_path)
    left, kept = folder(killed), folder(lasting)
    killed.kill()
    killed.wait()
    assert left.is_dir()
    third = start(tmp_path)
    own = folder(third)
    assert not left.exists()
    assert sorted(own.parent.iterdir()) == sorted([kept, own])
    for process in (lasting, third):
        process.communicate("\n")
    assert list(own.parent.iterdir()) == []


def test_a_link_in_place_of_the_folder_is_refused_and_not_followed(tmp_path: Path) -> None:
    process = start(tmp_path)
    place = folder(process).parent
    process.communicate("\n")
    place.rmdir()
    theirs = tmp_path / "theirs"
    (theirs / "1234").mkdir(parents=True)
    place.symlink_to(theirs)
    process = start(tmp_path)
    assert "is not a folder of this user" in process.communicate()[1]
    assert (theirs / "1234").is_dir()
