"""Tests of `delta-iris play`; the page has its own under `tests/play`."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from delta_iris.commands.main import main
from delta_iris.commands.tools import tool_parser
from tests.play.agents import export_catch
from tests.test_pretrained import edit_about


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_catch(tmp_path_factory.mktemp("agent"))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command refuses to start."""
    with pytest.raises(SystemExit) as raised:
        main(["play", *map(str, arguments)])
    assert raised.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_browser_is_opened_unless_it_is_turned_off() -> None:
    parser = tool_parser("play")
    assert parser.parse_args(["agent"]).open is True
    assert parser.parse_args(["agent", "--no_open"]).open is False
    assert "--no_open" in parser.format_help()
    assert "whether to open the page in a browser" in parser.format_help()


def test_a_port_in_use_gives_one_line(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = complaint(capsys, agent, "--port", port, "--no_open")
    assert line.startswith(f"delta-iris: cannot listen on port {port} of 127.0.0.1")
    assert "give another --port" in line


def test_an_unknown_agent_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no exported agent" in complaint(capsys, tmp_path / "nowhere", "--port", 0, "--no_open")


def test_invalid_arguments_give_one_line(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed is -1" in complaint(capsys, agent, "--seed", -1)
    assert "port" in complaint(capsys, agent, "--port", "many")
    assert "cannot listen on port 99999" in complaint(capsys, agent, "--port", 99999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": "strangers_game:Game-v0"}, "add --trust strangers_game"),
        ({"environment": "delta_iris/Chess-v0"}, "cannot create environment 'delta_iris/Chess-v0'"),
        ({"environment_options": {"cells": 4}}, "the agent knows frames of 64×64 and 3 actions"),
        ({"environment": "delta_iris/Crafter-v1", "environment_options": None}, "17 actions"),
    ],
)
def test_an_agent_whose_environment_cannot_be_used_gives_one_line(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "agent"
    shutil.copytree(agent, folder)
    edit_about(folder, lambda about: about["configuration"]["data"].update(change))
    assert message in complaint(capsys, folder, "--port", 0, "--no_open")


def test_a_missing_package_gives_one_line(
    agent: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delta_iris.commands.play.NEEDED", ("uvicorn", "no_such_server"))
    line = complaint(capsys, agent)
    assert line == (
        "delta-iris: playing needs no_such_server, which is not installed: python -m pip install 'delta-iris[play]'"
    )
