"""Exported agents: weights in bf16, in parts that any code host accepts, with their configuration."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.segment import to_float
from delta_iris.errors import UserError
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration, upgrade_weights
from delta_iris.training.checkpoint import check_weights, load_checkpoint, run_folder
from delta_iris.training.learner import Learner
from delta_iris.training.systems.building import build_system

__all__ = ["Agent", "export_agent", "is_exported", "load_exported", "load_pretrained"]

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


class Agent:
    """A trained agent that acts.

    Args:
        system: the trained system.
        frames_trained_on: frames of experience that it has learned from.

    Attributes:
        system: its modules, such as `system.tokenizer` and `system.actor_critic`.
        world_model: what it imagines with; None if it is model-free.
    """

    def __init__(self, system: Learner, frames_trained_on: int) -> None:
        self.system, self.frames_trained_on = system.eval(), frames_trained_on
        self.world_model = system.world_model
        self._policy = system.make_policy()
        self._memory: Any = None
        self.reset()

    def reset(self) -> None:
        """Forget the episode. Call it before each episode's first frame."""
        self._memory = self._policy.initial_memory(1)

    @torch.no_grad()
    def act(self, frame: NDArray[np.uint8]) -> int:
        """Sample an action.

        Args:
            frame: (H, W, 3) uint8, the next frame of the episode.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).unsqueeze(0)
        action, self._memory = self._policy.act(to_float(tensor.to(self._policy.device)), self._memory)
        return int(action)


def load_pretrained(folder: Path | str, packages: tuple[str, ...] = ("delta_iris",)) -> Agent:
    """Load an exported agent.

    Args:
        folder: that `export_agent` made.
        packages: whose classes the configuration may name; nothing else is imported.

    Raises:
        UserError: if something is missing or damaged, or the configuration names a class of another package.
    """
    folder = Path(folder)
    content = load_exported(folder)
    configuration = content["configuration"]
    for name in _dotted_names(configuration["model"]):
        if name.partition(".")[0] not in packages:
            raise UserError(f"{folder} names the class {name}: add its package to `packages` if you trust it")
    try:
        system = build_system(configuration)
    except (ArgumentError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has an invalid configuration: {' '.join(str(error).split())[:300]}") from error
    check_weights(content, system.state_dict(), configuration, folder)
    system.load_state_dict(content["state_dict"])
    return Agent(system, content["frames_collected"])


def _dotted_names(content: Any) -> Iterator[str]:
    """All strings that could be the name of a class or a function: jsonargparse takes them in place of groups too."""
    if isinstance(content, dict):
        for value in content.values():
            yield from _dotted_names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _dotted_names(value)
    elif isinstance(content, str) and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", content):
        yield content
