"""Export a trained agent.

    delta-iris export <run>/checkpoints/last.ckpt pretrained/crafter

makes a folder that `delta-iris test --config pretrained/crafter/config.yaml --ckpt_path pretrained/crafter` runs.
"""

from __future__ import annotations

from pathlib import Path

from delta_iris.pretrained import export_agent

__all__ = ["export"]


def export(checkpoint: Path, folder: Path) -> None:
    """Write the agent of a checkpoint to a new folder; see `export_agent`.

    Args:
        checkpoint: of a run, `<run>/checkpoints/….ckpt`.
        folder: to make.
    """
    export_agent(checkpoint, folder)
    print(f"Written: {folder}. Test it with: delta-iris test --config {folder / 'config.yaml'} --ckpt_path {folder}")
