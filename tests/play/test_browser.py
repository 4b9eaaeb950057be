"""Plays on the real page: the command as a process, and Debian's chromium without a window."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")

if CHROMIUM is None and os.environ.get("DELTA_IRIS_BROWSER_TESTS"):
    raise RuntimeError("DELTA_IRIS_BROWSER_TESTS is set, but there is no chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture
def url(catch: Path) -> Iterator[str]:
    """The address that the command prints. In the end it is stopped by Ctrl-C, without a complaint."""
    command = [sys.executable, "-m", "delta_iris", "play", str(catch), "--port", "0", "--no_open"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        found = None
        while found is None and (line := process.stdout.readline()):
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found is not None, process.stderr and process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, "")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    """The page, which must ask no other site for anything and report no error."""
    complaints: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(url) else None)
        page.goto(url)
        yield page
        browser.close()
    assert complaints == []


def pixels(page: Page, game: str = "real") -> Any:
    return page.locator(f"figure[data-game={game}] canvas").evaluate(PIXELS)


def step(page: Page) -> int:
    """The number of the step that is shown."""
    return int(page.locator("#numbers tbody tr").first.locator("td:visible").first.inner_text())


def choose(page: Page, text: str, summary: str) -> None:
    """Choose a world or a player, and wait until the page shows it.

    It moves its buttons then, and a click that is half done would miss.
    """
    page.locator(".segmented label", has_text=text).click()
    expect(page.locator("#summary")).to_contain_text(summary)


def wait_until(page: Page, condition: Callable[[], bool]) -> None:
    """Ask from here: the page's own policy forbids what `Page.wait_for_function` does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def press(page: Page, key: str) -> None:
    """Press a key and wait for its step."""
    before = step(page)
    page.keyboard.press(key)
    wait_until(page, lambda: step(page) > before)


def test_a_visitor_plays_dreams_compares_and_takes_a_recording_home(page: Page, tmp_path: Path) -> None:
    # The agent plays by itself.
    expect(page.locator("#summary")).to_have_text("The agent plays the real game.")
    wait_until(page, lambda: step(page) >= 2)
    first = pixels(page)
    wait_until(page, lambda: pixels(page) != first)

    # You play: time stands still until a key is pressed, and the paddle follows.
    choose(page, "You", "You play the real game.")
    expect(page.locator("#run")).to_have_text("Run")
    before = pixels(page)
    press(page, "ArrowLeft")
    assert pixels(page) != before
    expect(page.locator(".action.taken .name")).to_have_text("left")
    expect(page.locator(".token")).to_have_count(4)

    # You play inside the world model.
    choose(page, "Imagined", "You play inside the world model")
    expect(page.locator("figure[data-game=real]")).to_be_hidden()
    before = pixels(page, "imagined")
    press(page, "ArrowRight")
    assert pixels(page, "imagined") != before

    # The agent dreams.
    choose(page, "Agent", "The agent dreams")
    wait_until(page, lambda: step(page) >= 4)

    # Both side by side, with the curve of the error, while frames are recorded.
    choose(page, "Compare", "the world model imagines it under the same actions")
    page.locator("#record").click()
    curve = page.locator("#curve polyline")
    wait_until(page, lambda: curve.evaluate("line => line.points.length") >= 5)
    assert pixels(page, "real") != pixels(page, "imagined")
    expect(page.locator("#parting")).to_contain_text(re.compile("part at step \\d+:|They agree so far"))
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    page.locator("#record").click()
    with page.expect_download() as download:
        page.locator("#gif").click()
    download.value.save_as(tmp_path / "game.gif")
    with Image.open(tmp_path / "game.gif") as animation:
        assert animation.n_frames >= 4  # type: ignore[attr-defined]
        assert animation.width > 1.5 * animation.height

    # A new episode of a chosen seed, and one step at a time.
    choose(page, "Real", "The agent plays the real game.")
    page.locator("#run").click()
    page.locator("#seed").fill("7")
    page.locator("#restart").click()
    wait_until(page, lambda: step(page) == 0)
    page.locator("#step").click()
    wait_until(page, lambda: step(page) == 1)
    page.locator("#seed").fill("-7")
    page.locator("#restart").click()
    expect(page.locator("#status")).to_contain_text("the seed must be a whole number")
