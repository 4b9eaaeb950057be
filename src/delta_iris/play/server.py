"""The web server of `delta-iris play`."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from delta_iris.errors import UserError
from delta_iris.play.connection import Connection
from delta_iris.play.recording import Recording
from delta_iris.play.session import Session
from delta_iris.pretrained import Agent
from delta_iris.scratch import process_scratch

__all__ = ["make_app", "make_config", "open_socket", "serve", "warm_up"]

PAGE = Path(__file__).parent / "page"

MAX_GAMES = 4
"""Pages that play at the same time; they share the processor."""

MAX_MESSAGE_BYTES = 4096

TRY_AGAIN_LATER = 1013
"""Close code of WebSockets."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SameSiteOnly:
    """Refuse what other web sites have the visitor's browser ask for.

    The `Host` must be this machine by `localhost`, an address or the given name, because another name can be made to
    point here (DNS rebinding). The `Origin`, which browsers always send with WebSockets, must be that host.

    Args:
        app: what is protected.
        host: a name under which the server may be called, besides.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._names = app, {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; refuse it with status 403."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host) or (origin is not None and _site(origin) != host.lower()):
            await PlainTextResponse("refused: foreign Host or Origin\n", 403)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or _is_address(name)


def _site(origin: str) -> str | None:
    """Host and port of an `Origin`; None if it is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def make_app(
    agent: Agent, name: str, host: str, worker: Executor, max_games: int = MAX_GAMES, seed: int = 0
) -> Starlette:
    """Make the page's application.

    Args:
        agent: plays.
        name: of the agent, for the page.
        host: a name under which the server may be called, besides `localhost` and addresses.
        worker: runs all games, one call at a time.
        max_games: pages that may play at the same time.
        seed: of each page's first episode.
    """
    open_pages: dict[str, Connection] = {}
    encoding = asyncio.Lock()
    title = {"agent": name, "environment": str(agent.configuration["data"]["environment"])}
    title["world_model"] = type(agent.world_model).__name__ if agent.world_model is not None else ""

    async def play(websocket: WebSocket) -> None:
        await websocket.accept()
        if len(open_pages) >= max_games:
            reason = f"{max_games} pages are playing already: close one, then reload this page"
            await websocket.close(TRY_AGAIN_LATER, reason)
            return
        connection = Connection(websocket, worker)
        open_pages[connection.key] = connection
        try:
            await connection.play(lambda: Session(agent, seed), title)
        finally:
            del open_pages[connection.key]

    async def download(request: Request) -> Response:
        connection = open_pages.get(request.path_params["key"])
        recording = connection.session.recording if connection is not None and connection.session else None
        if recording is None:
            return PlainTextResponse("there is no such recording: record again, with the page open\n", 404)
        suffix = request.path_params["suffix"]
        if suffix not in TYPES:
            return PlainTextResponse(f"{suffix} is no format of recordings: they are gif and mp4\n", 404)
        async with encoding:
            content = await asyncio.to_thread(_animation, recording, suffix)
        disposition = {"Content-Disposition": f'attachment; filename="delta-iris.{suffix}"'}
        return Response(content, media_type=TYPES[suffix], headers=disposition)

    async def index(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    return Starlette(
        routes=[
            Route("/", index),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/recordings/{key}.{suffix}", download),
            WebSocketRoute("/game", play),
        ],
        middleware=[Middleware(SameSiteOnly, host=host)],
    )


TYPES = {"gif": "image/gif", "mp4": "video/mp4"}


def _animation(recording: Recording, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory(dir=process_scratch()) as folder:
        path = Path(folder) / f"recording.{suffix}"
        recording.write(path)
        return path.read_bytes()


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port.

    Args:
        host: name or address.
        port: 0 for any free one.

    Raises:
        UserError: if the port is taken, or it is not for this machine or this user to listen there.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"cannot listen on port {port}: give --port a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        text = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on port {port} of {host} ({text}): give another --port, 0 for a free one, or another --host"
        ) from error


def warm_up(agent: Agent) -> None:
    """Play some steps, because the first ones take seconds: kernels are chosen, worlds compiled.

    Args:
        agent: plays.

    Raises:
        UserError: if the agent does not fit its environment.
    """
    session = Session(agent)
    try:
        for world in ("real", "imagined") if agent.world_model is not None else ("real",):
            session.enter(world)
            # The world model's window slides once.
            for _ in range(agent.system.segment_length + 1):
                session.step()
            session.view()
    finally:
        session.close()


def serve(agent: Agent, name: str, host: str, listener: socket.socket, open_browser: bool, seed: int = 0) -> None:
    """Serve the page until Ctrl-C, after some steps of warming up.

    Args:
        agent: plays.
        name: of the agent, for the page.
        host: name or address of the listener.
        listener: listens already.
        open_browser: whether to open a browser, if there is one.
        seed: of each page's first episode.

    Raises:
        UserError: if the agent does not fit its environment.
    """
    url = f"http://{_shown(host)}:{listener.getsockname()[1]}/"
    worker = ThreadPoolExecutor(1, thread_name_prefix="games")

    try:
        # In the thread of the games: PyTorch keeps helpers for each thread that computes.
        worker.submit(warm_up, agent).result()
        print(f"{name} plays at {url} until Ctrl-C", flush=True)
        if not _is_loopback(host):
            print("Whoever can reach this machine can play too: leave out --host to prevent that", flush=True)
        if open_browser and _has_browser():
            threading.Thread(target=_open, args=(url,), daemon=True).start()
        uvicorn.Server(make_config(make_app(agent, name, host, worker, seed=seed))).run(sockets=[listener])
    finally:
        worker.shutdown(cancel_futures=True)


def make_config(app: Starlette) -> uvicorn.Config:
    """How the page's application is served. A page that does not answer a ping within 20 seconds is given up.

    Args:
        app: the application.
    """
    return uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _shown(host: str) -> str:
    """A host as part of an address that a browser of this machine can open."""
    if _is_address(host) and ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _has_browser() -> bool:
    """Whether a browser with a window can be opened; one in this terminal would take it away."""
    if sys.platform.startswith("linux"):
        return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return True


def _open(url: str) -> None:
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(url)
