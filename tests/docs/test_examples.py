"""Tests that the examples of the documentation run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS, ROOT, SITE_PAGES, blocks, name

SKIPPED = "no-run"
"""Follows `python` on the fence of an example that is not run; the reason follows it."""

OWN_TEST = DOCS / "tutorial.md"

PAGES = [
    ROOT / "README.md",
    *(path for path in SITE_PAGES if DOCS / "lab_notes" not in path.parents and path != OWN_TEST),
]
WITH_EXAMPLES = [path for path in PAGES if blocks(path, "python")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name)
def test_examples_run_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    variables: dict[str, Any] = {"__name__": "__main__"}
    for options, line, code in blocks(path, "python"):
        if options.split(" ")[0] == SKIPPED:
            continue
        # The empty lines make a traceback point to the line of the page.
        exec(compile("\n" * line + code, str(path), "exec"), variables)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name)
def test_a_skipped_example_gives_its_reason(path: Path) -> None:
    for options, line, _ in blocks(path, "python"):
        skipped, _, reason = options.partition(" ")
        assert skipped in ("", SKIPPED), f"{name(path)}:{line}"
        assert reason or not skipped, f"{name(path)}:{line} does not say why it is not run"


def test_the_readme_has_an_example() -> None:
    assert ROOT / "README.md" in WITH_EXAMPLES
