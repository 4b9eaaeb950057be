"""The child's side of an environment pool: one environment that obeys short commands.

Commands and answers are fixed records, a payload follows only where something rare is said. Frames are written to
shared memory: the present frame first, then the final frame of the episode that ended last.
"""

from __future__ import annotations

import pickle
import random
import socket
import struct
import traceback
from collections.abc import Callable, Sequence
from enum import IntEnum
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from delta_iris.envs.make import make_env
from delta_iris.envs.process import receive_exactly
from delta_iris.envs.state import get_env_state, set_env_state
from delta_iris.envs.values import InvalidValueError, as_achievements, as_flag, as_reward, check_frame
from delta_iris.envs.wrapper_list import WrapperEntry
from delta_iris.errors import UserError

__all__ = ["ANSWER", "COMMAND", "NO_SEED", "TERMINATED", "TRUNCATED", "Answer", "Command", "Spaces", "serve"]

COMMAND = struct.Struct("<BqI")
"""Command, its number (an action or a seed) and the size of the payload after it."""

ANSWER = struct.Struct("<BdBI")
"""Answer, reward, flags and the size of the payload after it."""

NO_SEED = -1
TERMINATED, TRUNCATED = 1, 2

MAX_STATE_BYTES = 64 << 20
"""A larger state of an environment would make every checkpoint too large."""


class Command(IntEnum):
    """What an environment is asked to do."""

    RESET = 0
    STEP = 1
    END_EPISODE = 2
    """Tell the achievements so far and reset."""
    GET_STATE = 3
    SET_STATE = 4
    CLOSE = 5


class Answer(IntEnum):
    """What it answers."""

    MADE = 0
    """The environment was made; the payload is its `Spaces`."""
    FRAME = 1
    """After a reset, or a step within an episode."""
    ENDED = 2
    """After an episode's last step; the payload is its achievements, and the answer to the reset follows."""
    STATE = 3
    """The environment's state."""
    NO_STATE = 4
    """It has none, or did not take one; the payload says why."""
    ERROR = 5
    """It raised an exception, which the payload describes."""
    INVALID = 6
    """It returned something that cannot be used; the payload says what."""
    REJECTED = 7
    """It cannot be made with these options; the payload is the message for the user."""


class Spaces(NamedTuple):
    """What the pool must know of an environment's spaces, as plain values.

    Attributes:
        observation: the observation space, for messages.
        shape: of observations, None if they are no arrays.
        dtype: of observations.
        high: highest value of observations.
        action: the action space, for messages.
        num_actions: number of actions, None if they are not Discrete with start 0.
    """

    observation: str
    shape: tuple[int, ...] | None
    dtype: str
    high: float
    action: str
    num_actions: int | None


def serve(
    connection: socket.socket,
    memory: mmap | None,
    environment: str,
    options: dict[str, Any],
    wrappers: Sequence[WrapperEntry],
) -> None:
    """Make an environment and obey commands until the connection closes or something goes wrong.

    Args:
        connection: to the parent.
        memory: for the present and the final frame; None if only the spaces are asked for.
        environment: a Gymnasium id.
        options: keyword arguments for `gymnasium.make`.
        wrappers: see `make_env`.
    """
    server = _Server(connection, memory)
    try:
        server.make(environment, options, wrappers)
        while server.obey():
            pass
    except UserError as error:
        server.answer(Answer.REJECTED, payload=str(error).encode())
    except InvalidValueError as error:
        server.answer(Answer.INVALID, payload=str(error).encode())
    except _ConnectionClosed:
        pass
    except BaseException as error:
        # Also SystemExit and KeyboardInterrupt: whatever the environment raises is the environment's error.
        server.answer(Answer.ERROR, payload=describe_error(error).encode())


def describe_error(error: BaseException) -> str:
    """Type, message and place of an exception, on one line.

    Args:
        error: the exception.
    """
    try:
        message = " ".join(str(error).split())[:300]
    except Exception:
        message = ""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"raised {type(error).__name__}{': ' * bool(message)}{message}{place}"


class _ConnectionClosed(BaseException):
    """The parent is gone."""


class _Server:
    """One environment and the connection to the parent."""

    env: gym.Env[Any, Any]
    shape: tuple[int, ...]

    def __init__(self, connection: socket.socket, memory: mmap | None) -> None:
        self.connection, self.memory = connection, memory
        self.info: Any = None
        self.present: NDArray[np.uint8]
        self.final: NDArray[np.uint8]

    def make(self, environment: str, options: dict[str, Any], wrappers: Sequence[WrapperEntry]) -> None:
        self.env = make_env(environment, wrappers, **options)
        spaces = describe_spaces(self.env)
        if self.memory is not None:
            assert spaces.shape is not None
            self.shape = spaces.shape
            self.present, self.final = np.frombuffer(self.memory, np.uint8).reshape(2, *self.shape)
        self.answer(Answer.MADE, payload=pickle.dumps(spaces))

    def answer(self, kind: Answer, reward: float = 0.0, flags: int = 0, payload: bytes = b"") -> None:
        try:
            self.connection.sendall(ANSWER.pack(kind, reward, flags, len(payload)) + payload)
        except OSError as error:
            raise _ConnectionClosed from error

    def obey(self) -> bool:
        """Receive and follow one command; return whether another may follow."""
        try:
            command, number, size = COMMAND.unpack(receive_exactly(self.connection, COMMAND.size))
            payload = receive_exactly(self.connection, size)
        except (OSError, EOFError) as error:
            raise _ConnectionClosed from error
        if command == Command.STEP:
            self._step(number)
        elif command == Command.RESET:
            self._reset(None if number == NO_SEED else number)
        elif command == Command.END_EPISODE:
            self.answer(Answer.ENDED, 0.0, TRUNCATED, pickle.dumps(as_achievements(self.info)))
            self._reset(None)
        elif command == Command.GET_STATE:
            self._get_state()
        elif command == Command.SET_STATE:
            self._set_state(number, payload)
        else:
            self.env.close()
            return False
        return True

    def _step(self, action: int) -> None:
        result = self.env.step(np.int64(action))
        if not isinstance(result, tuple) or len(result) != 5:
            raise InvalidValueError(
                "returned something else from step than (observation, reward, terminated, truncated, info): port it "
                "to Gymnasium's interface"
            )
        observation, reward, terminated, truncated, self.info = result
        frame, value = check_frame(observation, self.shape), as_reward(reward)
        flags = TERMINATED * as_flag("terminated", terminated) | TRUNCATED * as_flag("truncated", truncated)
        if not flags:
            self.present[...] = frame
            self.answer(Answer.FRAME, value)
            return
        self.final[...] = frame
        self.answer(Answer.ENDED, value, flags, pickle.dumps(as_achievements(self.info)))
        self._reset(None)

    def _reset(self, seed: int | None) -> None:
        if seed is not None:
            # Environments that use the global generators must not all draw the same numbers, which they inherit.
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
        result = self.env.reset() if seed is None else self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise InvalidValueError(
                "returned something else from reset than (observation, info): port it to Gymnasium's interface"
            )
        observation, self.info = result
        self.present[...] = check_frame(observation, self.shape)
        self.answer(Answer.FRAME)

    def _get_state(self) -> None:
        self._answer_state(lambda: pickle.dumps(get_env_state(self.env)))

    def _set_state(self, seed: int, payload: bytes) -> None:
        """Restore a state; start anew with the seed where that fails."""
        state, frame = pickle.loads(payload)
        self.env.reset(seed=seed)

        def restore() -> bytes:
            found = set_env_state(self.env, state)
            if found is not None and not np.array_equal(check_frame(found, self.shape), frame):
                raise InvalidValueError("returned another frame from set_state than the present one")
            # Before the answer: the parent reads the frame as soon as it has that.
            self.info = None
            self.present[...] = frame
            return b""

        if not self._answer_state(restore):
            self._reset(seed)

    def _answer_state(self, call: Callable[[], bytes]) -> bool:
        try:
            payload = call()
            if len(payload) > MAX_STATE_BYTES:
                raise ValueError(f"its state has {len(payload) >> 20} MiB, more than {MAX_STATE_BYTES >> 20}")
        except Exception as error:
            self.answer(Answer.NO_STATE, payload=describe_error(error).encode())
            return False
        self.answer(Answer.STATE, payload=payload)
        return True


def describe_spaces(env: gym.Env[Any, Any]) -> Spaces:
    """Describe an environment's spaces.

    Args:
        env: the environment.
    """
    observation, action = env.observation_space, env.action_space
    box = isinstance(observation, gym.spaces.Box)
    discrete = isinstance(action, gym.spaces.Discrete) and int(action.start) == 0
    return Spaces(
        observation=" ".join(str(observation).split())[:200],
        shape=tuple(int(n) for n in observation.shape) if box else None,  # type: ignore[union-attr]
        dtype=str(observation.dtype),
        high=float(observation.high.max()) if isinstance(observation, gym.spaces.Box) else 0.0,
        action=" ".join(str(action).split())[:200],
        num_actions=int(action.n) if isinstance(action, gym.spaces.Discrete) and discrete else None,
    )
