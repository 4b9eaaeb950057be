"""Export a trained agent.

    python -m delta_iris.commands.export <run>/checkpoints/last.ckpt pretrained/crafter

makes a folder that `delta-iris test --config pretrained/crafter/config.yaml --ckpt_path pretrained/crafter` runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import auto_cli

from delta_iris.errors import UserError
from delta_iris.pretrained import export_agent

__all__ = ["export"]


def export(checkpoint: Path, folder: Path) -> None:
    """Write the agent of a checkpoint to a new folder; see `export_agent`.

    Args:
        checkpoint: of a run, `<run>/checkpoints/….ckpt`.
        folder: to make.
    """
    export_agent(checkpoint, folder)


if __name__ == "__main__":
    try:
        auto_cli(export, as_positional=True)
    except UserError as error:
        print(f"export: {error}", file=sys.stderr)
        raise SystemExit(2) from None
