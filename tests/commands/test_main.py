"""Tests of the program's first argument, and of options that do not exist."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from delta_iris.commands.main import main

COMMANDS = "fit, validate, test, data, dream, export, play, report"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that the program ends with."""
    with pytest.raises(SystemExit) as status:
        main([*arguments])
    assert status.value.code == 2
    return capsys.readouterr().err


def test_without_a_command_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys) == f"delta-iris: name a command: {COMMANDS}; see --help\n"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train") == f"delta-iris: there is no command 'train': choose one of {COMMANDS}\n"
    assert refused(capsys, "reports", "x") == "delta-iris: there is no command 'reports': did you mean 'report'?\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"delta-iris {version('delta-iris')}\n"


def test_an_unknown_option_of_a_command_that_does_not_train_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no option --prot: did you mean '--port'?\n" in refused(capsys, "play", "agent", "--prot", "1")
    assert "there is no option --x: see --help" in refused(capsys, "dream", "agent", "--x")


def test_a_start_from_an_agent_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", "quickstart.yaml", "--init_from", "nowhere")
    assert line == "delta-iris: --init_from: there is no exported agent or checkpoint nowhere\n"
