"""Report on runs.

    delta-iris report lightning_logs/crafter_cnn/version_0 lightning_logs/crafter_cnn/version_1

writes `report.html`, a page that needs nothing else, and `report-return.png` and others beside it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from delta_iris.data.disk import replace_file
from delta_iris.errors import UserError
from delta_iris.report.run import read_runs

__all__ = ["report"]

LIBRARIES = ("matplotlib", "jinja2", "markupsafe")
"""What only reports need; the extra `report` installs them."""


def report(runs: list[Path], output: Path = Path("report.html")) -> None:
    """Write curves, success rates, world-model health, speed and configuration of runs to an HTML page and PNGs.

    Args:
        runs: run folders, or JSON files in Crafter's run format, such as those that `delta-iris test` writes.
        output: the page. PNGs are written beside it, with its name and that of their section.

    Raises:
        UserError: if a run cannot be read, matplotlib is missing, or something cannot be written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output is {output}: the report is a page, such as report.html")
    if output.is_dir():
        raise UserError(f"output is {output}, which is a folder: name a file in it")
    found = read_runs(runs)
    try:
        from delta_iris.report.page import make_report
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        raise UserError(f'{library} is missing: install it with python -m pip install "delta-iris[report]"') from error
    made = make_report(found)
    for run in found:
        for note in run.notes:
            print(f"delta-iris: {note}", file=sys.stderr)
    pictures = {output.with_name(f"{output.stem}-{name}.png"): png for name, png in made.pictures.items()}
    _write({**pictures, output: made.html.encode()})
    print(f"Written: {output}, and {len(pictures)} pictures, {output.stem}-….png")


def _write(contents: dict[Path, bytes]) -> None:
    """Write files, each whole or not at all."""
    for path, content in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.with_name(path.name + ".new").unlink()
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
