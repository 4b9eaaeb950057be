"""Registration of this package's environments with Gymnasium, without importing them."""

from __future__ import annotations

import gymnasium as gym

__all__ = ["ENTRY_POINTS"]

ENTRY_POINTS = {
    "delta_iris/Crafter-v1": "delta_iris.envs.crafter.env:CrafterEnv",
    "delta_iris/Catch-v0": "delta_iris.envs.catch:CatchEnv",
}
"""Entry point of each registered id, imported by `gymnasium.make`."""

for _id, _entry_point in ENTRY_POINTS.items():
    if _id not in gym.registry:
        # No wrappers: the environments limit the length of an episode themselves, and the checks of Gymnasium's
        # wrappers would slow down every step.
        gym.register(id=_id, entry_point=_entry_point, order_enforce=False, disable_env_checker=True)
