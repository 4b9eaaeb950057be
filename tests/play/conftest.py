"""The agent that most tests of playing share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.play.agents import export_catch


@pytest.fixture(scope="session")
def catch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Δ-IRIS agent of Catch, with long episodes."""
    return export_catch(tmp_path_factory.mktemp("catch_agent"))
