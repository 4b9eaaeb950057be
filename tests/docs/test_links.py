"""Tests that links lead somewhere, and that pages have their form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import FOLDER_PAGES, REPOSITORY_PAGES, RESULTS_PAGES, ROOT, SITE_PAGES, name, without_code

LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)|<img src=\"(?P<image>[^\"]+)\"")
RESULTS_HEADINGS = ["Question", "Setup", "Table", "Reading", "Limits", "Raw"]


@pytest.mark.parametrize("path", [*REPOSITORY_PAGES, *FOLDER_PAGES, *SITE_PAGES], ids=name)
def test_relative_links_exist(path: Path) -> None:
    targets = [match["target"] or match["image"] for match in LINK.finditer(without_code(path))]
    relative = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = [target for target in relative if not (path.parent / target).exists()]
    assert missing == []


def test_the_readme_has_at_most_700_words() -> None:
    assert len(without_code(ROOT / "README.md").split()) <= 700


@pytest.mark.parametrize("path", RESULTS_PAGES, ids=name)
def test_a_results_page_has_its_form(path: Path) -> None:
    text = without_code(path)
    assert re.findall(r"^## (\w+)", text, re.MULTILINE) == RESULTS_HEADINGS
    assert len(text.split()) <= 600
    table = text.partition("\n## Table")[2].partition("\n## ")[0]
    assert re.search(r"\bn = \d", table), "the table does not say n"


@pytest.mark.parametrize("path", [path for path in SITE_PAGES if path not in RESULTS_PAGES], ids=name)
def test_every_page_begins_with_a_title(path: Path) -> None:
    assert path.read_text().startswith("# ")
