"""Tests of what page and server say to each other."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_iris.errors import UserError
from delta_iris.play.messages import COMMANDS, pack, pack_view, parse
from delta_iris.play.session import Session
from tests.play.agents import load


@pytest.fixture
def session(catch: Path) -> Session:
    return Session(load(catch))


def say(session: Session, command: str, value: Any = None) -> None:
    parse(json.dumps({"do": command, "value": value}))(session)


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<I", message[:4])
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def test_every_command_does_what_its_name_says(session: Session) -> None:
    say(session, "player", "human")
    say(session, "world", "both")
    say(session, "reset", 7)
    say(session, "run", True)
    say(session, "speed", 25)
    say(session, "press", 2)
    session.tick()
    say(session, "release")
    view = session.view()
    assert (view.player, view.world, view.seed, view.running, view.speed) == ("human", "both", 7, True, 25)
    assert (view.action, view.games["real"].step) == (2, 1)
    session.tick()
    assert session.view().action == 1  # idle
    say(session, "record", True)
    say(session, "step")
    assert session.view().recorded == 2
    say(session, "record", False)
    assert session.view().recorded is None


MALFORMED = [
    "",
    "{",
    "[" * 2000,
    "null",
    "[]",
    "{}",
    '"reset"',
    '{"do": "shutdown"}',
    '{"do": ["reset"]}',
    '{"do": "reset"}',
    '{"do": "reset", "value": -1}',
    '{"do": "reset", "value": 1.5}',
    '{"do": "reset", "value": true}',
    '{"do": "reset", "value": 99999999999}',
    '{"do": "reset", "value": NaN}',
    '{"do": "speed", "value": 0}',
    '{"do": "speed", "value": 51}',
    '{"do": "world", "value": "upside down"}',
    '{"do": "world", "value": ["real"]}',
    '{"do": "player", "value": {}}',
    '{"do": "run", "value": 1}',
    '{"do": "press", "value": "left"}',
    '{"do": "step", "value": 1}',
    '{"do": "record", "value": null}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(UserError, match=r"a message is not JSON|a message names no command|the value of .* is invalid"):
        parse(text)


def test_every_command_is_used_by_the_page() -> None:
    page = (Path(__file__).parents[2] / "src/delta_iris/play/page/page.js").read_text()
    sent = {name for name in COMMANDS if f'send("{name}"' in page}
    assert sent | {"world", "player"} == {*COMMANDS}  # these two by the name of their choice
    assert 'for (const name of ["world", "player"])' in page


def test_a_view_carries_the_pixels_of_its_games(session: Session) -> None:
    session.enter("both")
    session.step()
    view = session.view()
    header, pixels = unpack(pack_view(view))
    frames = np.frombuffer(pixels, np.uint8).reshape(2, *header["size"], 3)
    for name, frame in zip(header["games"], frames, strict=True):
        assert np.array_equal(frame, view.games[name].frame)
    assert list(header["games"]) == ["real", "imagined"]
    assert header["probabilities"] == pytest.approx(view.probabilities)


def test_values_that_json_lacks_are_left_out() -> None:
    header, pixels = unpack(pack({"a": float("nan"), "b": [1.0, float("-inf")], "c": {"d": 2}}))
    assert header == {"a": None, "b": [1.0, None], "c": {"d": 2}}
    assert pixels == b""
