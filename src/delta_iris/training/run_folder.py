"""The one folder of a run: where it is, what lies in it, and the lock of the process that owns it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from delta_iris.data.disk import disk_errors, replace_file
from delta_iris.errors import UserError

__all__ = ["RunFolder", "is_first_process", "newest_run"]

_held: set[Path] = set()
"""Folders that this process owns: the system's locks do not hold within a process."""


def is_first_process() -> bool:
    """Whether this process makes files for all processes of the run; known before they are connected."""
    return getattr(rank_zero_only, "rank", 0) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


class RunFolder:
    """A run's folder: `config.yaml`, `run.json`, `checkpoints/`, `replay/`, `scratch/`, and what loggers write.

    The process that fits owns it: it holds a lock on `.lock` from before it changes anything until it ends, however it
    ends. The lock is the system's (`fcntl.lockf`), so that processes that a run starts do not inherit it.

    Args:
        path: of the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    @classmethod
    def of(cls, trainer: L.Trainer) -> RunFolder:
        """The folder of a Trainer's run: its `default_root_dir`, the same on all processes."""
        return cls(Path(trainer.default_root_dir))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are saved."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        """Where each process keeps its replay, in `rank_N`."""
        return self.path / "replay"

    @property
    def scratch(self) -> Path:
        """What the run needs while it lasts; the next start clears it."""
        return self.path / "scratch"

    @property
    def interrupted(self) -> Path:
        """The checkpoint of a run that was stopped within an epoch."""
        return self.checkpoints / "interrupted.ckpt"

    @property
    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return self.replay.is_dir() or self.checkpoints.is_dir()

    # --- making and owning ---

    @classmethod
    def make(cls, parent: Path, version: str | None) -> RunFolder:
        """Make the folder of a new run and own it.

        Args:
            parent: of the folder.
            version: its name; `version_N` with the next free N where None.

        Raises:
            UserError: if the folder holds a run already, or cannot be made.
        """
        while True:
            run = cls(parent / (version or _next_version(parent)))
            try:
                run._make()
            except FileExistsError:
                if version is None:  # another run took this number at the same moment
                    continue
                if run.holds_run:
                    saved = any(run.checkpoints.glob("*.ckpt"))
                    resume = f"resume it with --ckpt_path last --version {run.path.name}"
                    first = resume if saved else "remove it, as it saved nothing"
                    raise UserError(
                        f"the run folder {run.path} already holds a run: {first}, or choose another version (null "
                        "takes the next free one)"
                    ) from None
            except OSError as error:
                raise UserError(
                    f"the run folder {run.path} cannot be made ({error.strerror}): choose another place with "
                    "trainer.default_root_dir"
                ) from error
            run.own()
            return run

    def _make(self) -> None:
        for folder in [*reversed(self.path.parents), self.path]:
            if not folder.is_dir():
                with contextlib.nullcontext() if folder == self.path else contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    self._made.append(folder)
        if self.path not in self._made:
            raise FileExistsError

    def own(self) -> None:
        """Take the lock, then clear what a killed run left behind.

        Raises:
            UserError: if another process has it; the message names that process.
        """
        if self.path.resolve() in _held:
            raise UserError(f"the run folder {self.path} is in use by this process")
        try:
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be written to ({error.strerror})") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"the run folder {self.path} is in use by {owner}: wait until it has ended, stop it, or start a new run"
            ) from None
        except OSError as error:
            file.close()
            raise UserError(
                f"the file system of {self.path} does not support locks ({error.strerror}): choose another place with "
                "trainer.default_root_dir"
            ) from error
        if not _is_at(file, self.path / ".lock"):
            file.close()
            raise UserError(f"the run folder {self.path} was removed at this moment by another start: start again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock = file
        _held.add(self.path.resolve())
        shutil.rmtree(self.scratch, ignore_errors=True)
        for leftover in self.checkpoints.glob(".*.part"):
            leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock up; a folder that was made for a run that never began is removed."""
        if self._lock is None:
            return
        shutil.rmtree(self.scratch, ignore_errors=True)
        # Before the lock is given up: a moment later the folder may be another process's.
        if self._made and not self.begun:
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in reversed(self._made[:-1]):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        self._lock.close()
        self._lock = None
        _held.discard(self.path.resolve())

    def discard(self) -> None:
        """Give the lock up and remove the folder, if this process has made it."""
        if self._made:
            shutil.rmtree(self.replay, ignore_errors=True)
        self.release()

    @property
    def begun(self) -> bool:
        """Whether the run has collected or saved anything."""
        return any(self.checkpoints.glob("*.ckpt")) or any(
            file.stat().st_size for file in self.replay.glob("rank_*/chunks.bin")
        )

    # --- what is known of the run ---

    def read_notes(self) -> dict[str, Any]:
        """What `run.json` notes: the run's `id` and the SLURM job that it belongs to."""
        try:
            notes = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def add_notes(self, **notes: Any) -> dict[str, Any]:
        """Add to `run.json`; returns all that it then notes."""
        before = self.read_notes()
        known = {"id": secrets.token_hex(4)} | before | notes
        if known != before:
            with disk_errors(self.path):
                replace_file(self.path / "run.json", (json.dumps(known, indent=2) + "\n").encode())
        return known


def newest_run(parent: Path, slurm_job: str | None = None) -> RunFolder | None:
    """The run that saved a checkpoint last, among the folders in `parent`; None where no run has saved one.

    Args:
        parent: of the folders.
        slurm_job: only runs that this job has begun or resumed.
    """
    runs = [RunFolder(path) for path in parent.glob("*") if path.is_dir()]
    if slurm_job is not None:
        runs = [run for run in runs if run.read_notes().get("slurm_job") == slurm_job]
    saved = {run: max((p.stat().st_mtime for p in run.checkpoints.glob("*.ckpt")), default=0.0) for run in runs}
    return max((run for run in runs if saved[run]), key=lambda run: saved[run], default=None)


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether a file that was opened is still there under its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _next_version(parent: Path) -> str:
    numbers = [
        int(match[1]) for path in parent.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return f"version_{max(numbers, default=-1) + 1}"
