"""What people look at while it runs, and afterwards."""

from delta_iris.training.callbacks.episodes import EpisodeStatistics
from delta_iris.training.callbacks.images import Pictures
from delta_iris.training.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.training.callbacks.progress import PhaseProgress
from delta_iris.training.callbacks.summary import RunSummary
from delta_iris.training.callbacks.throughput import Throughput

__all__ = [
    "EpisodeStatistics",
    "PhaseCallback",
    "PhaseProgress",
    "Pictures",
    "Rollout",
    "RunSummary",
    "Throughput",
    "Training",
]
