"""Tests that the README's commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [block.strip() for block in blocks[:2]]
    assert commands == [
        "python -m pip install -e . && delta-iris fit --config configs/quickstart.yaml",
        'python -m pip install -e ".[dev]" && python -m pytest',
    ]
    ran = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in ran if line in commands] == commands


def test_configurations_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"configs/\w+\.yaml", (ROOT / "README.md").read_text()))
    assert {"configs/quickstart.yaml", "configs/crafter.yaml", "configs/short.yaml"} <= named
    assert [each for each in sorted(named) if not (ROOT / each).is_file()] == []
