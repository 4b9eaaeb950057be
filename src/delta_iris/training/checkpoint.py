"""Loading checkpoints, and clear messages for those that are missing, damaged or of another configuration."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_iris.errors import UserError

__all__ = ["check_weights", "load_checkpoint", "run_folder"]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Map a checkpoint into memory. Only tensors and plain values can be loaded, never code.

    Raises:
        UserError: if there is none, or it is not a checkpoint of this program.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a checkpoint in it, <run>/checkpoints/last.ckpt")
    if not path.is_file():
        others = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"; that folder has: {', '.join(others)}" if others else ""
        raise UserError(f"there is no checkpoint {path}{hint}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint of this program ({reason})") from error
    needed = ("state_dict", "configuration", "frames_collected")
    if not isinstance(content, dict) or not all(key in content for key in needed):
        raise UserError(f"{path} is not a checkpoint of this version: it must contain {', '.join(needed)}")
    return content


def run_folder(checkpoint: Path) -> Path:
    """The run folder of a checkpoint `<run>/checkpoints/….ckpt`."""
    return checkpoint.resolve().parent.parent


def check_weights(
    checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], configuration: Mapping[str, Any], path: Path
) -> None:
    """Compare the weights of a checkpoint with those of a model, by name and shape.

    Args:
        checkpoint: with `state_dict` and `configuration`.
        own: weights of the model.
        configuration: of the model.
        path: of the checkpoint, for the message.

    Raises:
        UserError: if they differ; it names the configuration keys that do.
    """
    theirs = checkpoint["state_dict"]
    wrong = [name for name in own if name not in theirs or theirs[name].shape != own[name].shape]
    wrong += [name for name in theirs if name not in own]
    if not wrong:
        return
    keys = list(_differences(checkpoint.get("configuration", {}), configuration))
    listed = "; ".join(keys[:5]) + (f"; and {len(keys) - 5} more" if len(keys) > 5 else "")
    raise UserError(
        f"{path} was made with another configuration ({listed or f'first difference: {wrong[0]}'}): use the "
        "config.yaml of its run folder, or start a new run without --ckpt_path"
    )


def _differences(theirs: Any, ours: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            yield from _differences(theirs.get(key), ours.get(key), f"{prefix}{key}.")
    elif theirs != ours:
        yield f"{prefix[:-1]}: {theirs} there, {ours} here"
