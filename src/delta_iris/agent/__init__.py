"""The actor-critic that learns in imagination."""

from delta_iris.agent.module import Agent, ImaginedWindow, Lesson

__all__ = ["Agent", "ImaginedWindow", "Lesson"]
