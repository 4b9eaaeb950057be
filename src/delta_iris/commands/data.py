"""Bring data from other tools, and take it to them.

    delta-iris data import atari/breakout-v0 episodes
    delta-iris data export lightning_logs/quickstart/version_0 catch/quickstart-v0

`data.recorded_episodes` starts a run with what was imported, with or without an environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from delta_iris.data.minari_datasets import DatasetSize, export_minari, import_minari
from delta_iris.data.replay_reader import find_replays
from delta_iris.errors import UserError
from delta_iris.files import read_text
from delta_iris.yaml_files import parse_yaml

__all__ = ["data"]


def data(
    action: Literal["import", "export"],
    source: str,
    target: str,
    key: str | None = None,
    num_actions: int | None = None,
) -> None:
    """Import a Minari dataset as a replay, or export a replay as a Minari dataset.

    Args:
        action: import or export.
        source: to import, the id of a Minari dataset or its folder; to export, a run folder or a replay.
        target: to import, the folder to make; to export, the id of the dataset to make, such as catch/random-v0.
        key: of the frames, where the observations of the dataset are dicts; import only.
        num_actions: number of actions of the dataset; that of the run where null; export only.
    """
    if action == "import":
        if num_actions is not None:
            raise UserError("--num_actions is for export: an import reads it from the dataset")
        folder = Path(target)
        size = import_minari(source, folder, key)
        height, width = size.frame_size
        print(f"Written: {folder}, {_describe(size)}. To learn from it alone:")
        print(
            "  delta-iris fit --config crafter_cnn.yaml --data.environment null --data.num_actions "
            f"{size.num_actions} --data.frame_size '[{height}, {width}]' --data.recorded_episodes {folder} "
            "--model.schedule.collection.last_epoch 0"
        )
        return
    if key is not None:
        raise UserError("--key is for import: a replay holds frames only")
    run = Path(source)
    size = export_minari(find_replays(run), target, _num_actions(run) if num_actions is None else num_actions)
    print(f"Written: {target}, {_describe(size)}. To read it:")
    print(f"  minari.load_dataset({target!r})")


def _describe(size: DatasetSize) -> str:
    height, width = size.frame_size
    return f"{size.episodes:,} episodes of {size.steps:,} steps, {height}×{width} frames and {size.num_actions} actions"


def _num_actions(run: Path) -> int:
    """The number of actions of a run, which its replay does not hold."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is no run folder, and a replay does not hold the number of actions: give --num_actions")
    content = parse_yaml(read_text(path), str(path))
    number = content["data"].get("num_actions") if isinstance(content.get("data"), dict) else None
    if not isinstance(number, int):
        raise UserError(f"{path} has no data.num_actions: give --num_actions")
    return number
