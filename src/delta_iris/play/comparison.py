"""Where an imagined game parts from the real one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from delta_iris.play.games import ImaginedGame, RealGame

__all__ = ["MAX_PIXEL_ERROR", "MAX_REWARD_ERROR", "Comparison", "Parting"]

MAX_PIXEL_ERROR = 0.05
"""Mean absolute difference of pixels, on a scale from 0 to 1, above which two frames no longer show the same."""

MAX_REWARD_ERROR = 0.5
"""Difference above which a predicted reward is wrong."""


@dataclass(frozen=True)
class Parting:
    """The first step at which an imagined game is no longer the real one.

    Attributes:
        step: imagined steps until then.
        reason: what differs: `frame`, `reward` or `end`.
    """

    step: int
    reason: str


@dataclass
class Comparison:
    """An imagined game beside the real one, from the same start and under the same actions.

    They part at the first step at which the end of the episode differs, or the reward by more than `MAX_REWARD_ERROR`,
    or the pixels by more than `MAX_PIXEL_ERROR`.

    Attributes:
        errors: the pixel error of each step: the mean absolute difference, on a scale from 0 to 1.
        parting: where they part; None as long as they agree.
    """

    errors: list[float] = field(default_factory=list)
    parting: Parting | None = None

    def add(self, real: RealGame, imagined: ImaginedGame) -> None:
        """Compare a step.

        Args:
            real: after the step.
            imagined: after the step.
        """
        self.errors.append(float(np.abs(real.frame.astype(np.float32) - imagined.frame).mean() / 255))
        if self.parting is None:
            reason = self._difference(real, imagined)
            self.parting = Parting(len(self.errors), reason) if reason else None

    def _difference(self, real: RealGame, imagined: ImaginedGame) -> str | None:
        if (real.ended == "terminated") != (imagined.ended == "terminated"):
            return "end"
        if abs(real.reward - imagined.reward) > MAX_REWARD_ERROR:
            return "reward"
        return "frame" if self.errors[-1] > MAX_PIXEL_ERROR else None
