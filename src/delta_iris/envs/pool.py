"""Environments in parallel, one process each, any of which may die, hang or raise."""

from __future__ import annotations

import logging
import os
import pickle
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from delta_iris.envs.process import Deadline, ProcessFailedError
from delta_iris.envs.seeds import first_seed, fresh_seed
from delta_iris.envs.server import NO_SEED, TERMINATED, TRUNCATED, Answer, Command, Spaces
from delta_iris.envs.state import from_checkpoint, to_checkpoint
from delta_iris.envs.values import InvalidValueError, frame_hint
from delta_iris.envs.worker import Worker
from delta_iris.envs.wrapper_list import WrapperEntry
from delta_iris.errors import Abandoned, UserError

__all__ = ["Abandoned", "EnvPool"]

Frames = NDArray[np.uint8]

RESTORE_SECONDS = 600.0
"""Time limit for restoring an environment, which may have to repeat thousands of steps."""

_logger = logging.getLogger(__name__)


class EnvPool(VectorEnv[Frames, NDArray[np.int64], Any]):
    """Steps environments in processes of their own, with frames in shared memory, and replaces those that fail.

    The step that ends an episode also starts the next one (`AutoresetMode.SAME_STEP`).

    An environment that raises an exception, whose process dies or that does not answer in time is replaced by a new
    process with a fresh seed. For the step in which that happened, `step` returns the new environment's first frame, a
    reward of 0 and `truncated`. A value that cannot be learned from ends the run instead, because it would come back.

    Args:
        environment: a Gymnasium id; see `make_env`. With its wrappers, its observations are (H, W, 3) uint8 and its
            actions `Discrete`.
        options: keyword arguments for `gymnasium.make`.
        num_envs: number of environments N.
        wrappers: see `make_env`.
        step_timeout: seconds that a step, a reset, and making an environment may take.
        close_timeout: seconds that all environments together have to close; those left are killed.
        max_env_failures: failures in a row after which the run ends. An environment that ends an episode and starts
            the next one ends the row.
        should_stop: asked twice a second while an answer is awaited.

    Attributes:
        seed: that `reset` was given last; seeds of replaced environments are derived from it.
        generations: how often each environment has started anew with a fresh seed.
        replaced: number of environments that were replaced.
        frames: the present frames (N, H, W, 3); each step makes a new array.
        closed: whether `close` was called.

    Raises:
        UserError: if the environment cannot be made, or its spaces are not supported.
    """

    def __init__(
        self,
        environment: str,
        options: dict[str, Any],
        num_envs: int,
        *,
        wrappers: Sequence[WrapperEntry] = (),
        step_timeout: float = 60.0,
        close_timeout: float = 5.0,
        max_env_failures: int = 10,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.environment, self.options, self.num_envs = environment, options, num_envs
        self.wrappers = wrappers
        self.step_timeout, self.close_timeout = step_timeout, close_timeout
        self.max_env_failures, self.should_stop = max_env_failures, should_stop
        self.seed, self.generations = 0, [0] * num_envs
        self.replaced = self._failures_in_a_row = 0
        self.closed = self._busy = self._state_warned = False
        self._owner = os.getpid()
        self._workers: list[Worker] = []
        # Also when the interpreter exits without `close`: multiprocessing would wait for the processes for ever.
        weakref.finalize(self, _kill_all, self._workers, self._owner)
        shape, num_actions = _check_spaces(environment, self._read_spaces())
        self.single_observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = gym.spaces.Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self._shape = shape
        self.frames: Frames = np.zeros((num_envs, *shape), np.uint8)
        self._steps = [0] * num_envs
        self._workers += [self._start_worker(shape) for _ in range(num_envs)]

    @property
    def processes(self) -> list[Any]:
        """The environments' processes."""
        return [worker.child.process for worker in self._workers]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: of the first environment; the others have the following numbers. Or the seed of each one.
            options: not supported.

        Returns:
            the first frames (N, H, W, 3), and an empty dict.

        Raises:
            Abandoned: if `should_stop` returned true while waiting.
            UserError: if too many environments fail, or return something that cannot be used.
        """
        assert not options, "environments get their options from data.environment_options"
        self._begin()
        seeds: list[int | None] = [None] * self.num_envs
        if isinstance(seed, Sequence):
            seeds = [None if each is None else first_seed(each, 0) for each in seed]
        elif seed is not None:
            self.seed, self.generations = int(seed), [0] * self.num_envs
            seeds = [first_seed(seed, i) for i in range(self.num_envs)]
        deadline = self._deadline()
        failures: dict[int, str] = {}
        for i, each in enumerate(seeds):
            self._steps[i] = 0
            self._ask(i, Command.RESET, deadline, failures, NO_SEED if each is None else each)
        for i in range(self.num_envs):
            if i not in failures:
                self._hear(i, deadline, failures)
                # Many environments that start at once share the cores.
                deadline.extend()
        self._replace(failures)
        self._collect_frames()
        self._busy = False
        return self.frames, {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Frames, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment.

        Args:
            actions: (N,) int64.

        Returns:
            the next frames (N, H, W, 3), rewards (N,) float64, `terminated` and `truncated` (N,) bool, and infos. These
            are empty unless an episode ended; then each is a list with an entry for each environment, or None:
            `final_obs`, the final frame of an episode that ended; `achievements` of it; `replaced`, the reason why the
            environment was replaced in this step. The final frame is then the last one known.

        Raises:
            Abandoned: if `should_stop` returned true while waiting.
            UserError: if too many environments fail in a row, or one returns something that cannot be used.
        """
        self._begin()
        deadline = self._deadline()
        # Failures within a step, which is lost then, and failures to start the episode after a whole step.
        failures: dict[int, str] = {}
        restarts: dict[int, str] = {}
        rewards, flags = [0.0] * self.num_envs, [0] * self.num_envs
        final: list[Frames | None] = [None] * self.num_envs
        achievements: list[dict[str, int] | None] = [None] * self.num_envs
        for i, action in enumerate(actions.tolist()):
            self._steps[i] += 1
            self._ask(i, Command.STEP, deadline, failures, action)
        frames = np.empty_like(self.frames)
        for i, worker in enumerate(self._workers):
            reply = None if i in failures else self._hear(i, deadline, failures)
            if reply is None:
                continue
            rewards[i], flags[i] = reply.reward, reply.flags
            if reply.kind == Answer.ENDED:
                final[i], achievements[i] = worker.final.copy(), pickle.loads(reply.payload)
                self._steps[i] = 0
                if self._hear(i, deadline, restarts) is None:
                    continue
                self._failures_in_a_row = 0
            frames[i] = worker.present
        for i in failures:
            flags[i], final[i] = TRUNCATED, self.frames[i]
        replaced = [failures.get(i) for i in range(self.num_envs)]
        for i in self._replace(failures | restarts):
            frames[i] = self._workers[i].present
        self.frames = frames
        self._busy = False
        infos = {"final_obs": final, "achievements": achievements, "replaced": replaced} if any(flags) else {}
        taken = np.array(flags)
        return frames, np.array(rewards), (taken & TERMINATED) != 0, (taken & TRUNCATED) != 0, infos

    def reset_one(self, index: int) -> tuple[NDArray[np.uint8], dict[str, int] | None]:
        """Cut the episode of one environment and start the next one.

        Args:
            index: of the environment.

        Returns:
            the first frame (H, W, 3), and the achievements of the episode that was cut, if the environment has any.

        Raises:
            Abandoned: if `should_stop` returned true while waiting.
            UserError: if too many environments fail in a row, or it returns something that cannot be used.
        """
        self._begin()
        deadline, failures = self._deadline(), dict[int, str]()
        self._ask(index, Command.END_EPISODE, deadline, failures)
        reply = None if failures else self._hear(index, deadline, failures)
        achievements = None if reply is None else pickle.loads(reply.payload)
        self._steps[index] = 0
        if not failures:
            self._hear(index, deadline, failures)
        self._replace(failures)
        # A new array: callers keep the frames of earlier steps without copying them.
        self.frames = self.frames.copy()
        self.frames[index] = self._workers[index].present
        self._busy = False
        return self.frames[index], achievements

    def get_states(self) -> list[Any | None]:
        """Return the state of every environment under way, for checkpoints.

        Returns:
            plain values and tensors for each environment; None if it cannot be restored (see `delta_iris.envs.state`),
            which is logged once.

        Raises:
            Abandoned: if `should_stop` returned true while waiting.
        """
        self._begin()
        deadline, failures = self._deadline(), dict[int, str]()
        for i in range(self.num_envs):
            self._ask(i, Command.GET_STATE, deadline, failures)
        states: list[Any | None] = [None] * self.num_envs
        for i, worker in enumerate(self._workers):
            reply = None if i in failures else self._hear(i, deadline, failures)
            if reply is None:
                # Replaced in the next step, as if it had failed there.
                worker.failure = failures[i]
                self._warn_state(f"{failures[i]} when asked for its state")
            elif reply.kind == Answer.NO_STATE:
                self._warn_state(reply.payload.decode(errors="replace"))
            else:
                state, frame = to_checkpoint(pickle.loads(reply.payload)), torch.from_numpy(self.frames[i].copy())
                states[i] = {"environment": state, "frame": frame, "steps": self._steps[i]}
        self._busy = False
        return states

    def set_states(self, states: list[Any | None]) -> list[bool]:
        """Continue the episodes of `get_states`; environments without a state start anew with a fresh seed.

        Args:
            states: what `get_states` returned, in a pool with the same environment, options and `seed`.

        Returns:
            which environments were restored. The present frames are in `frames`.

        Raises:
            Abandoned: if `should_stop` returned true while waiting.
            UserError: if too many environments fail, or return something that cannot be used.
        """
        self._begin()
        deadline = Deadline(max(RESTORE_SECONDS, self.step_timeout), "data.step_timeout", self.should_stop)
        restored, failures = [False] * self.num_envs, dict[int, str]()
        for i, state in enumerate(states):
            self._steps[i] = 0
            seed = fresh_seed(self.seed, i, self.generations[i] + 1)
            if state is None:
                self._ask(i, Command.RESET, deadline, failures, seed)
            else:
                payload = pickle.dumps((from_checkpoint(state["environment"]), state["frame"].numpy()))
                self._ask(i, Command.SET_STATE, deadline, failures, seed, payload)
        for i, state in enumerate(states):
            reply = None if i in failures else self._hear(i, deadline, failures)
            if reply is not None and reply.kind == Answer.NO_STATE:
                _logger.warning("%s %s when its state was restored", self._name(i), reply.payload.decode())
                self._hear(i, deadline, failures)
            elif reply is not None and state is not None:
                restored[i], self._steps[i] = True, state["steps"]
            if not restored[i] and i not in failures:
                self.generations[i] += 1
        self._replace(failures)
        self._collect_frames()
        self._busy = False
        return restored

    def close(self, **kwargs: Any) -> None:
        """Close all environments within `close_timeout` seconds and kill those that do not; further calls do nothing.

        Args:
            kwargs: not used.
        """
        if self.closed or os.getpid() != self._owner:
            return
        self.closed = True
        end = time.monotonic() + self.close_timeout
        deadline = Deadline(0, "data.close_timeout", lambda: False)
        try:
            for worker in self._workers:
                try:
                    worker.ask(Command.CLOSE, deadline)
                except ProcessFailedError:
                    worker.child.kill()
            for worker in self._workers:
                worker.child.join(end - time.monotonic())
        finally:
            _kill_all(self._workers, self._owner)

    # --- talking to the processes ---

    def _begin(self) -> None:
        """Mark answers as outstanding until the caller unmarks them: a pool that was left within a call is unusable."""
        if self.closed or self._busy:
            raise RuntimeError("this EnvPool was closed, or a call to it did not end: make a new one")
        self._busy = True

    def _deadline(self) -> Deadline:
        return Deadline(self.step_timeout, "data.step_timeout", self.should_stop)

    def _ask(
        self,
        index: int,
        command: Command,
        deadline: Deadline,
        failures: dict[int, str],
        number: int = 0,
        payload: bytes = b"",
    ) -> None:
        try:
            self._workers[index].ask(command, deadline, number, payload)
        except ProcessFailedError as error:
            failures[index] = str(error)

    def _hear(self, index: int, deadline: Deadline, failures: dict[int, str]) -> Any:
        """The environment's answer; None if it failed, with the reason in `failures`."""
        try:
            return self._workers[index].hear(deadline)
        except ProcessFailedError as error:
            failures[index] = str(error)
            return None
        except InvalidValueError as error:
            raise UserError(f"{self._name(index)} {self._when(index)} {error}") from error

    def _replace(self, failures: dict[int, str]) -> list[int]:
        """Replace the environments that failed, and those that fail again; return their indices."""
        indices = list(failures)
        while failures:
            for i, reason in failures.items():
                self._failures_in_a_row += 1
                reason = f"{self._name(i)} {self._when(i)} {reason}"
                if self._failures_in_a_row > self.max_env_failures:
                    number = f"{self._failures_in_a_row} failures of environments in a row"
                    raise UserError(
                        f"{reason}: the run ends after {number} (data.max_env_failures is {self.max_env_failures}): "
                        "repair data.environment, or raise that limit"
                    )
                self._workers[i].child.kill()
                self.replaced += 1
                self.generations[i] += 1
                _logger.warning("%s: replaced by a new one (%d in all)", reason, self.replaced)
                self._workers[i] = self._start_worker(self._shape)
                self._steps[i] = 0
            deadline, again = self._deadline(), dict[int, str]()
            for i in failures:
                self._ask(i, Command.RESET, deadline, again, fresh_seed(self.seed, i, self.generations[i]))
            for i in failures:
                if i not in again:
                    self._hear(i, deadline, again)
            failures = again
        return indices

    def _collect_frames(self) -> None:
        self.frames = np.stack([worker.present for worker in self._workers])

    def _start_worker(self, shape: tuple[int, ...] | None) -> Worker:
        try:
            return Worker(self.environment, self.options, self.wrappers, shape)
        except OSError as error:
            raise UserError(
                f"cannot start a process for environment {self.environment!r}: {error}: use fewer data.num_envs, or "
                "raise the limits of processes and open files (ulimit -u, ulimit -n)"
            ) from error

    def _read_spaces(self) -> Spaces:
        """Make an environment only to read its spaces, in a process, because making it may hang or die as well."""
        probe = self._start_worker(None)
        try:
            spaces = probe.read_spaces(self._deadline())
        except ProcessFailedError as error:
            raise UserError(
                f"environment {self.environment!r} {error} when it was made with the options {self.options}: check "
                "data.environment and data.environment_options"
            ) from error
        finally:
            probe.child.kill()
        if isinstance(spaces, str):
            raise UserError(spaces)
        return spaces

    def _name(self, index: int) -> str:
        return f"environment {self.environment!r} (number {index})"

    def _when(self, index: int) -> str:
        return f"at step {self._steps[index]} of its episode" if self._steps[index] else "in reset"

    def _warn_state(self, reason: str) -> None:
        if not self._state_warned:
            self._state_warned = True
            _logger.warning(
                "environment %r cannot be part of a checkpoint, so a resumed run starts its episodes anew: it %s",
                self.environment,
                reason,
            )


def _check_spaces(environment: str, spaces: Spaces) -> tuple[tuple[int, ...], int]:
    """Return the shape of frames and the number of actions, if they are supported."""
    if spaces.shape is None or len(spaces.shape) != 3 or spaces.shape[-1] != 3 or spaces.dtype != "uint8":
        raise UserError(
            f"data.environment {environment}: its observation space is {spaces.observation}, but RGB frames (H, W, 3) "
            f"of type uint8 are needed: {frame_hint(spaces.shape, np.dtype(spaces.dtype) if spaces.shape else None)}"
        )
    if spaces.num_actions is None:
        raise UserError(
            f"data.environment {environment} has the action space {spaces.action}, but only Discrete with start 0 is "
            "supported: DiscretizeAction in data.wrappers cuts a Box into as many"
        )
    return spaces.shape, spaces.num_actions


def _kill_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        for worker in workers:
            worker.child.kill()
