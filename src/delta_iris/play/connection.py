"""One open page: its game, its commands and the frames that it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from delta_iris.errors import UserError
from delta_iris.play.comparison import MAX_PIXEL_ERROR, MAX_REWARD_ERROR
from delta_iris.play.messages import pack, pack_view, parse
from delta_iris.play.session import MAX_SPEED, Session

__all__ = ["Connection"]

T = TypeVar("T")

SEND_TIMEOUT = 20
"""Seconds after which a page that takes no more frames is given up."""

POLICY_VIOLATION, INTERNAL_ERROR = 1008, 1011
"""Close codes of WebSockets."""


class Connection:
    """Plays one game for one page until the page is closed.

    Whatever touches the game runs in the worker. Only the newest view waits to be sent: a slow page skips frames.

    Args:
        websocket: accepted.
        worker: runs one call at a time.

    Attributes:
        key: names the recordings of this page; nobody can guess it.
        session: the game; None before it is made.
    """

    def __init__(self, websocket: WebSocket, worker: Executor) -> None:
        self.key = secrets.token_urlsafe(16)
        self.session: Session | None = None
        self._websocket, self._worker = websocket, worker
        self._view: bytes | None = None
        self._has_view, self._has_command = asyncio.Event(), asyncio.Event()

    async def play(self, make_session: Callable[[], Session], title: dict[str, str]) -> None:
        """Play until the page is closed, or say why not and close it.

        Args:
            make_session: makes the game; called in the worker.
            title: what the page says of the agent.
        """
        code, reason = INTERNAL_ERROR, ""
        try:
            session = self.session = await self._work(make_session)
            await self._websocket.send_bytes(pack(self._welcome(session, title)))
            self._show(await self._work(_look, session))
            tasks = [asyncio.create_task(each) for each in (self._receive(session), self._run(session), self._send())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        except WebSocketDisconnect:
            return
        except UserError as error:
            code, reason = POLICY_VIOLATION, str(error)
        except Exception as error:  # of an environment of somebody else, or of a world model under work
            reason = f"the game failed: {type(error).__name__}: {error}"
            print(f"delta-iris play: {reason}", flush=True)
        finally:
            if self.session is not None:
                self._worker.submit(self.session.close)
        # The reason has room for 123 bytes.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._websocket.close(code, " ".join(reason.split()).encode()[:120].decode(errors="ignore"))

    async def _receive(self, session: Session) -> None:
        """Apply commands one after another. None is read before the last was applied, so that none pile up."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or 1005)
            if message.get("text") is None:
                raise UserError("a message is not text")
            self._show(await self._work(_apply, parse(message["text"]), session))
            self._has_command.set()

    async def _run(self, session: Session) -> None:
        """Let time pass at the session's speed; wait for a command while it stands still."""
        clock = asyncio.get_running_loop().time
        while True:
            start = clock()
            self._has_command.clear()
            if view := await self._work(_advance, session):
                self._show(view)
                await asyncio.sleep(max(0.0, start + 1 / session.speed - clock()))
            else:
                await self._has_command.wait()

    async def _send(self) -> None:
        while True:
            await self._has_view.wait()
            self._has_view.clear()
            assert self._view is not None
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await self._websocket.send_bytes(self._view)
            except TimeoutError as error:  # a page that does not read, of which nobody else tells
                raise WebSocketDisconnect(1006) from error

    def _show(self, view: bytes) -> None:
        self._view = view
        self._has_view.set()

    async def _work(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    def _welcome(self, session: Session, title: dict[str, str]) -> dict[str, object]:
        return title | {
            "recordings": f"/recordings/{self.key}",
            "controls": [control._asdict() for control in session.controls],
            "max_speed": MAX_SPEED,
            "max_pixel_error": MAX_PIXEL_ERROR,
            "max_reward_error": MAX_REWARD_ERROR,
        }


def _look(session: Session) -> bytes:
    return pack_view(session.view())


def _apply(command: Callable[[Session], object], session: Session) -> bytes:
    command(session)
    return _look(session)


def _advance(session: Session) -> bytes | None:
    """Take the step that is due; None where there is none."""
    return _look(session) if session.tick() else None
