"""The documentation's pages, for the tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
RESULTS_PAGES = [path for path in SITE_PAGES if path.parent == DOCS / "results" and path.name != "index.md"]
REPOSITORY_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FOLDER_PAGES = [
    ROOT / "lightning_logs" / "README.md",
    *(ROOT / "pretrained" / agent / "README.md" for agent in ("catch", "crafter_cnn")),
]

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    """A page's path in the repository, as the name of a test case."""
    return str(path.relative_to(ROOT))


def without_code(path: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", path.read_text())


def blocks(path: Path, language: str) -> list[tuple[str, int, str]]:
    """The code blocks of a page in a language.

    Args:
        path: of the page.
        language: at the start of the fence.

    Returns:
        what follows the language on the fence, the line of the fence, and the code.
    """
    text = path.read_text()
    found = []
    for match in FENCE.finditer(text):
        first, _, rest = match["info"].strip().partition(" ")
        if first == language:
            found.append((rest, text.count("\n", 0, match.start()) + 1, match["code"]))
    return found
