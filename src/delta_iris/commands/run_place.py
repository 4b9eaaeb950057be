"""Settling where a run lives, before anything is made, and telling everything that writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from delta_iris.data.replay_copy import copy_replay
from delta_iris.data.replay_format import read_metadata
from delta_iris.data.replay_index import check_position
from delta_iris.errors import UserError
from delta_iris.training.checkpoint import load_checkpoint
from delta_iris.training.logs import copy_logs
from delta_iris.training.run_folder import RunFolder, newest_run

__all__ = ["expand_paths", "find_checkpoint", "place_new_run", "place_resumed_run", "requeued_checkpoint"]

ROOT = "lightning_logs"
PATHS = ("ckpt_path", "init_from", "trainer.default_root_dir", "data.recorded_episodes", "episodes.path")


def expand_paths(config: Namespace) -> None:
    """Expand `~` and `$VARIABLES` in all keys that are paths."""
    for key in PATHS:
        value = config.get(key)
        if value is not None:
            config[key] = type(value)(os.path.expandvars(os.path.expanduser(str(value))))
    for logger in _loggers(config):
        if logger.get("save_dir") is not None:
            logger.save_dir = os.path.expandvars(os.path.expanduser(str(logger.save_dir)))


def find_checkpoint(config: Namespace) -> Path | None:
    """The checkpoint that a command names; `last` and `best` are those of the newest run, or of the named version.

    Raises:
        UserError: if there is none.
    """
    name = config.get("ckpt_path")
    if name not in ("last", "best"):
        return None if name is None else Path(name)
    parent, version = _parent(config), _version(config)
    run = RunFolder(parent / version) if version is not None else newest_run(parent)
    if run is None:
        raise UserError(f"--ckpt_path {name}: no run in {parent} has saved a checkpoint")
    if name == "best":
        return run.checkpoints / "best.ckpt"
    found = newest_checkpoint(run)
    if found is None:
        raise UserError(f"--ckpt_path last: {run.checkpoints} holds no whole checkpoint")
    return found


def newest_checkpoint(run: RunFolder) -> Path | None:
    """The whole checkpoint of a run that is furthest; `last.ckpt` among equals."""
    found: list[tuple[tuple[int, ...], bool, Path]] = []
    for path in run.checkpoints.glob("*.ckpt"):
        try:
            content = load_checkpoint(path)
            _run_state(path, content)
            found.append((_progress(content), path.name == "last.ckpt", path))
        except UserError as error:
            print(f"left out: {error}")
    return max(found)[-1] if found else None


def requeued_checkpoint(config: Namespace) -> Path | None:
    """Where SLURM has started a job again, the newest checkpoint of the run that the job had begun."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT", 0)) < 1:
        return None
    run = newest_run(_parent(config), slurm_job=job)
    found = None if run is None else newest_checkpoint(run)
    if found is not None:
        print(f"SLURM has started job {job} again: resuming {found}")
    return found


def place_new_run(config: Namespace) -> RunFolder:
    """Make the folder of a new run, own it, and write it into the configuration of everything that writes.

    Raises:
        UserError: see `RunFolder.make`; also if a name leaves the folder, or loggers ask for several folders.
    """
    run = RunFolder.make(_parent(config), _version(config))
    try:
        _enter(config, run)
    except BaseException:
        run.discard()
        raise
    return run


def place_resumed_run(config: Namespace, checkpoint: Path, content: Mapping[str, Any]) -> RunFolder:
    """Own the folder of a checkpoint's run, and write it into the configuration of everything that writes.

    Where the run has gone further than the checkpoint, so that resuming would destroy newer checkpoints' replay, a new
    folder is made that begins with a copy of the replay up to the checkpoint, and of the logs.

    Args:
        config: into which the folder is written.
        checkpoint: its path.
        content: what it holds.

    Raises:
        UserError: if another process owns the run, or its replay is not there or another one. Nothing is changed then.
    """
    state, ranks = _run_state(checkpoint, content)
    beside = RunFolder(checkpoint.absolute().parent.parent)
    places = [beside, RunFolder(Path(state.get("run_folder", beside.path)))]
    run = next((place for place in places if place.replay.is_dir()), None)
    if run is None:
        raise UserError(
            f"{places[0].path} holds no replay, and resuming needs the run folder that the checkpoint lies in "
            "(<run>/checkpoints/….ckpt): bring it back, or start a new run without --ckpt_path"
        )
    run.path = _short(run.path)
    run.own()
    try:
        # Before anything is changed: the replay may be another run's.
        for rank, own in enumerate(ranks):
            folder = run.replay / f"rank_{rank}"
            check_position(folder, read_metadata(folder)[1], own["replay"])
        newer = [
            path
            for path in run.checkpoints.glob("*.ckpt")
            if not path.samefile(checkpoint) and _is_newer(path, content)
        ]
        if newer:
            return _branch(config, run, checkpoint, content, newer)
        _enter(config, run)
    except BaseException:
        run.release()
        raise
    return run


def _branch(
    config: Namespace, run: RunFolder, checkpoint: Path, content: Mapping[str, Any], newer: list[Path]
) -> RunFolder:
    """Continue an older checkpoint in a folder of its own."""
    own = RunFolder.make(run.path.parent, None)
    newest = max(newer, key=lambda path: path.stat().st_mtime).name
    print(f"{checkpoint} is older than {newest}: continuing in {own.path}, with a copy of the replay up to there")
    try:
        for rank, state in enumerate(_run_state(checkpoint, content)[1]):
            copy_replay(run.replay / f"rank_{rank}", own.replay / f"rank_{rank}", state["replay"])
        copy_logs(run.path, own.path)
        _enter(config, own)
    except BaseException:
        own.discard()
        raise
    finally:
        run.release()
    return own


def _run_state(checkpoint: Path, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """What the loop and, on each rank, the data module have saved.

    Raises:
        UserError: if it is of another version.
    """
    try:
        state = content["loops"]["fit_loop"]["state_dict"]
        ranks = content["ReplayDataModule"]["ranks"]
        _progress(content)
        whole = all(type(length) is int for length in state.get("logs", {}).values())
        for rank in ranks:
            whole = (
                whole
                and "begun" in rank["collector"]
                and all(type(rank["replay"][key]) is int and rank["replay"][key] >= 0 for key in ("chunks", "bytes"))
            )
    except (KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise UserError(
            f"{checkpoint} cannot be resumed: it is of another version of this program: resume it with that version, "
            "or start a new run"
        )
    return state, ranks


def _is_newer(path: Path, content: Mapping[str, Any]) -> bool:
    try:
        other = load_checkpoint(path)
        _run_state(path, other)
    except UserError:
        return False  # it cannot be resumed anyway
    return _progress(other) > _progress(content)


def _progress(content: Mapping[str, Any]) -> tuple[int, ...]:
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return int(epochs), int(content["frames_collected"]), int(content["global_step"])


def _parent(config: Namespace) -> Path:
    """The folder that holds the runs of this name."""
    root = config.trainer.get("default_root_dir")
    asked = {str(logger.save_dir) for logger in _loggers(config) if logger.get("save_dir") not in (None, ".")}
    if root is None and len(asked) > 1:
        raise UserError(
            f"trainer.logger: save_dir is {' and '.join(sorted(asked))}, but a run has one folder: set "
            "trainer.default_root_dir to where runs are to be"
        )
    return Path(root or next(iter(asked), ROOT)) / _plain(config.name, "name")


def _version(config: Namespace) -> str | None:
    versions = [config.get("version"), *(logger.get("version") for logger in _loggers(config, of="TensorBoard|CSV"))]
    version = next((each for each in versions if each is not None), None)
    if isinstance(version, int):
        version = f"version_{version}"
    return None if version is None else _plain(version, "version")


def _plain(name: str | None, key: str) -> str:
    if name in (None, "", ".", "..") or re.search(r"[/\\\0]", name):
        raise UserError(f"{key} is {name!r}: it names a folder, without a path; trainer.default_root_dir says where")
    return name


def _loggers(config: Namespace, of: str = "") -> Iterator[Namespace]:
    """The arguments of the configured loggers."""
    loggers = config.trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and re.search(of, logger.class_path):
            if logger.get("init_args") is None:
                logger.init_args = Namespace()
            yield logger.init_args


def _enter(config: Namespace, run: RunFolder) -> None:
    """Write the run folder into the configuration of everything that writes."""
    job = os.environ.get("SLURM_JOB_ID")
    notes = run.add_notes(**({} if job is None else {"slurm_job": job}))
    trainer = config.trainer
    trainer.default_root_dir = str(run.path)
    if trainer.get("logger") is True:
        trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=Namespace())
    for logger in _loggers(config, of="TensorBoardLogger|CSVLogger"):
        logger.save_dir, logger.name, logger.version = str(run.path.parent), "", run.path.name
    for logger in _loggers(config, of="WandbLogger"):
        logger.save_dir, logger.version = str(run.path), notes["id"]
    for logger in _loggers(config, of="MLFlowLogger"):
        logger.save_dir = str(run.path / "mlruns")
    for key in ("checkpoint", "best_checkpoint"):
        config[key].dirpath = str(run.checkpoints)


def _short(path: Path) -> Path:
    """A path as people write it: relative to the working directory where it lies in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
