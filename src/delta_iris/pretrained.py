"""Exported agents: weights in bf16, in parts that any code host accepts, with their configuration."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_iris.errors import UserError
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration, upgrade_weights
from delta_iris.training.checkpoint import load_checkpoint, run_folder

__all__ = ["export_agent", "is_exported", "load_exported"]

PART_BYTES = 15_000_000
ABOUT = "about.json"
NETWORK, TARGET = "actor_critic.network.", "actor_critic.target."


def export_agent(checkpoint: Path, folder: Path, part_bytes: int = PART_BYTES) -> None:
    """Write the agent of a checkpoint to a new folder.

    Optimizers and the target network are left out, because acting does not need them. Weights are rounded to bf16, but
    for the codebook. `about.json` lists the parts with their SHA-256, the frames trained on and the configuration.

    Args:
        checkpoint: of a run, `<run>/checkpoints/….ckpt`.
        folder: to make.
        part_bytes: largest size of a part, unless a single tensor is larger.

    Raises:
        UserError: if the folder is not empty, or there is no such checkpoint.
    """
    content, config = load_checkpoint(checkpoint), run_folder(checkpoint) / "config.yaml"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is a file or not empty: name a new folder")
    if not config.is_file():
        raise UserError(f"{config} is missing: export from the run folder, which holds the configuration")
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    room = part_bytes
    for name, value in content["state_dict"].items():
        if name.startswith(TARGET):
            continue
        rounded = value.to(torch.bfloat16) if value.dtype == torch.float32 and ".quantizer." not in name else value
        rounded = rounded.clone()
        if rounded.nbytes > room and parts[-1]:
            parts.append({})
            room = part_bytes
        parts[-1][name] = rounded
        room -= rounded.nbytes
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


def is_exported(path: Path) -> bool:
    """Whether a path is a folder that `export_agent` made."""
    return (path / ABOUT).is_file()


def load_exported(folder: Path) -> dict[str, Any]:
    """Read what `export_agent` wrote, of this version or of 0.1.

    Args:
        folder: of the agent.

    Returns:
        `state_dict` in float32 with the network as its own target, `configuration` and `frames_collected`.

    Raises:
        UserError: if something is missing or damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        weights: dict[str, Tensor] = {}
        for name, digest in about["parts"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise UserError(f"{folder / name} is damaged (its SHA-256 is not that of about.json): fetch it again")
            weights |= torch.load(folder / name, map_location="cpu", weights_only=True)
        configuration, frames = about["configuration"], about["frames_collected"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not an exported agent: {Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder} is damaged or not an exported agent ({error})") from error
    if is_legacy_configuration(configuration):
        configuration, weights = upgrade_configuration(configuration), upgrade_weights(weights)
    weights = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in weights.items()}
    target = {name.replace(NETWORK, TARGET, 1): value for name, value in weights.items() if name.startswith(NETWORK)}
    return {"state_dict": weights | target, "configuration": configuration, "frames_collected": frames}
