"""Tests of the web server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from delta_iris.errors import UserError
from delta_iris.play.connection import Connection
from delta_iris.play.server import MAX_MESSAGE_BYTES, PAGE, make_app, make_config, open_socket, warm_up
from delta_iris.play.session import Session
from delta_iris.pretrained import Agent
from tests.play.agents import CATCH, export_catch, export_model_free, load
from tests.play.test_messages import MALFORMED, unpack

MAX_GAMES = 2


@pytest.fixture(scope="module")
def agent(catch: Path) -> Agent:
    agent: Agent = load(catch)
    return agent


@contextlib.contextmanager
def serving(agent: Agent) -> Iterator[str]:
    """The address, `127.0.0.1:<port>`, at which an agent is served."""
    with open_socket("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as worker:
        app = make_app(agent, "tiny", "127.0.0.1", worker, MAX_GAMES)
        server = uvicorn.Server(make_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(agent: Agent) -> Iterator[str]:
    with serving(agent) as address:
        yield address


def open_page(address: str, **options: Any) -> ClientConnection:
    return connect(f"ws://{address}/game", **options)


def receive(page: ClientConnection) -> dict[str, Any]:
    """The header of the next message."""
    message = page.recv(timeout=60)
    assert isinstance(message, bytes)
    return unpack(message)[0]


def say(page: ClientConnection, command: str, value: Any = None) -> None:
    page.send(json.dumps({"do": command, "value": value}))


def closing(page: ClientConnection) -> tuple[int, str]:
    """Code and reason with which the server closes a page."""
    with contextlib.suppress(ConnectionClosed):
        for _ in page:
            pass
    assert page.close_code is not None
    return page.close_code, page.close_reason or ""


def get(address: str, path: str, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and content of a page."""
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


# --- the page ---


def test_the_page_and_all_that_it_names_are_served_and_nothing_is_fetched_elsewhere(address: str) -> None:
    status, headers, content = get(address, "/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', content.decode()))
    assert {Path(name).name for name in named} | {"index.html"} == {path.name for path in PAGE.iterdir()}
    for name in named:
        assert get(address, name)[0] == 200
    for path in PAGE.iterdir():
        links = re.findall(r"https?://[^\s\"'`$]+", path.read_text())
        assert [link for link in links if not link.startswith("http://www.w3.org/")] == []  # names of SVG's elements
    assert get(address, "/page/../server.py")[0] == 404
    assert get(address, "/page/%2e%2e/server.py")[0] == 404


def test_a_page_is_welcomed_and_its_agent_plays(address: str) -> None:
    with open_page(address) as page:
        welcome = receive(page)
        assert (welcome["agent"], welcome["environment"]) == ("tiny", "delta_iris/Catch-v0")
        assert [control["name"] for control in welcome["controls"]] == ["left", "stay", "right"]
        steps = [receive(page)["games"]["real"]["step"] for _ in range(4)]
        assert steps[-1] > steps[0]


def test_what_a_page_asks_for_is_done(address: str) -> None:
    with open_page(address) as page:
        for command, value in (("player", "human"), ("world", "both"), ("reset", 9), ("press", 2), ("release", None)):
            say(page, command, value)
        wanted = {"player": "human", "world": "both", "seed": 9, "action": 2}
        view = receive(page)
        while not wanted.items() <= view.items():
            view = receive(page)
        # After the answer to the last command nothing comes, because time stands still.
        with contextlib.suppress(TimeoutError):
            while True:
                view = unpack(page.recv(timeout=0.5, decode=False))[0]
        say(page, "step")
        assert receive(page)["games"]["imagined"]["step"] == view["games"]["imagined"]["step"] + 1


# --- who may come ---


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "a b"])
def test_other_names_of_this_machine_are_refused(address: str, host: str) -> None:
    assert get(address, "/", Host=host)[0] in (400, 403)
    with pytest.raises(InvalidStatus) as refused:
        open_page(address, additional_headers={"Host": host}).close()
    assert refused.value.response.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:80", "192.168.0.7:8700"])
def test_addresses_and_localhost_are_names_of_this_machine(address: str, host: str) -> None:
    assert get(address, "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:1", "null", "", "http://127.0.0.1", "http://[::1"]
)
def test_other_sites_are_refused(address: str, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_page(address, additional_headers={"Origin": origin})
    assert refused.value.response.status_code == 403


def test_the_pages_own_site_is_welcome(address: str) -> None:
    with open_page(address, origin=f"http://{address}") as page:
        assert receive(page)["agent"] == "tiny"


# --- what can go wrong ---


@pytest.mark.parametrize("text", [*MALFORMED[::6], '{"do": "press", "value": 3}', b"\x00\x01"])
def test_a_malformed_message_closes_its_page_with_a_reason(address: str, text: str | bytes) -> None:
    with open_page(address) as page:
        page.send(text)
        code, reason = closing(page)
    assert code == 1008
    assert reason


def test_a_message_that_is_too_long_closes_its_page(address: str) -> None:
    with open_page(address) as page:
        page.send("x" * (MAX_MESSAGE_BYTES + 1))
        assert closing(page)[0] == 1009


def open_when_free(address: str) -> ClientConnection:
    """Open a page as soon as there is a place."""
    deadline = time.monotonic() + 60
    while True:
        page = open_page(address)
        try:
            receive(page)
            return page
        except ConnectionClosed:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_further_pages_are_told_to_wait_and_a_closed_one_makes_room(agent: Agent) -> None:
    with serving(agent) as address:
        pages = [open_page(address) for _ in range(MAX_GAMES)]
        for page in pages:
            receive(page)
        with open_page(address) as refused:
            code, reason = closing(refused)
        assert (code, reason) == (1013, f"{MAX_GAMES} pages are playing already: close one, then reload this page")
        pages[0].close()
        # One that vanishes in the middle of a step, without a word.
        pages[1].socket.shutdown(2)
        again = [open_when_free(address) for _ in range(MAX_GAMES)]
        for page in again:
            page.close()


def test_a_page_that_leaves_before_its_game_is_made_does_no_harm(address: str) -> None:
    for _ in range(2 * MAX_GAMES):
        page = open_page(address)
        with contextlib.suppress(OSError):  # if the server was faster, because all places were taken
            page.socket.shutdown(2)
    open_when_free(address).close()


def test_a_game_that_fails_ends_its_page_and_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failing = load(
        export_catch(
            tmp_path,
            *CATCH[1:],
            "--data.environment=tests.play.agents:FailingCatch-v0",
            "--data.environment_options={cells: 8, pixels: 8}",
        )
    )
    with serving(failing) as address:
        for _ in range(2):
            with open_page(address) as page:
                assert closing(page) == (1011, "the game failed: RuntimeError: the paddle broke")
    output = capfd.readouterr()
    assert output.out.splitlines() == ["delta-iris play: the game failed: RuntimeError: the paddle broke"] * 2
    assert "Traceback" not in output.err


def test_an_agent_without_a_world_model_is_served(tmp_path: Path) -> None:
    agent = load(export_model_free(tmp_path))
    warm_up(agent)
    with serving(agent) as address, open_page(address) as page:
        assert receive(page)["world_model"] == ""
        say(page, "world", "imagined")
        assert closing(page) == (1008, "this agent has no world model: it cannot imagine")


class SlowPage:
    """A WebSocket whose page takes nothing until it is released.

    Args:
        is_open: set to let it take what is sent.
    """

    def __init__(self, is_open: asyncio.Event) -> None:
        self.is_open, self.messages = is_open, list[bytes]()
        self.closed = asyncio.Event()

    async def send_bytes(self, message: bytes) -> None:
        """Take a message, once it is open."""
        if len(self.messages) >= 2:
            await self.is_open.wait()
        self.messages.append(message)

    async def receive(self) -> dict[str, Any]:
        """Say nothing until it is closed."""
        await self.closed.wait()
        return {"type": "websocket.disconnect", "code": 1001}


def test_a_slow_page_skips_frames_instead_of_queueing_them(agent: Agent) -> None:
    async def play() -> list[bytes]:
        page: Any = SlowPage(asyncio.Event())
        with ThreadPoolExecutor(1) as worker:
            connection = Connection(page, worker)
            playing = asyncio.create_task(connection.play(lambda: Session(agent), {}))
            while connection.session is None or connection.session.view().games["real"].step < 8:
                await asyncio.sleep(0.02)
            page.is_open.set()
            while len(page.messages) < 5:
                await asyncio.sleep(0.02)
            page.closed.set()
            await playing
            return page.messages

    steps: list[int] = [unpack(message)[0]["games"]["real"]["step"] for message in asyncio.run(play())[1:]]
    # The one that was being sent, and then the newest; that of the very last step may not be packed yet.
    assert steps[0] <= steps[1] < 3
    assert steps[2] >= 7


# --- recordings ---


def test_a_recording_is_downloaded_by_its_page_alone(address: str) -> None:
    with open_page(address) as page:
        path = receive(page)["recordings"]
        assert get(address, f"{path}.gif")[0] == 404
        say(page, "record", True)
        while receive(page)["recorded"] != 4:
            pass
        say(page, "record", False)
        while receive(page)["recorded"] is not None:
            pass
        status, headers, content = get(address, f"{path}.gif")
        assert (status, headers["Content-Type"]) == (200, "image/gif")
        assert "delta-iris.gif" in headers["Content-Disposition"]
        with Image.open(io.BytesIO(content)) as animation:
            assert animation.n_frames >= 4  # type: ignore[attr-defined]
        status, headers, content = get(address, f"{path}.mp4")
        assert (status, headers["Content-Type"]) == (200, "video/mp4")
        assert content[4:8] == b"ftyp"
        assert get(address, f"{path}.exe")[0] == 404
        assert get(address, f"{path[:-1]}.gif")[0] == 404
    open_when_free(address).close()
    assert get(address, f"{path}.gif")[0] == 404


# --- the port ---


def test_a_port_that_is_taken_is_named() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on port {port} of 127.0.0.1 .* give another --port"):
            open_socket("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("nowhere.invalid", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1), ("", -5)])
def test_an_impossible_address_is_named(host: str, port: int) -> None:
    with pytest.raises(UserError, match="cannot listen on port"):
        open_socket(host, port)
