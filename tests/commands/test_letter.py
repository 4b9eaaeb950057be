"""`letter.yaml`, stacked on `crafter.yaml`, turns off every departure from the paper that has a switch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_iris.commands.config_files import load_config, merge_configs, shipped_configs

DEPARTURES = Path(__file__).parents[2] / "docs" / "departures.md"


def switches() -> dict[str, Any]:
    """Key and value of each switch in the table of departures, for `crafter.yaml`."""
    found: dict[str, Any] = {}
    for line in DEPARTURES.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 5 or "short.yaml" in cells[0] or "crafter_cnn.yaml" in cells[0]:
            continue
        for key, value in re.findall(r"`(model\.[\w.]+): ([^`]+)`", cells[3]):
            found[key] = yaml.safe_load(value)
    return found


def look_up(config: Any, key: str) -> Any:
    """The value of a key that is written without `init_args`."""
    for part in key.split("."):
        config = config if part in config else config["init_args"]
        config = config[part]
    return config


def test_the_table_of_departures_has_switches() -> None:
    assert len(switches()) >= 15
    assert switches()["model.tokenizer.difference"] is False


@pytest.mark.parametrize("key", sorted(switches()))
def test_letter_turns_the_departure_off(key: str) -> None:
    configs = [load_config(shipped_configs() / name) for name in ("crafter.yaml", "letter.yaml")]
    assert look_up(merge_configs(*configs), key) == switches()[key]


def test_letter_sets_nothing_that_the_table_does_not_explain() -> None:
    def keys(config: Any, prefix: str) -> list[str]:
        if not isinstance(config, dict):
            return [prefix]
        return [key for name, value in config.items() for key in keys(value, f"{prefix}.{name}")]

    letter = load_config(shipped_configs() / "letter.yaml")["model"]
    written = {key.replace(".init_args", "") for key in keys(letter, "model")}
    assert written == set(switches())
