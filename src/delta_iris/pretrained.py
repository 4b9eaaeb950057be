"""Exported agents: weights in bf16 as safetensors, in parts that any code host accepts, with their configuration."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.envs.make import make_env
from delta_iris.errors import UserError
from delta_iris.files import open_regular, read_text
from delta_iris.imagination.vector_env import ImaginedVectorEnv
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration, upgrade_weights
from delta_iris.model_card import model_card
from delta_iris.training.checkpoint import (
    check_frames,
    check_weights,
    is_plain,
    load_checkpoint,
    load_tensors,
    run_folder,
)
from delta_iris.training.learner import Learner
from delta_iris.training.systems.building import at_most_parameters, build_system
from delta_iris.trust import is_dotted_name, refuse_foreign_environment, refuse_foreign_name, walk

__all__ = ["Agent", "export_agent", "is_exported", "load_exported", "load_pretrained"]

PART_BYTES = 15_000_000
ABOUT = "about.json"
CARD = "README.md"
PART = r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors|weights-[0-9]{1,5}-of-[0-9]{1,5}\.pt"
"""Names of the files with weights: what `huggingface_hub` calls them, and what version 0.2 did."""
MAX_PARTS = 10_000
ADVICE = 'if you trust the code of {package}, add it: load_pretrained(folder, trust=["{package}"])'
NETWORK, TARGET = "actor_critic.network.", "actor_critic.target."


def export_agent(checkpoint: Path, folder: Path, part_bytes: int = PART_BYTES) -> None:
    """Write the agent of a checkpoint to a new folder.

    Optimizers and the target network are left out, because acting does not need them. Weights are rounded to bf16, but
    for the codebook. `about.json` lists the parts with their SHA-256, the frames trained on and the configuration. A
    model card, README.md, says what the agent scores where `delta-iris test` has measured this checkpoint.

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
    results = run_folder(checkpoint) / "evaluation" / f"{checkpoint.stem}.json"
    try:
        card = model_card(content, results, folder.resolve().name)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{checkpoint} has an invalid configuration ({error})") from error
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.to(torch.bfloat16) if value.dtype == torch.float32 and ".quantizer." not in name else value
        for name, value in content["state_dict"].items()
        if not name.startswith(TARGET)
    }
    save_torch_state_dict(weights, folder, max_shard_size=part_bytes)
    about = {
        "parts": {path.name: _digest(path) for path in sorted(folder.glob("*.safetensors"))},
        "frames_collected": content["frames_collected"],
        "configuration": content["configuration"],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    for part in about["parts"]:
        # safetensors lets the owner alone read them.
        shutil.copymode(folder / ABOUT, folder / part)
    shutil.copyfile(config, folder / "config.yaml")
    (folder / CARD).write_text(card)


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
    about = _read_about(folder)
    configuration, frames = about["configuration"], about["frames_collected"]
    weights: dict[str, Tensor] = {}
    for name, digest in about["parts"].items():
        path = folder / name
        if not path.exists():
            raise UserError(f"{folder} is not an exported agent: {name} is missing")
        if _digest(path) != digest:
            raise UserError(f"{path} is damaged (its SHA-256 is not that of about.json): fetch it again")
        weights |= _load_part(path)
    try:
        if is_legacy_configuration(configuration):
            configuration, weights = upgrade_configuration(configuration), upgrade_weights(weights)
        # What `build_system` reads; the rest is its parser's to judge.
        sizes, arguments = configuration["data"], configuration["model"]["init_args"]
        if not isinstance(arguments, dict) or not {"frame_size", "num_actions"} <= sizes.keys():
            raise ValueError("sizes or arguments are missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} has an invalid configuration ({error})") from error
    weights = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in weights.items()}
    target = {name.replace(NETWORK, TARGET, 1): value for name, value in weights.items() if name.startswith(NETWORK)}
    return {"state_dict": weights | target, "configuration": configuration, "frames_collected": frames}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_part(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return load_tensors(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): fetch it again") from error
    return weights


def _read_about(folder: Path) -> dict[str, Any]:
    """Read and check `about.json`."""
    path = folder / ABOUT
    if not folder.exists():
        raise UserError(f"there is no exported agent {folder}")
    if (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is a run folder, not an exported agent: make one with `delta-iris export "
            f"{folder / 'checkpoints' / 'last.ckpt'} <agent>`"
        )
    if not path.exists():
        raise UserError(f"{folder} is not an exported agent: {ABOUT} is missing")
    try:
        about = json.loads(read_text(path))
        parts, configuration, frames = about["parts"], about["configuration"], about["frames_collected"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not an exported agent ({str(error)[:200]})") from error
    if not isinstance(parts, dict) or not 0 < len(parts) <= MAX_PARTS or not isinstance(configuration, dict):
        raise UserError(f"{path} is damaged or not an exported agent: it must have parts and a configuration")
    for name, digest in parts.items():
        if not re.fullmatch(PART, name) or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            raise UserError(
                f"{path} is damaged: {name[:100]!r} is not a part such as model.safetensors with its SHA-256"
            )
    if not is_plain(configuration):
        raise UserError(f"{path} is damaged: its configuration is too large")
    check_frames(frames, path)
    return {"parts": parts, "configuration": configuration, "frames_collected": frames}


class Agent:
    """A trained agent that acts.

    Args:
        system: the trained system.
        frames_trained_on: frames of experience that it has learned from.
        configuration: `data` and `model` of its run.
        trust: top-level packages that its environment may import.

    Attributes:
        system: its modules, such as `system.tokenizer` and `system.actor_critic`.
        world_model: what it imagines with; None if it is model-free.
    """

    def __init__(
        self, system: Learner, frames_trained_on: int, configuration: dict[str, Any], trust: Sequence[str] = ()
    ) -> None:
        self._trust = trust
        self.system, self.frames_trained_on, self.configuration = system.eval(), frames_trained_on, configuration
        self.world_model = system.world_model
        self._policy = system.make_policy()
        self._memory: Any = None
        self.reset()

    def make_env(self) -> gym.Env[Any, Any]:
        """Create the environment that the agent is tested in, with its options and wrappers.

        Raises:
            UserError: if it cannot be created, is another game than the agent's, or would import a package that is
                not trusted; or if the agent has learned from recorded episodes only.
        """
        data = self.configuration["data"]
        refuse_foreign_environment(data, "this agent", self._trust, ADVICE)
        if data["environment"] is None:
            raise UserError("the agent was trained without an environment: there is no game for it to play")
        env = make_env(data["environment"], data.get("wrappers"), **(data.get("environment_options") or {}))
        height, width = data["frame_size"]
        shape, actions = env.observation_space.shape, getattr(env.action_space, "n", None)
        if shape != (height, width, 3) or actions != data["num_actions"]:
            env.close()
            raise UserError(
                f"the agent knows frames of {height}×{width} and {data['num_actions']} actions, but "
                f"{data['environment']} has observations of shape {shape} and {actions or 'no discrete'} actions"
            )
        return env

    def reset(self) -> None:
        """Forget the episode. Call it before each episode's first frame."""
        self._memory = self._policy.initial_memory(1)

    def play_episode(
        self, env: gym.Env[Any, Any], max_steps: int | None = None, seed: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Play an episode from its start.

        Args:
            env: the agent's game.
            max_steps: steps to stop after; None for the whole episode.
            seed: of the game.

        Returns:
            frames (T, H, W, 3) uint8, and the actions (T,) int64 chosen at them.
        """
        frame, _ = env.reset(seed=seed)
        self.reset()
        frames: list[NDArray[np.uint8]] = []
        actions: list[int] = []
        over = False
        while not over and len(frames) != max_steps:
            frames.append(np.asarray(frame))
            actions.append(self.act(frames[-1]))
            frame, _, terminated, truncated, _ = env.step(actions[-1])
            over = terminated or truncated
        return np.stack(frames), np.array(actions)

    def imagine(self, starts: SegmentBatch, num_envs: int, **options: Any) -> ImaginedVectorEnv:
        """Make environments of the agent's world model, in which anything that speaks Gymnasium can learn.

        Args:
            starts: S segments of real steps that episodes start from, `system.context` steps or more.
            num_envs: number of environments N.
            options: `max_steps` and `autoreset_mode` of `ImaginedVectorEnv`.

        Raises:
            ValueError: if the agent has no world model.
        """
        if self.world_model is None:
            raise ValueError("this agent has no world model: it cannot imagine")
        num_actions = self.configuration["data"]["num_actions"]
        return ImaginedVectorEnv(self.world_model, num_actions, num_envs, starts, **options)

    @torch.no_grad()
    def act(self, frame: NDArray[np.uint8]) -> int:
        """Sample an action.

        Args:
            frame: (H, W, 3) uint8, the next frame of the episode.

        Raises:
            ValueError: if it has another shape or type.
        """
        height, width = self.configuration["data"]["frame_size"]
        if getattr(frame, "shape", None) != (height, width, 3) or frame.dtype != np.uint8:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else f"a {type(frame).__name__}"
            raise ValueError(f"expected a frame of uint8 ({height}, {width}, 3), got {found}")
        tensor = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).unsqueeze(0)
        action, self._memory = self._policy.act(to_float(tensor.to(self._policy.device)), self._memory)
        return int(action)


def load_pretrained(folder: Path | str, trust: Sequence[str] = (), advice: str = ADVICE) -> Agent:
    """Load an exported agent, or the agent of a checkpoint.

    Args:
        folder: that `export_agent` made; or a checkpoint of a run, `<run>/checkpoints/….ckpt`.
        trust: top-level packages, besides this one, whose classes and environments the configuration may name.
        advice: how a message says to trust one more, with `{package}`.

    Raises:
        UserError: if something is missing or damaged, or the configuration names a class of another package.
    """
    folder = Path(folder)
    is_checkpoint = folder.is_file()
    content = load_checkpoint(folder) if is_checkpoint else load_exported(folder)
    source = folder if is_checkpoint else folder / ABOUT
    configuration = content["configuration"]
    for key, value in walk(configuration["model"], "model"):
        # The parser takes the name of a class or a function in place of a group too.
        if is_dotted_name(value):
            refuse_foreign_name(value.strip(), f"{source}: {key}", trust, advice)
    with _one_message(source):
        if not trust:
            # Without memory, so that a small file cannot ask for a large network; a stranger's code may not work so.
            with torch.device("meta"), at_most_parameters(2 * len(content["state_dict"]) + 100):
                empty = build_system(configuration)
            check_weights(content, empty.state_dict(), configuration, folder)
        system = build_system(configuration)
        if trust:
            check_weights(content, system.state_dict(), configuration, folder)
        system.load_state_dict(content["state_dict"])
        return Agent(system, content["frames_collected"], configuration, trust)


@contextmanager
def _one_message(source: Path) -> Iterator[None]:
    """Turn whatever a strange configuration leads to into one message with the file's name."""
    try:
        yield
    except UserError as error:
        named = str(source.parent) in str(error)
        raise error if named else UserError(f"{source} has an invalid configuration: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{source} has an invalid configuration: {type(error).__name__}: {text}") from error
