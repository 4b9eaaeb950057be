"""Tests of who owns a run folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from delta_iris.errors import UserError
from delta_iris.training.run_folder import RunFolder


def test_a_folder_has_one_owner_which_a_forked_process_is_not(tmp_path: Path) -> None:
    run = RunFolder.make(tmp_path, "a")
    with pytest.raises(UserError, match="in use by this process"):
        RunFolder(tmp_path / "a").own()
    script = (
        "import sys; from pathlib import Path; from delta_iris.training.run_folder import RunFolder; "
        "RunFolder(Path(sys.argv[1])).own()"
    )
    other = [sys.executable, "-c", script, str(tmp_path / "a")]
    assert f"in use by process {os.getpid()} on" in subprocess.run(other, capture_output=True, text=True).stderr
    child = os.fork()
    if not child:
        signal.pause()
    try:
        run.replay.mkdir()  # the folder stays
        (run.replay / "rank_0").mkdir()
        (run.replay / "rank_0" / "chunks.bin").write_bytes(b"1")
        run.release()
        # The child, which has the file open, does not hold the lock.
        subprocess.run(other, check=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_on_a_folder_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.lockf

    def remove_first(*arguments: int) -> None:
        shutil.rmtree(tmp_path / "a")
        lock(*arguments)

    monkeypatch.setattr("delta_iris.training.run_folder.fcntl.lockf", remove_first)
    with pytest.raises(UserError, match="was removed at this moment by another start"):
        RunFolder.make(tmp_path, "a")
    monkeypatch.undo()
    RunFolder.make(tmp_path, "a").release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["last.ckpt", "interrupted.ckpt"])
def test_a_folder_with_a_checkpoint_is_never_said_to_be_worth_removing(tmp_path: Path, name: str) -> None:
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / name).touch()
    with pytest.raises(UserError, match="already holds a run: resume it with --ckpt_path last --version a"):
        RunFolder.make(tmp_path, "a")


def test_a_folder_that_saved_nothing_is_not_said_to_be_resumable(tmp_path: Path) -> None:
    (tmp_path / "a" / "replay").mkdir(parents=True)
    with pytest.raises(UserError, match="already holds a run: remove it, as it saved nothing"):
        RunFolder.make(tmp_path, "a")
