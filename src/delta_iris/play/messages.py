"""What page and server say to each other.

The page sends JSON objects `{"do": name, "value": …}`; `COMMANDS` lists them. The server sends two kinds of binary
messages: a JSON header, preceded by its length as four bytes, least significant first; then, for a view, the RGB pixels
of its games one after another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from delta_iris.errors import UserError
from delta_iris.play.session import MAX_SPEED, Session, View

__all__ = ["COMMANDS", "MAX_SEED", "pack", "pack_view", "parse"]

MAX_SEED = 2**31 - 1

Apply = Callable[[Session, Any], object]

COMMANDS: dict[str, tuple[Callable[[Any], bool], Apply]] = {
    "world": (lambda value: value in ("real", "imagined", "both"), Session.enter),
    "player": (lambda value: value in ("agent", "human"), Session.hand_to),
    "run": (lambda value: isinstance(value, bool), Session.run),
    "speed": (lambda value: _is_integer(value, 1, MAX_SPEED), Session.set_speed),
    "reset": (lambda value: _is_integer(value, 0, MAX_SEED), Session.reset),
    "press": (lambda value: _is_integer(value, 0, 1 << 20), Session.press),
    "release": (lambda value: value is None, lambda session, _: session.release()),
    "step": (lambda value: value is None, lambda session, _: session.step()),
    "record": (
        lambda value: isinstance(value, bool),
        lambda session, value: session.record() if value else session.stop_recording(),
    ),
}
"""For each command: which values it takes, and what it does."""


def parse(text: str) -> Callable[[Session], object]:
    """Read a command.

    Args:
        text: of the message.

    Returns:
        what applies it to a session.

    Raises:
        UserError: if it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("a message is not JSON") from None
    name = message.get("do") if isinstance(message, dict) else None
    if not isinstance(name, str) or name not in COMMANDS:
        raise UserError("a message names no command")
    is_valid, apply = COMMANDS[name]
    value = message.get("value")
    if not is_valid(value):
        raise UserError(f"the value of {name} is invalid")
    return lambda session: apply(session, value)


def pack(header: dict[str, Any], pixels: bytes = b"") -> bytes:
    """Make a message for the page.

    Args:
        header: plain values.
        pixels: RGB, of all games one after another.
    """
    text = json.dumps(_finite(header)).encode()
    return struct.pack("<I", len(text)) + text + pixels


def pack_view(view: View) -> bytes:
    """Make a message of a view.

    Args:
        view: what is shown.
    """
    header = asdict(view)
    frames = [game.frame for game in view.games.values()]
    for game in header["games"].values():
        del game["frame"]
    header["size"] = frames[0].shape[:2]
    return pack(header, b"".join(frame.tobytes() for frame in frames))


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
