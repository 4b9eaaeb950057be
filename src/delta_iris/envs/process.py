"""A child process that never outlives its parent and never keeps it waiting longer than allowed."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from delta_iris.errors import Abandoned
from delta_iris.lifetime import die_with

__all__ = ["ChildProcess", "Deadline", "ProcessFailedError", "receive_exactly"]

POLL_SECONDS = 0.5
"""Longest time that a waiting parent does not ask whether it should stop."""

PARENT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals whose meaning only the main process decides. Schedulers send them to every process of a job."""

PAYLOAD_BYTES = 1 << 20

_children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()
"""Children of this process, whose connections a further child must close."""


class ProcessFailedError(Exception):
    """A child died, did not answer in time or reported an error; the message says which, as the end of a sentence."""


class Deadline:
    """A time limit for one or more answers.

    Args:
        seconds: the limit, from now.
        key: configuration key of the limit, for the message.
        should_stop: asked every `POLL_SECONDS` while waiting.
    """

    def __init__(self, seconds: float, key: str, should_stop: Callable[[], bool]) -> None:
        self.seconds, self.key, self.should_stop = seconds, key, should_stop
        now = time.monotonic()
        self._end, self._next_check = now + seconds, now + POLL_SECONDS

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end

    def extend(self) -> None:
        """Start the time anew, because an answer came."""
        self._end = time.monotonic() + self.seconds

    def milliseconds(self) -> int:
        """Time to wait until something must be checked again.

        Raises:
            Abandoned: if `should_stop` returns true.
        """
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + POLL_SECONDS
            if self.should_stop():
                raise Abandoned
        return max(0, 1 + int(1000 * (min(self._next_check, self._end) - now)))


class ChildProcess:
    """A forked process with a socket to it.

    The child leaves signals of the job to its parent, and is killed by the kernel when the parent dies. It leads a
    process group of its own, so that processes which it started end with it. Its standard output is standard error,
    because what an environment prints must not end up among a program's results.

    Args:
        target: runs in the child with its end of the socket; the child ends when it returns.

    Raises:
        OSError: if no process or socket can be created.
    """

    def __init__(self, target: Callable[[socket.socket], None]) -> None:
        self.connection, other = socket.socketpair()
        self.connection.setblocking(False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self.connection, select.POLLIN)
        self._writable.register(self.connection, select.POLLOUT)
        _children.add(self)
        # Not a daemon in the sense of multiprocessing: such processes must not start any.
        process = multiprocessing.get_context("fork").Process(target=_run, args=(target, other, os.getpid()))
        # A signal in the first moments of the child must not run the parent's handlers there.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            other.close()
        self.process = process

    def send(self, message: bytes, deadline: Deadline) -> None:
        """Send a message; that the child is dead is noticed when its answer is received.

        Args:
            message: bytes.
            deadline: time limit.

        Raises:
            Abandoned: if the deadline's `should_stop` returned true while waiting.
            ProcessFailedError: if the child does not read in time.
        """
        view = memoryview(message)
        while view:
            try:
                view = view[self.connection.send(view) :]
            except BlockingIOError:
                self._wait(self._writable, deadline)
            except OSError:
                return

    def receive(self, size: int, deadline: Deadline) -> bytes:
        """Receive exactly `size` bytes.

        Args:
            size: number of bytes.
            deadline: time limit.

        Raises:
            Abandoned: if the deadline's `should_stop` returned true while waiting.
            ProcessFailedError: if the child died or does not answer in time.
        """
        parts: list[bytes] = []
        while size:
            try:
                part = self.connection.recv(min(size, PAYLOAD_BYTES))
            except BlockingIOError:
                self._wait(self._readable, deadline)
                continue
            except OSError:
                part = b""
            if not part:
                raise ProcessFailedError(self._describe_death())
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def join(self, seconds: float) -> None:
        """Wait for the child to end by itself.

        Args:
            seconds: time limit.
        """
        self.process.join(timeout=max(0.0, seconds))

    def kill(self) -> None:
        """End the child and what it started, whatever they do; further calls do nothing."""
        if self.connection.fileno() < 0:
            return
        assert self.process.pid is not None
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        # Even SIGKILL waits while the kernel does something for the process, on a network drive, say.
        self.process.join(timeout=2)
        self.connection.close()

    def _wait(self, poll: select.poll, deadline: Deadline) -> None:
        if poll.poll(deadline.milliseconds()):
            return
        # A process that the child started may hold the socket open after the child's death.
        if self.process.exitcode is not None and not poll.poll(0):
            raise ProcessFailedError(self._describe_death())
        if deadline.expired:
            raise ProcessFailedError(f"did not answer within {deadline.seconds:g} s ({deadline.key})")

    def _describe_death(self) -> str:
        self.process.join(timeout=2)
        code = self.process.exitcode
        if code is None:
            return "closed its connection"
        if code >= 0:
            return f"ended its process with exit code {code}"
        hint = ", often for lack of memory" if code == -signal.SIGKILL else ""
        try:
            return f"was killed by {signal.Signals(-code).name}{hint}"
        except ValueError:
            return f"was killed by signal {-code}"


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes from a blocking socket.

    Args:
        connection: the child's end.
        size: number of bytes.

    Raises:
        EOFError: if the other end is closed.
    """
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, PAYLOAD_BYTES))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _run(target: Callable[[socket.socket], None], connection: socket.socket, parent: int) -> None:
    """Run in the child."""
    for number in PARENT_SIGNALS:
        # A handler and not SIG_IGN: programs that an environment starts would inherit the latter, and their own
        # `terminate` would do nothing.
        signal.signal(number, _do_nothing)
    os.register_at_fork(after_in_child=_restore_signals)
    os.setpgid(0, 0)
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENT_SIGNALS)
    for child in list(_children):
        child.connection.close()
    _children.clear()
    with suppress(OSError):
        os.dup2(2, 1)
    if torch := sys.modules.get("torch"):
        # A forked process has none of the parent's OpenMP threads and would wait for them for ever.
        torch.set_num_threads(1)
    try:
        with suppress(OSError, EOFError):
            target(connection)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        # Threads and processes that the environment left running would keep this process alive; its group is its own.
        os.killpg(os.getpid(), signal.SIGKILL)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _restore_signals() -> None:
    for number in PARENT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
