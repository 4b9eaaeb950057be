"""Checkpoints of other configurations, foreign ones and missing ones, told in one line."""

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
    """Map a checkpoint into memory; only tensors and plain values can be loaded, never code.

    Raises:
        UserError: where there is none, or it is not one of this program's.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a checkpoint in it, <run>/checkpoints/last.ckpt")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(f"there is no checkpoint {path}" + (f"; beside it lie: {', '.join(near)}" if near else ""))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint of this program ({reason})") from error
    needed = ("state_dict", "configuration", "frames_collected")
    if not isinstance(content, dict) or not all(key in content for key in needed):
        raise UserError(f"{path} is no checkpoint of this version of the program: {', '.join(needed)} belong in it")
    return content


def run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint `<run>/checkpoints/….ckpt` lies in."""
    return checkpoint.resolve().parent.parent


def check_weights(
    checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], configuration: Mapping[str, Any], path: Path
) -> None:
    """Compare the weights of a checkpoint with those of a model, by name and shape.

    Raises:
        UserError: where they differ; it names the keys of the configuration that do.
    """
    theirs = checkpoint["state_dict"]
    wrong = [name for name in own if name not in theirs or theirs[name].shape != own[name].shape]
    wrong += [name for name in theirs if name not in own]
    if not wrong:
        return
    keys = list(_differences(checkpoint.get("configuration", {}), configuration))
    told = "; ".join(keys[:5]) + (f"; and {len(keys) - 5} more" if len(keys) > 5 else "")
    raise UserError(
        f"{path} was made with another configuration ({told or f'first difference: {wrong[0]}'}): use the config.yaml "
        "of its own folder, or start a new run without --ckpt_path"
    )


def _differences(theirs: Any, ours: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            yield from _differences(theirs.get(key), ours.get(key), f"{prefix}{key}.")
    elif theirs != ours:
        yield f"{prefix[:-1]}: {theirs} there, {ours} here"
