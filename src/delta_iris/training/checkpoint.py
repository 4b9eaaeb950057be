"""Loading checkpoints, and clear messages for those that are missing, damaged or of another configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_iris.errors import UserError
from delta_iris.training.archive import load_archive

__all__ = [
    "check_frames",
    "check_optimizers",
    "check_weights",
    "is_plain",
    "load_checkpoint",
    "load_tensors",
    "run_folder",
]

MAX_VALUES = 100_000
"""Largest number of values of a configuration in a file of weights; a value that is referred to twice counts twice."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Map a checkpoint into memory and verify it. Only tensors and plain values can be loaded, never code.

    Args:
        path: of the checkpoint.

    Returns:
        the whole content of the file: `state_dict`, `configuration`, `frames_collected`, and what Lightning adds.

    Raises:
        UserError: if there is none, it is damaged, or it is not a checkpoint of this program.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a checkpoint in it, <run>/checkpoints/last.ckpt")
    if not path.exists():
        others = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"; that folder has: {', '.join(others)}" if others else ""
        raise UserError(f"there is no checkpoint {path}{hint}")
    content = _load(path, "a checkpoint of this program")
    needed = ("state_dict", "configuration", "frames_collected")
    if not isinstance(content, dict) or not all(key in content for key in needed):
        raise UserError(f"{path} is not a checkpoint of this version: it must contain {', '.join(needed)}")
    _check_tensors(content["state_dict"], path)
    if not isinstance(content["configuration"], dict) or not is_plain(content["configuration"]):
        raise UserError(f"{path} is damaged: its configuration is not a mapping of plain values")
    check_frames(content["frames_collected"], path)
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Map a file of weights into memory and verify it.

    Args:
        path: of the file.

    Returns:
        tensors by name, which together have no more bytes than the file.

    Raises:
        UserError: if it cannot be read, is damaged, or holds anything but tensors.
    """
    content = _load(path, "a file of weights")
    _check_tensors(content, path)
    if sum(value.nbytes for value in content.values()) > path.stat().st_size:
        raise UserError(f"{path} is damaged: its weights are larger than the file")
    return dict(content)


def is_plain(value: Any) -> bool:
    """Whether a value consists of mappings with text keys, lists, text, numbers, true, false and null, not too many.

    Args:
        value: of a configuration.
    """
    left = MAX_VALUES
    stack = [value]
    while stack:
        left -= 1
        item = stack.pop()
        if left < 0:
            return False
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                return False
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif not isinstance(item, str | int | float | bool | None):
            return False
    return True


def check_frames(frames: Any, path: Path) -> None:
    """Check a number of frames that was read from a file.

    Args:
        frames: what was read.
        path: of the file, for the message.

    Raises:
        UserError: if it is no number of frames.
    """
    if type(frames) is not int or not 0 <= frames < 1 << 63:
        raise UserError(f"{path} is damaged: frames_collected is {str(frames)[:40]!r}, not a number of frames")


def run_folder(checkpoint: Path) -> Path:
    """The run folder of a checkpoint `<run>/checkpoints/….ckpt`."""
    return checkpoint.resolve().parent.parent


def check_weights(
    checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], configuration: Mapping[str, Any], path: Path
) -> None:
    """Compare the weights of a checkpoint with those of a model, by name, shape and type, and look for NaN.

    Args:
        checkpoint: with `state_dict` and `configuration`.
        own: weights of the model.
        configuration: of the model.
        path: of the checkpoint, for the message.

    Raises:
        UserError: if they differ; it names the configuration keys that do, or else the weight.
    """
    theirs = checkpoint["state_dict"]
    _check_tensors(theirs, path)
    wrong = [name for name in own if name not in theirs or theirs[name].shape != own[name].shape]
    wrong += [name for name in theirs if name not in own]
    if wrong:
        raise _other_configuration(checkpoint, configuration, path, f"first difference: {wrong[0]}")
    for name, value in theirs.items():
        if value.dtype != own[name].dtype:
            raise UserError(
                f"{path}: the weight {name} is of {value.dtype} instead of {own[name].dtype}: it is damaged"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{path}: the weight {name} has values that are infinite or NaN: take an earlier checkpoint"
            )


def check_optimizers(
    checkpoint: Mapping[str, Any], phases: Sequence[str], configuration: Mapping[str, Any], path: Path
) -> None:
    """Refuse to resume with another number of phases: optimizers and the position in the epoch are kept by index.

    Args:
        checkpoint: with `optimizer_states` and `configuration`.
        phases: names of the phases to train.
        configuration: of the model.
        path: of the checkpoint, for the message.

    Raises:
        UserError: if there are not as many optimizers as phases; it names the configuration keys that differ.
    """
    number = len(checkpoint["optimizer_states"])
    if number != len(phases):
        reason = f"it holds {number} optimizers; the phases are {', '.join(phases)}"
        raise _other_configuration(checkpoint, configuration, path, reason)


def _other_configuration(
    checkpoint: Mapping[str, Any], configuration: Mapping[str, Any], path: Path, otherwise: str
) -> UserError:
    """An error that names the keys that differ, or says `otherwise` where none does."""
    keys = list(_differences(checkpoint.get("configuration", {}), configuration))
    listed = "; ".join(keys[:5]) + (f"; and {len(keys) - 5} more" if len(keys) > 5 else "")
    return UserError(
        f"{path} was made with another configuration ({listed or otherwise}): use the config.yaml next to it or in its "
        "run folder, or start a new run without it"
    )


def _load(path: Path, kind: str) -> Any:
    try:
        return load_archive(path)
    except UserError:
        raise
    # A damaged archive can raise anything: zipfile, pickle and PyTorch each have their own errors.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged or not {kind} ({reason})") from error


def _check_tensors(weights: Any, path: Path) -> None:
    """Refuse what is not a dense tensor, or claims to have more values than are stored."""
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} is damaged: its weights are not a mapping of names to tensors")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"{path} is damaged: {str(name)[:100]!r} is not the name of a weight")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise UserError(f"{path} is damaged: {name} is not a tensor")
        if value.device.type != "meta" and value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path} is damaged: {name} has more values than are stored")


def _differences(theirs: Any, ours: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}, key=str):
            yield from _differences(theirs.get(key), ours.get(key), f"{prefix}{key}.")
    elif theirs != ours:
        yield f"{prefix[:-1]}: {str(theirs)[:100]} there, {str(ours)[:100]} here"
