"""Tests of what TensorBoard is told about a run besides its values."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

from delta_iris.training.callbacks import BoardOverview, EpisodeStatistics, PhaseCallback, Throughput
from delta_iris.training.loop import install_loops
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems.model_free import ModelFreeSchedule
from tests.training.catch_helpers import make_catch_data, make_model_free, make_trainer

LAYOUT, EXPERIMENT = "custom_scalars__config__", "_hparams_/experiment"
START, END = "_hparams_/session_start_info", "_hparams_/session_end_info"


class StopInPhase(PhaseCallback):
    """Stops the run after its first batch."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.fit_loop.request_stop(None)  # type: ignore[attr-defined]


def train(
    folder: Path,
    epochs: int,
    checkpoint: Path | None = None,
    stop: bool = False,
    collection: CollectionSchedule | None = None,
    start_epoch: int = 0,
) -> Path:
    """Train on Catch; returns the checkpoint of the end, or of where it was stopped."""
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    callbacks = [EpisodeStatistics(), Throughput(), BoardOverview(), saving, *([StopInPhase()] if stop else [])]
    logger = TensorBoardLogger(str(folder), name="", version="")
    trainer = make_trainer(folder, max_epochs=epochs, logger=logger, log_every_n_steps=2, callbacks=callbacks)
    install_loops(trainer)
    phase = PhaseSchedule(steps=4, batch_size=6, start_epoch=start_epoch)
    system = make_model_free(ModelFreeSchedule(collection or CollectionSchedule(72), phase))
    system.configuration = {"model": {"init_args": {"gamma": 0.9, "sizes": [1, 2]}}, "data": {"name": None}}
    trainer.fit(system, make_catch_data(), ckpt_path=checkpoint, weights_only=True)
    return folder / "checkpoints" / ("interrupted.ckpt" if stop else "last.ckpt")


def summaries(folder: Path) -> list[Any]:
    """All values in the event files of a folder, in order."""
    files = sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime)
    return [value for path in files for event in EventFileLoader(str(path)).Load() for value in event.summary.value]


@pytest.mark.parametrize("stop", [False, True])
def test_layout_and_row_are_written_once_in_a_run_and_its_resume(tmp_path: Path, stop: bool) -> None:
    checkpoint = train(tmp_path, 1, stop=stop)
    first = Counter(value.tag for value in summaries(tmp_path))
    assert (first[LAYOUT], first[EXPERIMENT], first[START]) == (1, 1, 1)
    assert first[END] == (0 if stop else 1)
    train(tmp_path, 2, checkpoint)
    both = Counter(value.tag for value in summaries(tmp_path))
    assert (both[LAYOUT], both[EXPERIMENT], both[START]) == (1, 1, 1)
    assert both[END] == first[END] + 1


def test_layout_and_row_are_written_where_nothing_is_collected_or_trained_at_first(tmp_path: Path) -> None:
    """The first activity are test episodes then."""
    checkpoint = None
    for epochs in (1, 3):
        checkpoint = train(tmp_path, epochs, checkpoint, collection=CollectionSchedule(72, 0), start_epoch=1)
        tags = Counter(value.tag for value in summaries(tmp_path))
        assert (tags[LAYOUT], tags[EXPERIMENT], tags[START]) == (1, 1, 1)


def test_the_layout_shows_what_the_system_logs(tmp_path: Path) -> None:
    train(tmp_path, 1)
    values = {value.tag: value for value in summaries(tmp_path)}
    layout = Layout.FromString(make_ndarray(values[LAYOUT].tensor).item())
    # Catch has no achievements, and the system no world model.
    assert [category.title for category in layout.category] == ["return", "losses", "speed"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, tag) for tag in values), pattern


def test_the_row_has_flat_keys_and_names_the_curves_of_the_returns(tmp_path: Path) -> None:
    train(tmp_path, 1)
    values = {value.tag: value for value in summaries(tmp_path)}
    start, experiment = (
        HParamsPluginData.FromString(values[tag].metadata.plugin_data.content) for tag in (START, EXPERIMENT)
    )
    row = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.session_start_info.hparams.items()}
    assert {"model.gamma": 0.9, "model.sizes": "[1, 2]", "data.name": "null"}.items() <= row.items()
    assert row["trainer.max_epochs"] == 1
    curves = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert {"train/return", "throughput/frames_per_second"} <= curves & values.keys()
    assert "test/return" in curves
