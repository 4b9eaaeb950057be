"""The actor-critic that learns in imagination."""

from delta_iris.agent.module import Agent, ImaginedWindow

__all__ = ["Agent", "ImaginedWindow"]
