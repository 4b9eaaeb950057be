"""Tests that the commands and keys of the documentation are those of the command line."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.commands.config_helpers import CONFIGS, ParsedCommand, parse_fit, stack
from tests.docs.pages import DOCS, ROOT, SITE_PAGES, TUTORIAL, blocks, name

PAST = (DOCS / "lab_notes", DOCS / "results")
"""Folders whose commands have the names of their time."""

PAGES = [
    *(
        ROOT / page
        for page in ("README.md", "CONTRIBUTING.md", "pretrained/crafter_cnn/README.md", "pretrained/catch/README.md")
    ),
    *(path for path in SITE_PAGES if not {*path.parents} & {*PAST}),
]
COMMAND = re.compile(r"^\s*(?:PYTHONPATH=\S+ )?delta-iris (?P<rest>(?:fit|test|validate)\b.*)$", re.MULTILINE)
KEY = re.compile(
    r"(?<![\w.])(?:--)?(?P<key>(?:model(?!\.safetensors)|data|trainer|checkpoint|episodes|images)(?:\.[a-z_]+)+)(?!\w|\.\w)"
)


def commands(path: Path) -> list[list[str]]:
    """The arguments of all `delta-iris` commands in the code blocks of a page, without those with placeholders."""
    code = "\n".join(text for _, _, text in blocks(path, "bash")).replace("\\\n", " ")
    found = [shlex.split(match["rest"], comments=True) for match in COMMAND.finditer(code)]
    return [arguments for arguments in found if not any("<" in each for each in arguments)]


WITH_COMMANDS = [path for path in PAGES if path != TUTORIAL and commands(path)]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name)
def test_commands_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for arguments in commands(path):
        if {"--help", "--model.help", "--print_config"} & {*arguments} or "my_agent" in arguments:
            continue
        for index, argument in enumerate(arguments):
            exists = (CONFIGS / argument).is_file() or Path(argument).is_file()
            if arguments[index - 1] == "--config" and not exists:
                # A configuration of the reader's own, which the page shows.
                own = tmp_path / argument
                own.write_text(blocks(path, "yaml")[0][2])
                arguments[index] = str(own)
        assert ParsedCommand(arguments).values


@cache
def configurations() -> list[dict[str, Any]]:
    """What the shipped systems amount to, with all defaults."""
    names = ("crafter", "crafter_cnn", "iris", "model_free", "dreamer_v3", "dreamer_v2")
    stacked = [[f"{name}.yaml"] for name in names]
    return [parse_fit(*stack(*names)) for names in stacked]


def has_key(content: Any, key: str) -> bool:
    """Whether a configuration has a key, with or without `init_args` between its parts."""
    for part in key.split("."):
        if isinstance(content, dict) and part not in content:
            content = content.get("init_args")
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_keys_exist(path: Path) -> None:
    keys = {match["key"] for code in re.findall(r"`([^`\n]+)`", path.read_text()) for match in KEY.finditer(code)}
    unknown = [key for key in sorted(keys) if not any(has_key(each, key) for each in configurations())]
    assert [key for key in unknown if not (ROOT / "src" / "delta_iris" / key).exists()] == []
