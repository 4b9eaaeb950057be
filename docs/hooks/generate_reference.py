"""MkDocs hook: fill the reference pages from the parser of the command line and the docstrings of the classes.

A page contains markers such as `<!-- generated: keys data -->`, each of which is replaced by a table or a help text:

- `keys GROUP`: the keys of a group of `delta-iris fit`.
- `class PATH`: the arguments of a class, without those that the system passes.
- `help COMMAND`: the help text of a command.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from delta_iris.commands.cli import DeltaIrisCLI
from delta_iris.commands.tools import TOOLS, tool_parser
from delta_iris.commands.trainer_flags import FLAGS

MARKER = re.compile(r"<!-- generated: (\w+) (\S+) -->")

PASSED = {"frame_size", "num_actions", "max_frames", "max_blocks", "tokens_per_frame", "codebook_size", "input_shape"}
PASSED |= {"num_features", "discount"}
"""Arguments that a system passes to its modules."""

OWN = {name: {"tokens_per_frame"} for name in ("TransformerTokenizer", "CNNTokenizer", "FrameTokenizer")}
OWN["DreamerWorldModel"] = {"discount"}
"""Those of `PASSED` that are keys of a class nevertheless."""


LIGHTNING = ("trainer", "checkpoint", "best_checkpoint", "seed_everything", "ckpt_path")
"""Groups whose help comes from Lightning's docstrings."""


class _ParsersReady(Exception):
    """All parsers are built."""


class _Parsers(DeltaIrisCLI):
    """Builds the parsers of the command line and stops before it parses.

    Attributes:
        commands: one parser a command, by its name.
        main: the parser above them.
    """

    def __init__(self) -> None:
        self.commands: dict[str, LightningArgumentParser] = {}
        self.main: Any = None
        with suppress(_ParsersReady):
            super().__init__(args=[])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See `DeltaIrisCLI`; keep the parser."""
        super().add_arguments_to_parser(parser)
        self.commands[list(self.subcommands())[len(self.commands)]] = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> NoReturn:
        """Stop."""
        self.main = parser
        raise _ParsersReady


@cache
def _parsers() -> _Parsers:
    os.environ["COLUMNS"] = "110"
    return _Parsers()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the markers of a page."""
    return MARKER.sub(lambda match: generate(match[1], match[2]), markdown)


def generate(kind: str, name: str) -> str:
    """The text that replaces a marker.

    Args:
        kind: of the marker: `keys`, `class` or `help`.
        name: of the group, the class or the command.

    Raises:
        ValueError: if there is nothing of that name, so that a build fails.
    """
    if kind == "keys":
        text = _table(_keys(_parsers().commands["fit"], name), name)
    elif kind == "class":
        parser = ArgumentParser(exit_on_error=False)
        module, _, class_name = name.rpartition(".")
        skip: set[str | int] = {*PASSED - OWN.get(class_name, set())}
        parser.add_class_arguments(getattr(import_module(module), class_name), "args", skip=skip)
        text = _table(_keys(parser, "args"), "args")
    elif kind == "help":
        text = f"```text\n{_help(name)}\n```"
    else:
        raise ValueError(f"unknown marker {kind}")
    return text


def _help(command: str) -> str:
    parsers = _parsers()
    if command == "delta-iris":
        parser = parsers.main
        parser.prog = "delta-iris"
    elif command in TOOLS:
        parser = tool_parser(command)
    else:
        parser = parsers.commands[command]
        parser.prog = f"delta-iris {command}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_help()).strip()
    if command in parsers.commands:  # its usage lists all options, which follow anyway
        text = re.sub(r"\Ausage: .*?(?=\n\n)", f"usage: {parser.prog} [options]", text, flags=re.DOTALL)
    return text


def _keys(parser: Any, group: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and help of each key of a group."""
    defaults = parser.get_defaults()
    for action in parser._actions:
        key = action.dest
        if not (key == group or key.startswith(f"{group}.")) or not action.option_strings:
            continue
        if key.endswith(".help") or type(action).__name__ in ("_ActionHelpClassPath", "_ActionConfigLoad"):
            continue
        kind = getattr(action, "_typehint", None) or action.type
        is_class = "Callable" in str(kind)
        text = re.sub(r"\s*\((?:required|type: ).*\)$", "", action.help or "")
        default = "required" if is_class else _default(defaults.get(key))
        yield key, "a class" if is_class else _type_name(kind), default, text


def _table(rows: Iterator[tuple[str, str, str, str]], group: str) -> str:
    if group == "trainer":
        rows = ((key, kind, default, _flag(key.removeprefix("trainer."))) for key, kind, default, _ in rows)
    elif group in LIGHTNING:
        rows = ((key, kind, default, _first_sentence(text)) for key, kind, default, text in rows)
    lines = [
        f"| `{key.removeprefix(f'{group}.')}` | {kind} | {default} | {_cell(text)} |"
        for key, kind, default, text in rows
    ]
    if not lines:
        raise ValueError(f"there are no keys of {group}")
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *lines])


def _flag(name: str) -> str:
    flag = FLAGS[name]
    return f"{'works' if flag.works else 'refused'}: {flag.text}"


def _type_name(kind: Any) -> str:
    """A type in the words of a configuration file, such as `int or null`."""
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")
    text = re.sub(r"Optional\[(.*)\]", r"\1 | None", text)
    text = re.sub(r"Union\[(.*)\]", lambda match: match[1].replace(", ", " | "), text)
    text = re.sub(r"\bNone\b", "null", text.replace("|", "or"))
    return f"`{text}`"


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict) or hasattr(value, "as_dict"):
        content: dict[str, Any] = value if isinstance(value, dict) else value.as_dict()
        return f"`{str(content.get('class_path', content)).rpartition('.')[2]}`"
    return f"`{value}`"


def _first_sentence(text: str) -> str:
    """Without the examples and notes of Lightning's docstrings, which are written for its own site."""
    text = re.split(r"\n\s*\n|\.\. \w+::|Example::", text)[0]
    return re.split(r"(?<=[a-z`\")])\.\s", text, maxsplit=1)[0].strip().rstrip(".:") + "."


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", text)  # what is in backticks is not escaped
    escaped = [part if part.startswith("`") else re.sub(r"([<*_\[])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", "&#124;")
