"""Trained agents small enough to pass on: weights alone, in bf16, in parts that any code host takes.

    python -m delta_iris.pretrained <run>/checkpoints/last.ckpt pretrained/crafter

makes a folder that `delta-iris test --config pretrained/crafter/config.yaml --ckpt_path pretrained/crafter` plays.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from delta_iris.errors import UserError
from delta_iris.training.checkpoint import load_checkpoint, run_folder

__all__ = ["is_published", "load_published", "publish"]

PART_BYTES = 15_000_000
ABOUT = "about.json"
TARGET, NETWORK = "agent.target.", "agent.network."


def publish(checkpoint: Path, folder: Path) -> None:
    """Write the agent of a checkpoint into a new folder.

    Left out are optimizers and the target network, which playing does not need; weights are rounded to bf16, the
    codebook is not. `about.json` names the parts with their SHA-256, the frames learned from and the configuration.

    Args:
        checkpoint: of a run, `<run>/checkpoints/….ckpt`.
        folder: to make.

    Raises:
        UserError: where the folder holds something, or there is no such checkpoint.
    """
    content, config = load_checkpoint(checkpoint), run_folder(checkpoint) / "config.yaml"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is a file or not empty: name a new folder")
    if not config.is_file():
        raise UserError(f"{config} is missing: publish from the run folder, which tells how the agent was made")
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    room = PART_BYTES
    for name, value in content["state_dict"].items():
        if name.startswith(TARGET):
            continue
        kept = value.to(torch.bfloat16) if value.dtype == torch.float32 and ".quantizer." not in name else value
        kept = kept.clone()
        if kept.nbytes > room and parts[-1]:
            parts.append({})
            room = PART_BYTES
        parts[-1][name] = kept
        room -= kept.nbytes
    files = {}
    for number, part in enumerate(parts, start=1):
        path = folder / f"weights-{number}-of-{len(parts)}.pt"
        torch.save(part, path)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {
        "parts": files,
        "frames_collected": content["frames_collected"],
        "configuration": content["configuration"],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    shutil.copyfile(config, folder / "config.yaml")


def is_published(path: Path) -> bool:
    """Whether a path is a folder that `publish` made."""
    return (path / ABOUT).is_file()


def load_published(folder: Path) -> dict[str, Any]:
    """What `publish` wrote: `state_dict` in float32, its target network that of the agent; `configuration` and
    `frames_collected`.

    Raises:
        UserError: where something is missing or damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        weights: dict[str, Tensor] = {}
        for name, digest in about["parts"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise UserError(f"{folder / name} is damaged (not the SHA-256 of about.json): fetch it again")
            weights |= torch.load(folder / name, map_location="cpu", weights_only=True)
        content = {name: about[name] for name in ("configuration", "frames_collected")}
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no published agent: {Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder} is damaged or no published agent ({error})") from error
    weights = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in weights.items()}
    target = {name.replace(NETWORK, TARGET, 1): value for name, value in weights.items() if name.startswith(NETWORK)}
    return content | {"state_dict": weights | target}


if __name__ == "__main__":
    try:
        auto_cli(publish, as_positional=True)
    except UserError as error:
        print(f"published: {error}", file=sys.stderr)
        raise SystemExit(2) from None
