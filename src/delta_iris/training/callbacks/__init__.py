"""What people watch while it runs, and afterwards."""

from delta_iris.training.callbacks.board import BoardOverview
from delta_iris.training.callbacks.checkpoint import RunCheckpoint
from delta_iris.training.callbacks.episodes import EpisodeStatistics
from delta_iris.training.callbacks.final_report import FinalReport
from delta_iris.training.callbacks.images import ImageLogger
from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.callbacks.progress import PhaseProgress
from delta_iris.training.callbacks.summary import RunSummary
from delta_iris.training.callbacks.throughput import Throughput

__all__ = [
    "BoardOverview",
    "CollectionResult",
    "EpisodeStatistics",
    "FinalReport",
    "ImageLogger",
    "PhaseCallback",
    "PhaseProgress",
    "PhaseResult",
    "RunCheckpoint",
    "RunSummary",
    "Throughput",
]
