"""Lightning's private classes that the loops build on, imported in this file only."""

from __future__ import annotations

import lightning
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop as EvaluationLoopBase
from lightning.pytorch.loops.fit_loop import _FitLoop as FitLoopBase
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop as TrainingEpochLoopBase
from lightning.pytorch.loops.utilities import _select_data_fetcher as select_data_fetcher
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher as SubprocessLauncher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector as SignalConnectorBase

__all__ = [
    "EvaluationLoopBase",
    "FitLoopBase",
    "SignalConnectorBase",
    "SubprocessLauncher",
    "TrainingEpochLoopBase",
    "call",
    "select_data_fetcher",
]

TESTED_VERSION = "2.6."

if not lightning.__version__.startswith(TESTED_VERSION):
    raise ImportError(f"delta-iris needs lightning {TESTED_VERSION}x, this is {lightning.__version__}")
