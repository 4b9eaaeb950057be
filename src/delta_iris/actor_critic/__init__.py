"""The actor-critic that learns in imagination."""

from delta_iris.actor_critic.module import Agent

__all__ = ["Agent"]
