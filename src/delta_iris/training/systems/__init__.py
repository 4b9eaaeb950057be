"""What each agent consists of: its modules and its phases."""

from delta_iris.training.systems.delta_iris import DeltaIris
from delta_iris.training.systems.dreamer import Dreamer
from delta_iris.training.systems.iris import Iris
from delta_iris.training.systems.model_free import ModelFree

__all__ = ["DeltaIris", "Dreamer", "Iris", "ModelFree"]
