"""The README's commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [block.strip() for block in blocks[:2]]
    assert len(commands) == 2
    assert "delta-iris fit --config configs/quickstart.yaml" in commands[0]
    assert "pytest" in commands[1]
    ran = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in ran if line in commands] == commands


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"configs/\w+\.yaml", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
