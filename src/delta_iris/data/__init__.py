"""Experience: collecting it, keeping it on disk, drawing windows from it."""

from delta_iris.data.segment import Window

__all__ = ["Window"]
