"""Tests of the page and its figures."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from PIL import Image

from delta_iris.report.figures import DARK, LIGHT, Panel, draw_svg, number
from delta_iris.report.page import Report, make_report
from delta_iris.report.run import read_runs
from tests.report.report_helpers import RECORDED, TEST_FILE, crafter_file, epoch, write_events

RESOURCES = {"src", "srcset", "data", "poster", "background", "action"}
"""Attributes that make a browser fetch something."""


class Page(HTMLParser):
    """What a page is made of.

    Attributes:
        fetched: addresses that a browser would fetch.
        tags: names of all elements.
        ids: of all elements.
        targets: of links within the page.
        text: all of it, without style sheets.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in RESOURCES or (name == "href" and tag not in ("a", "use")):
                self.fetched.append(value)
            elif name == "href" and value.startswith("#"):
                self.targets.append(value[1:])

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data


@cache
def recorded() -> Report:
    """A report of the recorded run beside a test file."""
    return make_report(read_runs([RECORDED, TEST_FILE]))


def test_the_page_needs_nothing_else() -> None:
    html = recorded().html
    page = Page(html)
    assert page.fetched
    assert all(address.startswith("data:image/") for address in page.fetched)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    # What is left with an address is a link to a source.
    addresses = re.findall(r"https?://[^\"'\s<]+", html)
    assert set(addresses) == set(re.findall(r'<a href="(https?://[^"]+)"', html))
    assert len(html) < 2e6


def test_names_within_the_page_lead_somewhere_and_are_unique() -> None:
    page = Page(recorded().html)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert {"return", "achievements", "world_model", "codebook", "speed", "images"} <= set(page.ids)


def test_numbers_of_the_table_are_those_of_the_runs() -> None:
    text = " ".join(Page(recorded().html).text.split())
    test = json.loads(TEST_FILE.read_text())
    assert f"{test['return_mean']:.2f} ± {test['return_interval']:.2f}" in text
    assert f"{test['score']:.1f} %" in text
    (run, _) = read_runs([RECORDED, TEST_FILE])
    assert f"{run.series['test/return'].values[-1]:.2f}" in text


def test_both_schemes_have_all_colours() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
    html = recorded().html
    used = set(re.findall(r"var\(--([\w-]+)", html))
    assert used <= LIGHT.keys()
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        left = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert left <= {"#ffffff", "#000000"}, left
        ElementTree.fromstring(svg)  # well-formed


def test_each_section_is_a_picture() -> None:
    report = recorded()
    assert set(report.pictures) == {
        "return", "achievements", "world_model", "codebook", "learning", "losses", "speed",
    }  # fmt: skip
    for png in report.pictures.values():
        with Image.open(io.BytesIO(png)) as image:
            image.load()
            assert image.width > 500


def test_the_same_runs_give_the_same_page() -> None:
    assert make_report(read_runs([TEST_FILE])).html == make_report(read_runs([TEST_FILE])).html


def test_seeds_share_a_colour_and_a_switch(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([crafter_file(method, seed, 9.0) for method in ("a", "b") for seed in range(3)]))
    page = Page(make_report(read_runs([path])).html)
    assert {"show-0", "show-1"} <= set(page.ids)
    assert "show-2" not in page.ids
    assert "a (3 runs)" in page.text
    assert "a, seed 2" in page.text


def test_names_from_files_are_text(tmp_path: Path) -> None:
    name = '<img src=x onerror=alert(1)> $\\frac$ & "quoted"'
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([crafter_file(name, 0, 9.0), crafter_file("b", 0, 9.0)]))
    page = Page(make_report(read_runs([path])).html)
    assert "img" not in page.tags
    assert name in page.text


def test_a_run_on_another_game_has_no_published_returns(tmp_path: Path) -> None:
    logged = [each for index in range(6) for each in epoch(100 * (index + 1), index, 100 + 10 * index)]
    write_events(tmp_path, logged, 99)
    html = make_report(read_runs([tmp_path])).html
    assert "Published" not in html
    assert 'id="achievements"' not in html
    assert "Return over frames" in html


def test_a_run_with_a_single_value_is_shown(tmp_path: Path) -> None:
    write_events(tmp_path, [("train/return", 5, 2.5, 100)], 99)
    assert "2.50" in Page(make_report(read_runs([tmp_path])).html).text


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [float("nan")] * 2, [float("inf"), 1.0], [-1.0, 1e-30], [1e300, 1e-300]]
)
def test_any_value_can_be_drawn(tmp_path: Path, values: list[float]) -> None:
    tags = ["train/frames_per_second", "train/return", "train/crafter_score", "test/return", "test/return_interval"]
    tags += ["train_achievements/wake_up", "a/loss", "a/gradient_norm", "held_out/copy_l2", "open_loop_l2/01"]
    tags += ["throughput/frames_per_second", "throughput/a_ms", "a/codes_reset"]
    logged = [(tag, 10 * (i + 1), value, 100.0 + i) for i, value in enumerate([*values, *values]) for tag in tags]
    write_events(tmp_path, logged, 99)
    report = make_report(read_runs([tmp_path]))
    assert {"return", "losses", "speed"} <= set(Page(report.html).ids)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00012, "0.00012"),
        (12.5, "12.5"),
        (4096, "4,096"),
        (250_000, "250k"),
        (999_999, "1M"),
        (1.5e6, "1.5M"),
    ],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert number(value) == text


def test_a_figure_hides_with_its_group() -> None:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [1, 2], gid="group-3")

    svg = draw_svg(Panel("one", 'A "title"', draw))
    assert 'class="group-3"' in svg
    assert 'aria-label="A &quot;title&quot;"' in svg
    assert re.search(r"<svg viewBox=\"[^\"]*\" role", svg)
