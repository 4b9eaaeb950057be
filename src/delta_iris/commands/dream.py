"""Show what an agent's world model imagines.

    delta-iris dream pretrained/crafter_cnn

plays the agent's game and writes `dream/dream.gif`, `.mp4` and `.png`: real, reconstructed and imagined frames of the
same episode.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from delta_iris.commands.agents import load_agent
from delta_iris.data.replay_reader import ReplayReader, find_replays
from delta_iris.data.segment import SegmentBatch
from delta_iris.errors import UserError
from delta_iris.evaluation.dream import dream_of
from delta_iris.evaluation.video import MAX_FRAMES, label_panels, strip, write_gif, write_mp4
from delta_iris.pretrained import Agent

__all__ = ["dream", "play_episode", "read_episode"]

LABELS = ["real", "reconstructed", "imagined"]
STRIP_COLUMNS = 12

Episode = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Frames (T, H, W, 3) and the actions (T,) chosen at them."""


def dream(
    agent: Path,
    out: Path = Path("dream"),
    replay: Path | None = None,
    episode: int = 0,
    seed: int = 0,
    start: int = 0,
    steps: int = 60,
    fps: int = 10,
    trust: str | None = None,
) -> None:
    """Write real, reconstructed and imagined frames of one episode side by side, as GIF, MP4 and PNG.

    The world model sees the first frames; then it imagines under the actions of the real episode.

    Args:
        agent: an exported agent, or a checkpoint of a run.
        out: folder for dream.gif, dream.mp4 and dream.png.
        replay: a run folder or its replay, from which the episode is taken; the agent plays one where null.
        episode: number of the episode in the replay.
        seed: of the game that the agent plays, and of what is sampled.
        start: first step of the episode that is shown.
        steps: steps to show, at most 1000.
        fps: frames a second of the animations, at most 50.
        trust: top-level packages, separated by commas, whose classes and environments the agent may name.
    """
    limits = (
        ("steps", steps, MAX_FRAMES, 1),
        ("fps", fps, 50, 1),
        ("start", start, 10**9, 0),
        ("seed", seed, 2**32 - 1, 0),
    )
    for name, value, most, least in limits:
        if not least <= value <= most:
            raise UserError(f"{name} is {value}: it must be between {least} and {most}")
    if out.exists() and not out.is_dir():
        raise UserError(f"out is {out}, a file: name a folder")
    loaded = load_agent(agent, trust)
    model, system = loaded.world_model, loaded.system
    if model is None:
        raise UserError(f"{agent} is an agent without a world model: it cannot imagine")
    torch.manual_seed(seed)
    stop = start + steps
    if replay is None:
        frames, actions = play_episode(loaded, stop, seed)
    else:
        frames, actions = read_episode(loaded, replay, episode, stop)
    frames, actions = frames[start:stop], actions[start:stop]
    if len(frames) <= system.context:
        raise UserError(
            f"the episode has {len(frames)} steps from step {start} on, and imagination starts after "
            f"{system.context}: choose a smaller start, or another episode or seed"
        )
    segment = SegmentBatch.from_numpy(frames, actions)
    result = dream_of(model, segment, system.context, system.segment_length)
    out.mkdir(parents=True, exist_ok=True)
    panels = label_panels(list(result), LABELS)
    write_gif(out / "dream.gif", panels, panels.shape[1], fps)
    write_mp4(out / "dream.mp4", panels, fps)
    strip(list(result), LABELS, STRIP_COLUMNS).save(out / "dream.png")
    error = ((result.imagined.astype(np.float32) - result.real) / 255) ** 2
    print(f"{len(frames)} steps, imagined from step {system.context} on")
    print(f"mean squared error of imagined frames: {error[system.context :].mean():.4f}")
    print(f"Written: {out}/dream.gif, {out}/dream.mp4 and {out}/dream.png")


def play_episode(agent: Agent, steps: int, seed: int) -> Episode:
    """Let an agent play its game.

    Args:
        agent: plays.
        steps: largest number of steps.
        seed: of the game.

    Raises:
        UserError: if it has none: it has learned from recorded episodes only.
    """
    env = agent.make_env()
    episode = agent.play_episode(env, steps, seed)
    env.close()
    return episode


def read_episode(agent: Agent, folder: Path, episode: int, stop: int) -> Episode:
    """Read the first steps of a recorded episode.

    Args:
        agent: whose frames have the size of those recorded.
        folder: a run folder, its replay, or one process's part of it; the first process's is read.
        episode: number of the episode.
        stop: step to stop before.

    Raises:
        UserError: if there is no such replay or episode, or it is damaged.
    """
    height, width = agent.configuration["data"]["frame_size"]
    found = find_replays(folder)[0]
    reader = ReplayReader(found, (height, width, 3))
    if not 0 <= episode < reader.num_episodes:
        raise UserError(f"{found} has no episode {episode}: it holds {reader.num_episodes}")
    if not reader.length(episode):
        raise UserError(f"episode {episode} of {found} is damaged: choose another one")
    steps = reader.read(episode, 0, min(stop, reader.length(episode)))
    return steps.frames, steps.actions
