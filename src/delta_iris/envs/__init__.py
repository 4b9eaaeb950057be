"""Environments: Crafter, and any other `gymnasium` id with RGB frames and discrete actions."""

import gymnasium as gym

from delta_iris.envs.crafter.env import ACHIEVEMENTS, CrafterEnv

__all__ = ["ACHIEVEMENTS", "CrafterEnv"]

if "delta_iris/Crafter-v1" not in gym.registry:
    # Crafter keeps its own time limit, so gymnasium adds none; the id alone makes `gym.make` import this module.
    gym.register(
        id="delta_iris/Crafter-v1",
        entry_point="delta_iris.envs.crafter.env:CrafterEnv",
        order_enforce=False,
        disable_env_checker=True,
    )
