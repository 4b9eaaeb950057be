"""Configurations side by side."""

from __future__ import annotations

from collections.abc import Sequence

from delta_iris.report.run import Run

__all__ = ["differences"]

PLACES = ("trainer.logger", "trainer.callbacks", "trainer.default_root_dir", "ckpt_path", "name", "version")
"""Keys that say where a run writes, not what it learns."""


def differences(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Keys in which runs differ.

    Args:
        runs: with a configuration each.

    Returns:
        keys that all runs have, and keys that only some have, each with one value a run; an absent one is empty.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith(PLACES))
    values = {key: [run.config.get(key, "") for run in runs] for key in keys}
    everywhere = {key for key in keys if all(key in run.config for run in runs)}
    different = [(key, row) for key, row in values.items() if len(set(row)) > 1]
    return [each for each in different if each[0] in everywhere], [
        each for each in different if each[0] not in everywhere
    ]
