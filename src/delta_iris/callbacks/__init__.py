"""What people look at while it runs, and afterwards."""

from delta_iris.callbacks.episodes import EpisodeStatistics
from delta_iris.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.callbacks.pictures import Pictures
from delta_iris.callbacks.progress import PhaseProgress
from delta_iris.callbacks.summary import RunSummary
from delta_iris.callbacks.throughput import Throughput

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
