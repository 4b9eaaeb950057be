"""A summary before a run, and pointers after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from delta_iris.training.run_folder import RunFolder

__all__ = ["RunSummary"]


class RunSummary(L.Callback):
    """Prints what will run at the start, and what the run produced at its end."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Print the system, its schedule, the device and the run folder."""
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        lines: dict[str, str] = module.describe(trainer.max_epochs or 0)
        paths = trainer.datamodule.recorded_paths  # type: ignore[attr-defined]
        if paths:
            lines["recordings"] = f"{len(paths)} episodes of {paths[0].parent}, which the replay begins with"
        device = "CPU" if module.device.type == "cpu" else str(module.device)
        if module.is_accelerated:
            lines["device"] = f"{device}; compiled steps as CUDA graphs (the first steps of each phase take a minute)"
        else:
            lines["device"] = device if module.use_compile else f"{device}; not compiled (model.init_args.compile)"
        lines["run folder"] = str(folder)
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"{name:<{width}}  {text}", flush=True)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print where the results are, unless the run was interrupted."""
        loop: Any = trainer.fit_loop
        folder = _folder(trainer)
        if (
            not trainer.is_global_zero
            or loop.interrupted_checkpoint is not None
            or trainer.current_epoch < (trainer.max_epochs or 0)
        ):
            return
        checkpoint: Any = trainer.checkpoint_callback
        last = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        print(f"\nDone: {trainer.current_epoch} epochs, {loop.frames_collected:,} frames. In {folder}:")
        if last:
            print(f"  checkpoint         {last}")
            print(f"  test the agent     delta-iris test --config {folder / 'config.yaml'} --ckpt_path {last}")
        logs = folder.parents[1] if len(folder.parents) > 1 else folder
        print(f"  curves and images  tensorboard --logdir {logs}")


def _folder(trainer: L.Trainer) -> Path:
    # All processes must ask, because the first one broadcasts it.
    return RunFolder.of(trainer).path
