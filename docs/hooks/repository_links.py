"""MkDocs hook: relative links to files of the repository outside `docs/` work in the site too.

A page links to a raw file as a code host shows it, `../../results/raw/x.csv`. The build copies the file to
`repository/results/raw/x.csv` of the site and rewrites the link. A link to a file that does not exist is left as it is,
so that a strict build reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"(?<=\]\()(?P<target>(?:\.\./)+[^)#\s]+)")
PREFIX = "repository"


def _outside(page: str, target: str) -> str | None:
    """The path in the repository that `target` on a page names, or none where it lies within `docs/`."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "../")) else path


def on_files(files: Any, config: Any) -> Any:
    """Add the linked files to the site."""
    root = Path(config["docs_dir"]).parent
    linked: set[str] = set()
    for page in files.documentation_pages():
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        for match in LINK.finditer(text):
            path = _outside(page.src_uri, match["target"])
            if path and not path.endswith(".md") and (root / path).is_file():
                linked.add(path)
    for path in sorted(linked):
        files.append(File.generated(config, f"{PREFIX}/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point the links to the copies."""

    def replace(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match["target"])
        copy = f"{PREFIX}/{path}"
        if path is None or files.get_file_from_path(copy) is None:
            return match["target"]
        return posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replace, markdown)
