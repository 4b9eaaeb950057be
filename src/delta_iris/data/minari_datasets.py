"""Minari datasets: imported as a replay, and exported from replays.

An episode of T steps has T + 1 observations in Minari and T frames and a final frame in a replay: observation t is the
frame at which action t was chosen, and reward t results from it, in both. Nothing is shifted.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delta_iris.data.disk import whole_folder
from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import read_metadata
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError
from delta_iris.files import open_regular, read_text

__all__ = ["DatasetSize", "export_minari", "import_minari"]

BLOCK_STEPS, BLOCK_BYTES = 256, 64 << 20
"""Steps of an episode that are in memory at a time on import, and what their frames take at most."""

BATCH_BYTES = 64 << 20
"""Frames that are handed to Minari at a time on export, unless a single episode is larger."""

MAX_CHUNK_BYTES = 256 << 20
"""A compressed block of an HDF5 file is read as a whole; Minari's have some kilobytes."""

HDF5 = "main_data.hdf5"
"""Where Minari keeps the episodes of a dataset."""

MAX_METADATA_BYTES = 64 << 20
"""They hold the lowest and the highest value of every pixel, as text."""

MAX_FRAMES = 1 << 32

FINAL_KNOWN = "final_observation_known"
"""Attribute of an exported episode; false where its last observation only repeats the one before."""


class DatasetSize(NamedTuple):
    """What was imported or exported.

    Attributes:
        episodes: number of episodes.
        steps: number of steps.
        frame_size: height and width of a frame.
        num_actions: number of actions.
    """

    episodes: int
    steps: int
    frame_size: tuple[int, int]
    num_actions: int


def import_minari(source: str, folder: Path, key: str | None = None) -> DatasetSize:
    """Write a Minari dataset as a new replay, on which `data.recorded_episodes` can start a run.

    Frames are (H, W, 3), (H, W, 1) or (H, W) uint8; grey ones become RGB. Rewards become 32-bit floats. An episode
    whose last step neither terminates nor truncates it was cut off, which is a truncation.

    Args:
        source: folder of a dataset, or the id of one that Minari has on this machine.
        folder: of the replay, which must not exist.
        key: of the frames, where observations are dicts.

    Raises:
        UserError: if there is no such dataset, its observations or actions are not supported, it is damaged, the folder
            exists, or the disk is full; nothing is left of the replay then.
    """
    dataset = _find_dataset(source)
    space, num_actions = _check_dataset(dataset, source, key)
    import h5py

    height, width = space.shape[:2]
    steps = episodes = 0
    with _damage_errors(source), open_regular(dataset / HDF5) as raw, h5py.File(raw, "r") as file:
        names = _episode_names(file)
        with whole_folder(folder) as new:
            replay = Replay(new, (height, width, 3))
            try:
                for name in names:
                    steps += _import_episode(replay, file, name, key, space.shape, num_actions)
                    episodes += 1
            finally:
                replay.close()
    return DatasetSize(episodes, steps, (height, width), num_actions)


def export_minari(replays: Sequence[Path], dataset_id: str, num_actions: int) -> DatasetSize:
    """Write the episodes of replays as a new dataset, where `minari.load_dataset` finds it.

    Observations are stored as they are, not as JPEG. An unfinished episode becomes one that was truncated. Where the
    frame after the last step is not known, the last observation repeats the one before, and the episode's attribute
    `final_observation_known` is false.

    Args:
        replays: folders of replays.
        dataset_id: `<name>-v<number>`, optionally with `<namespace>/` before it.
        num_actions: number of actions.

    Raises:
        UserError: if a replay is damaged or holds other actions, the id is malformed or taken, or the disk is full;
            nothing is left of the dataset then.
    """
    target = _dataset_path(dataset_id)
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:
        raise UserError(f"{dataset_id!r} is no id of a Minari dataset: it has the form catch/random-v0") from error
    _, shape = read_metadata(replays[0])
    readers = [ReplayReader(replay, shape) for replay in replays]
    size = DatasetSize(0, 0, (shape[0], shape[1]), num_actions)
    with whole_folder(target) as new:
        storage = MinariStorage.new(
            new / "data",
            gym.spaces.Box(0, 255, shape, np.uint8),
            gym.spaces.Discrete(num_actions),
            jpeg_encoding=False,
        )
        from minari import __version__

        storage.update_metadata(
            {"dataset_id": dataset_id, "minari_version": __version__, "algorithm_name": "delta-iris"}
        )
        storage.update_episodes([])  # makes the file
        for batch, known in _batches(readers, num_actions):
            _reserve(new / "data" / HDF5, batch)
            first = storage.total_episodes
            storage.update_episodes(batch)
            storage.update_episode_metadata([{FINAL_KNOWN: each} for each in known], range(first, first + len(batch)))
        size = size._replace(episodes=storage.total_episodes, steps=storage.total_steps)
        if not size.episodes:
            raise UserError(f"{replays[0]} holds no steps: there is nothing to export")
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
    return size


def _dataset_path(dataset_id: str) -> Path:
    """Where Minari keeps a dataset, or would keep it."""
    try:
        # Only its HDF5 storage needs this.
        import h5py  # noqa: F401
        from minari.storage.datasets_root_dir import get_dataset_path
    except ModuleNotFoundError as error:
        raise UserError(
            f"Minari datasets need the package {error.name}: install the extra minari (in a clone, python -m pip "
            "install -e '.[minari]')"
        ) from error
    try:
        return Path(get_dataset_path(dataset_id))
    except OSError as error:
        raise UserError(f"Minari's folder cannot be made ({error}): set MINARI_DATASETS_PATH to another one") from error


# --- import ---


def _find_dataset(source: str) -> Path:
    """The folder with a dataset's metadata and episodes."""
    for folder in (Path(source), _dataset_path(source)):
        for data in (folder / "data", folder):
            if (data / "metadata.json").is_file():
                return data
    raise UserError(
        f"there is no Minari dataset {source}: give its folder or an id that `minari list local` shows; `minari "
        f"download {source}` fetches one of Minari's"
    )


def _check_dataset(dataset: Path, source: str, key: str | None) -> tuple[gym.spaces.Box, int]:
    """The space of the frames and the number of actions.

    Minari would make the environment that the metadata name if they held no spaces: code of a file's choice. It is not
    asked.
    """
    from minari.serialization import deserialize_space

    with _damage_errors(source):
        path = dataset / "metadata.json"
        metadata = json.loads(read_text(path, min(path.stat().st_size, MAX_METADATA_BYTES)))
        stored = metadata.get("data_format", "hdf5")
        spaces = [metadata.get(f"{name}_space") for name in ("observation", "action")]
        if None in spaces:
            raise ValueError("its metadata have no spaces")
        observation, action = (deserialize_space(space) for space in spaces)
    if stored != "hdf5":
        raise UserError(f"{source} is stored as {stored}, but only hdf5 is supported: write it with data_format='hdf5'")
    if not isinstance(action, gym.spaces.Discrete) or action.start != 0:
        raise UserError(
            f"{source} has the action space {_short(action)}, but only discrete actions from 0 can be learned: "
            "choose another dataset"
        )
    if isinstance(observation, gym.spaces.Dict):
        if key is None or key not in observation.spaces:
            raise UserError(
                f"{source} has dict observations{'' if key is None else f' without the key {key!r}'}: name the frames "
                f"with --key, one of {', '.join(observation.spaces)}"
            )
        observation = observation[key]
    elif key is not None:
        raise UserError(f"{source} has no dict observations: leave --key out")
    shape = observation.shape if isinstance(observation, gym.spaces.Box) else None
    grey_or_rgb = shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)))
    if not grey_or_rgb or observation.dtype != np.uint8:
        raise UserError(
            f"{source} has the observation space {_short(observation)}, but frames (H, W, 3) or (H, W) of uint8 are "
            "needed: choose another dataset, or another --key"
        )
    if math.prod(observation.shape) > BLOCK_BYTES:
        raise UserError(f"{source} has frames of {math.prod(observation.shape):,} bytes: choose another dataset")
    return observation, int(action.n)


@contextmanager
def _damage_errors(source: str) -> Iterator[None]:
    """Turn whatever h5py, Pillow and Minari raise for strange bytes into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source} is damaged or no Minari dataset ({text}): fetch it again") from error


def _episode_names(file: Any) -> list[str]:
    """The episodes in order. Their numbers are those of the names, without gaps."""
    names = [f"episode_{number}" for number in range(len(file))]
    if not names or any(name not in file for name in names):
        raise ValueError("its episodes are missing or not numbered from 0 on")
    return names


def _import_episode(
    replay: Replay, file: Any, name: str, key: str | None, shape: tuple[int, ...], num_actions: int
) -> int:
    observations = _array(file, name, "observations", *([] if key is None else [key]))
    columns = {each: _array(file, name, each) for each in ("actions", "rewards", "terminations", "truncations")}
    length = columns["rewards"].shape[0]
    if any(column.shape != (length,) for column in columns.values()) or observations.shape[:1] != (length + 1,):
        raise ValueError(f"the arrays of {name} do not have one observation more than steps")
    if not 0 < length < MAX_FRAMES:
        raise ValueError(f"{name} has {length:,} steps")
    raw = observations.shape[1:] == shape
    if not raw and len(observations.shape) > 2:
        raise ValueError(f"the observations of {name} have another shape than the space")
    final_known = bool(file[name].attrs.get(FINAL_KNOWN, True))
    block = max(1, min(BLOCK_STEPS, BLOCK_BYTES // math.prod(shape)))
    for start in range(0, length, block):
        stop = min(start + block, length)
        last = stop == length
        frames = _frames(observations[start : stop + last], shape, raw)
        actions, rewards, *flags = (column[start:stop] for column in columns.values())
        if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= num_actions:
            raise ValueError(f"{name} has actions outside of 0 to {num_actions - 1}")
        if rewards.dtype.kind not in "iufb" or not np.isfinite(rewards.astype(np.float32)).all():
            raise ValueError(f"{name} has rewards that are not finite 32-bit floats")
        ends = np.stack(flags).astype(np.bool_)
        if ends[:, : len(actions) - last].any():
            raise ValueError(f"{name} goes on after its end")
        for i, (action, reward) in enumerate(zip(actions.tolist(), rewards.tolist(), strict=True)):
            terminated, truncated = ends[:, i].tolist()
            if last and i == len(actions) - 1:
                final = frames[-1] if final_known else None
                replay.append(0, frames[i], action, reward, terminated, truncated or not terminated, final)
            else:
                replay.append(0, frames[i], action, reward, False, False)
    return int(length)


def _array(file: Any, *names: str) -> Any:
    """An array, which must lie in this file as a whole: a link could lead to any other file of this machine."""
    import h5py

    found, path = file, "/".join(names)
    for name in names:
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is {'missing' if link is None else 'a link'}")
        found = found[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{path} is no array of this file")
    dtype = h5py.check_vlen_dtype(found.dtype) or found.dtype
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise ValueError(f"{path} consists of {str(dtype)[:40]}, not of numbers")
    if found.chunks is not None and np.prod(found.chunks, dtype=float) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"{path} has too large chunks")
    return found


def _frames(stored: NDArray[Any], shape: tuple[int, ...], raw: bool) -> NDArray[np.uint8]:
    """Frames (n, H, W, 3) from arrays, or from the JPEG files that Minari makes of larger ones."""
    if not raw:
        stored = np.stack([_decode(each, shape) for each in stored])
    if stored.dtype != np.uint8:
        raise ValueError(f"its frames are {stored.dtype}")
    if len(shape) == 2:
        stored = stored[..., None]
    return stored if stored.shape[-1] == 3 else stored.repeat(3, axis=-1)


def _decode(stored: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(np.asarray(stored, np.uint8).tobytes()), formats=["JPEG"])
    # Before memory is asked for.
    if (image.height, image.width) != shape[:2]:
        raise ValueError(f"a frame has {image.height}×{image.width} pixels")
    frame = np.asarray(image, np.uint8)
    return frame.reshape(shape)


def _short(space: Any) -> str:
    return " ".join(str(space).split())[:100]


# --- export ---


def _batches(readers: list[ReplayReader], num_actions: int) -> Iterator[tuple[list[Any], list[bool]]]:
    """Episodes as Minari's buffers, several at a time, and whether the final observation of each is known."""
    batch: list[Any] = []
    known: list[bool] = []
    for reader in readers:
        for episode in range(reader.num_episodes):
            length = reader.length(episode)
            if not length:
                continue
            batch.append(_export_episode(reader, episode, num_actions))
            known.append(reader.final_frame(episode) is not None)
            if sum(each.observations.nbytes for each in batch) >= BATCH_BYTES:
                yield batch, known
                batch, known = [], []
    if batch:
        yield batch, known


def _reserve(path: Path, batch: list[Any]) -> None:
    """Take more disk space than a batch can need, which HDF5 gives back: it crashes where a disk is full.

    Raises:
        OSError: if there is not as much.
    """
    if hasattr(os, "posix_fallocate"):  # Linux
        size = sum(3 * buffer.observations.nbytes + (128 << 10) for buffer in batch)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


def _export_episode(reader: ReplayReader, episode: int, num_actions: int) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = reader.read(episode, 0, reader.length(episode))
    if steps.actions.max() >= num_actions:
        raise UserError(
            f"{reader.folder} has the action {steps.actions.max()}, but there are {num_actions}: give --num_actions"
        )
    final = reader.final_frame(episode)
    frames = np.concatenate([steps.frames, (steps.frames[-1] if final is None else final)[None]])
    steps.truncated[-1] |= not steps.terminated[-1]
    return EpisodeBuffer(
        observations=frames,
        actions=steps.actions,
        rewards=steps.rewards,
        terminations=steps.terminated,
        truncations=steps.truncated,
    )
