"""How far a run's log files had come when a checkpoint was saved, and cutting them back to there."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from delta_iris.data.disk import disk_errors
from delta_iris.errors import UserError

__all__ = ["copy_logs", "cut_back_logs", "keep_csv_rows", "log_positions"]

EVENTS, TABLE = "events.out.tfevents.*", "metrics.csv"


def log_positions(trainer: L.Trainer, folder: Path) -> dict[str, int]:
    """Write all that loggers hold back, and return how much of each file there is.

    Args:
        trainer: whose loggers write.
        folder: of the run.

    Returns:
        the length in bytes of each event file of TensorBoard, and the rows of `metrics.csv`, by path in `folder`. Both
        are on the disk. Loggers that write elsewhere, such as to a server, are not among them.
    """
    for logger in trainer.loggers:
        logger.save()
    positions = {}
    for path in _log_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        positions[str(path.relative_to(folder))] = _rows(path) if path.name == TABLE else path.stat().st_size
    return positions


def cut_back_logs(folder: Path, positions: dict[str, int]) -> None:
    """Undo what was logged since `log_positions`: a resumed run logs it again.

    Args:
        folder: of the run, whose loggers are not open.
        positions: what `log_positions` returned.

    Raises:
        UserError: if a file cannot be changed.
    """
    for path in _log_files(folder):
        position = positions.get(str(path.relative_to(folder)), 0)
        try:
            if path.name == TABLE:
                _cut_rows(path, position)
            elif position == 0:
                path.unlink()
            elif path.stat().st_size > position:
                os.truncate(path, position)
        except OSError as error:
            raise UserError(f"{path} cannot be cut back to the checkpoint ({error.strerror})") from error


def copy_logs(source: Path, target: Path) -> None:
    """Give another run what was logged.

    Args:
        source: folder of the run.
        target: folder of the other run.

    Raises:
        UserError: if a file cannot be copied.
    """
    for path in _log_files(source):
        with disk_errors(target):
            shutil.copyfile(path, target / path.name)


def keep_csv_rows(trainer: L.Trainer) -> None:
    """Let CSV loggers of a resumed run continue their file, which Lightning would delete."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            table = Path(logger.log_dir) / TABLE
            kept = table.with_name(f".{TABLE}.kept")
            if not table.exists() and kept.exists():
                os.replace(kept, table)  # a start was killed between the two lines below
            if table.is_file():
                os.replace(table, kept)  # the logger would delete it
                writer = logger.experiment
                os.replace(kept, table)
                with table.open(newline="") as file:
                    writer.metrics_keys = next(csv.reader(file), [])


def _log_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob(EVENTS), *folder.glob(TABLE)])


def _rows(path: Path) -> int:
    with path.open(newline="") as file:
        return max(0, sum(1 for _ in csv.reader(file)) - 1)


def _cut_rows(path: Path, rows: int) -> None:
    with path.open(newline="") as file:
        kept = list(csv.reader(file))[: rows + 1]
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows(kept)
    part.replace(path)
