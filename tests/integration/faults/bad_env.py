"""A 16×16 game that misbehaves in one way at a time.

`--data.environment tests.integration.faults.bad_env:Bad-v0 --data.environment_options '{fault: hang}'`
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["BadEnv"]

SHAPE = (16, 16, 3)

REWARDS: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "huge": 1e300,
    "complex": 1j,
    "none": None,
    "text": "1",
    "vector": np.zeros(2),
}
"""Rewards that must be refused."""

TAKEN_REWARDS: dict[str, Any] = {
    "reward1": np.array([1.0]),
    "reward0": np.array(1.0),
    "float32": np.float32(1),
    "int": 1,
    "bool": True,
}
"""Rewards that are taken as 1."""

FRAMES: dict[str, Any] = {
    "float": np.zeros(SHAPE, np.float32),
    "chw": np.zeros((3, 16, 16), np.uint8),
    "grey": np.zeros((16, 16), np.uint8),
    "grey1": np.zeros((16, 16, 1), np.uint8),
    "larger": np.zeros((32, 16, 3), np.uint8),
    "int64": np.zeros(SHAPE, np.int64),
    "list": np.zeros(SHAPE, np.uint8).tolist(),
    "dict": {"image": np.zeros(SHAPE, np.uint8)},
}
"""Frames that must be refused."""

ACHIEVEMENTS: dict[str, Any] = {
    "list_of_names": ["a"],
    "half": {"a": 0.5},
    "numbered": {3: 1},
    "text": {"a": "yes"},
    "vector": {"a": np.zeros(2)},
}
"""Achievements that must be refused."""


class BadEnv(gym.Env[Any, np.int64]):
    """Frames show the step and a random column; action 1 gives a reward of 1.

    Args:
        fault: what goes wrong; nothing where empty.
        length: steps of an episode.
        at: total number of steps, or of resets, in this process at which it goes wrong.
        only: goes wrong only if this file does not exist, and makes it: once in all processes. Empty for always.
        render_mode: not used.
    """

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(
        self, fault: str = "", length: int = 10, at: int = 5, only: str = "", render_mode: str | None = None
    ) -> None:
        self.fault, self.length, self.at, self.only = fault, length, at, only
        self.steps = self.resets = self.t = self.x = 0
        if fault == "make_raises":
            raise RuntimeError("no licence")
        if fault == "make_hangs":
            time.sleep(3600)
        if fault == "make_dies":
            os._exit(3)
        if fault == "process":  # a game server, say
            server = multiprocessing.Process(target=int)
            server.start()
            server.join()
            assert server.exitcode == 0
        if fault == "server":
            self.server = subprocess.Popen(["sleep", "3600"])
            Path(only).write_text(str(self.server.pid))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        assert seed is None or 0 <= seed < 1 << 32
        super().reset(seed=seed)
        self.resets += 1
        self.t, self.x = 0, int(self.np_random.integers(16))
        if self.fault.startswith("reset_") and self.resets >= self.at and self._now():
            self._go_wrong(self.fault.removeprefix("reset_"))
        if self.fault == "old_reset":
            return self._frame()  # type: ignore[return-value]
        return self._frame(), {}

    def step(self, action: np.int64 | int) -> tuple[Any, Any, Any, Any, Any]:
        self.t, self.steps, self.x = self.t + 1, self.steps + 1, self.x + int(action) - 1
        info: Any = {}
        frame, reward = self._frame(), float(action == 1)
        ended: Any = self.t >= self.length and self.fault != "never"
        kind, _, name = self.fault.partition(":")
        if self.steps == self.at and not kind.startswith("reset_") and self._now():
            self._go_wrong(kind)
            frame = FRAMES[name] if kind == "frame" else frame
            reward = REWARDS[name] if kind == "reward" else reward
            if kind == "flag":
                ended = None
            if kind == "old_step":
                return frame, reward, ended, info  # type: ignore[return-value]
        if kind == "taken":
            reward = TAKEN_REWARDS[name]
        if kind == "print":
            print("x" * 100_000)
            sys.stdout.flush()
        if kind == "info":
            info = {"path": np.zeros(1 + self.x % 16), "self": lambda: self, str(self.steps): {1, 2}}
        if kind == "no_info":
            info = None
        if kind == "partly":
            info = {"achievements": {f"a{self.x % 4}": np.int64(1)}} if self.x % 5 else {}
        if kind == "achievements":
            info = {"achievements": ACHIEVEMENTS[name]}
        return frame, reward, ended, False, info

    def get_state(self) -> Any:
        if self.fault == "state_hangs":
            time.sleep(3600)
        if self.fault == "state_dies":
            os._exit(4)
        if self.fault == "state_raises":
            raise RuntimeError("not now")
        if self.fault == "state_large":
            return bytes(65 << 20)
        return {"x": self.x, "t": self.t, "random": self.np_random.bit_generator.state}

    def set_state(self, state: Any) -> Any:
        if self.fault == "restore_raises":
            raise RuntimeError("cannot go back")
        if self.fault == "restore_dies":
            os._exit(5)
        self.x, self.t = state["x"], state["t"]
        self.np_random.bit_generator.state = state["random"]
        return np.zeros(SHAPE, np.uint8) if self.fault == "restore_wrong" else None

    def close(self) -> None:
        if self.fault == "close_hangs":
            time.sleep(3600)
        if self.fault == "close_raises":
            raise RuntimeError("cannot close")

    def _now(self) -> bool:
        if not self.only:
            return True
        try:
            os.close(os.open(self.only, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _go_wrong(self, kind: str) -> None:
        if kind == "exits":
            os._exit(3)
        if kind == "leaves":
            sys.exit("bye")
        if kind in ("SIGKILL", "SIGSEGV", "SIGSTOP"):
            os.kill(os.getpid(), signal.Signals[kind])
        if kind == "memory":
            raise MemoryError
        if kind == "raises":
            raise RuntimeError("server\nlost")
        if kind == "hangs":
            time.sleep(3600)

    def _frame(self) -> NDArray[np.uint8]:
        frame = np.full(SHAPE, 20 * self.t % 256, np.uint8)
        frame[self.x % 16, :, 0] = 255
        return frame


gym.register("Bad-v0", entry_point=f"{__name__}:BadEnv", order_enforce=False, disable_env_checker=True)
