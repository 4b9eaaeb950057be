"""The commands that do not train: each is one documented function, from whose signature its options are made."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser

from delta_iris.commands.config_errors import shorten_parser_message
from delta_iris.commands.key_suggestions import did_you_mean
from delta_iris.errors import UserError

__all__ = ["TOOLS", "run_tool", "tool_parser"]

TOOLS = {
    "data": "import a Minari dataset, or export a replay as one",
    "dream": "write real, reconstructed and imagined frames side by side",
    "export": "write the agent of a checkpoint as safetensors",
    "play": "open a web page to play in the real game and inside the world model",
    "report": "draw the curves, achievements, speed and configuration of runs as an HTML page",
}
"""What each command does. `<name>` is the function of that name in `delta_iris.commands.<name>`."""


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := re.search(r"nrecognized arguments: (--[\w-]+)", message):
            hint = did_you_mean(unknown[1], self._option_string_actions)
            raise UserError(f"there is no option {unknown[1]}{hint or ': see --help for those that there are'}") from ex
        raise UserError(shorten_parser_message(message)) from ex


def tool_parser(name: str) -> ArgumentParser:
    """The parser of a command.

    Parameters without a default are positional; a list takes one or more values; `--no_x` turns off a switch `x`.

    Args:
        name: of the command.
    """
    function = _function(name)
    parser = _Parser(prog=f"delta-iris {name}", description=_summary(function), allow_abbrev=False)
    hints = get_type_hints(function)
    lists = {key: get_args(hint)[0] for key, hint in hints.items() if get_origin(hint) is list}
    switches = [key for key, hint in hints.items() if hint is bool]
    help_texts = {param.arg_name: param.description for param in parse_docstring(function.__doc__).params}
    for key, item in lists.items():
        parser.add_argument(key, nargs="+", type=item, help=help_texts[key])
    parser.add_function_arguments(function, as_positional=True, skip={*lists, *switches})
    for key in switches:
        default = inspect.signature(function).parameters[key].default
        parser.add_argument(f"--{key}", action=ActionYesNo(no_prefix="no_"), default=default, help=help_texts[key])
    return parser


def run_tool(name: str, args: list[str]) -> None:
    """Run a command.

    Args:
        name: of the command.
        args: that follow it on the command line.

    Raises:
        UserError: if an argument is invalid, or whatever the command says.
    """
    config = tool_parser(name).parse_args(args)
    _function(name)(**vars(config))


def _function(name: str) -> Any:
    return getattr(import_module(f"delta_iris.commands.{name}"), name)


def _summary(function: Any) -> str:
    return inspect.cleandoc(function.__doc__).split("\n\nArgs:")[0]
