"""The parent's side of one environment of a pool."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from math import prod
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delta_iris.envs.process import ChildProcess, Deadline, ProcessFailedError
from delta_iris.envs.server import ANSWER, COMMAND, Answer, Command, Spaces, serve
from delta_iris.envs.values import InvalidValueError
from delta_iris.envs.wrapper_list import WrapperEntry

__all__ = ["Reply", "Worker"]


class Reply(NamedTuple):
    """An answer of the environment's process.

    Attributes:
        kind: an `Answer`.
        reward: of the step.
        flags: `TERMINATED` and `TRUNCATED`.
        payload: see `Answer`.
    """

    kind: int
    reward: float
    flags: int
    payload: bytes


class Worker:
    """An environment in a process of its own.

    Args:
        environment: a Gymnasium id.
        options: keyword arguments for `gymnasium.make`.
        wrappers: see `make_env`.
        shape: of a frame; None to read the spaces only.

    Attributes:
        present: the present frame, in shared memory: valid until the next command.
        final: the last frame of the episode that ended last, in shared memory.
        failure: why the environment cannot be used any more, where that was noticed outside of a step.
    """

    def __init__(
        self,
        environment: str,
        options: dict[str, Any],
        wrappers: Sequence[WrapperEntry],
        shape: tuple[int, ...] | None,
    ) -> None:
        # Anonymous memory has no name that could be left behind. Each process has its own, so that one that is slow to
        # die cannot write into its successor's.
        memory = None if shape is None else mmap(-1, 2 * prod(shape))
        self.present: NDArray[np.uint8]
        self.final: NDArray[np.uint8]
        if memory is not None and shape is not None:
            self.present, self.final = np.frombuffer(memory, np.uint8).reshape(2, *shape)
        self.failure: str | None = None
        self.child = ChildProcess(
            partial(serve, memory=memory, environment=environment, options=options, wrappers=wrappers)
        )

    def ask(self, command: Command, deadline: Deadline, number: int = 0, payload: bytes = b"") -> None:
        """Send a command.

        Args:
            command: the command.
            deadline: time limit.
            number: the command's action or seed.
            payload: see `Command`.

        Raises:
            Abandoned: if the deadline's `should_stop` returned true while waiting.
            ProcessFailedError: if the process does not take it in time, or has failed before.
        """
        if self.failure is not None:
            raise ProcessFailedError(self.failure)
        self.child.send(COMMAND.pack(command, number, len(payload)) + payload, deadline)

    def hear(self, deadline: Deadline) -> Reply:
        """Wait for the next answer to a command.

        Args:
            deadline: time limit.

        Raises:
            Abandoned: if the deadline's `should_stop` returned true while waiting.
            InvalidValueError: if the environment returned something that cannot be used.
            ProcessFailedError: if the process died or hangs, or the environment raised an exception.
        """
        while True:
            kind, reward, flags, size = ANSWER.unpack(self.child.receive(ANSWER.size, deadline))
            payload = self.child.receive(size, deadline) if size else b""
            if kind >= Answer.ERROR:
                text = payload.decode(errors="replace")
                raise InvalidValueError(text) if kind == Answer.INVALID else ProcessFailedError(text)
            if kind != Answer.MADE:
                return Reply(kind, reward, flags, payload)

    def read_spaces(self, deadline: Deadline) -> Spaces | str:
        """Wait until the environment is made.

        Args:
            deadline: time limit.

        Returns:
            its spaces, or the reason why it cannot be made with these options.

        Raises:
            Abandoned: if the deadline's `should_stop` returned true while waiting.
            ProcessFailedError: if the process died or hangs, or the environment raised an exception.
        """
        kind, _, _, size = ANSWER.unpack(self.child.receive(ANSWER.size, deadline))
        payload = self.child.receive(size, deadline)
        if kind == Answer.MADE:
            return Spaces(*pickle.loads(payload))
        text = payload.decode(errors="replace")
        if kind == Answer.REJECTED:
            return text
        raise ProcessFailedError(text)
