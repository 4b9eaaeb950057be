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
        if not trainer.is_global_zero:
            return
        lines: dict[str, str] = module.describe(trainer.max_epochs or 0)
        loop: Any = trainer.fit_loop
        if loop.initial_frames:
            lines["initial weights"] = f"trained on {loop.initial_frames:,} frames, from which this run counts"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.recorded:
            lines["recordings"] = (
                f"{len(data.recorded)} episodes of {data.recorded_episodes}, which the replay begins with"
            )
        if data.environment is None:
            lines["environment"] = "none: nothing is collected or tested"
        device = "CPU" if module.device.type == "cpu" else str(module.device)
        if module.is_accelerated:
            lines["device"] = f"{device}; compiled steps as CUDA graphs (the first steps of each phase take a minute)"
        else:
            lines["device"] = device if module.use_compile else f"{device}; not compiled (model.init_args.compile)"
        lines["run folder"] = str(RunFolder.of(trainer).path)
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"{name:<{width}}  {text}", flush=True)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print where the results are, unless the run was interrupted."""
        loop: Any = trainer.fit_loop
        folder = RunFolder.of(trainer).path
        if (
            not trainer.is_global_zero
            or loop.interrupted_checkpoint is not None
            or trainer.current_epoch < (trainer.max_epochs or 0)
        ):
            return
        print(f"\nDone: {trainer.current_epoch} epochs, {loop.frames_collected:,} frames. In {folder}:")
        to_test = ""
        for callback in reversed(trainer.checkpoint_callbacks):
            checkpoint: Any = callback
            if checkpoint.last_model_path:
                to_test = _shorten(checkpoint.last_model_path)
                print(f"  checkpoint         {to_test}")
            if checkpoint.monitor is not None and checkpoint.best_model_path:
                to_test = _shorten(checkpoint.best_model_path)
                print(f"  best agent         {to_test} ({checkpoint.monitor} {float(checkpoint.best_model_score):.2f})")
        if to_test and trainer.datamodule.environment is not None:  # type: ignore[attr-defined]
            print(f"  test the agent     delta-iris test --config {folder / 'config.yaml'} --ckpt_path {to_test}")
            print(f"  play, or watch     delta-iris play {to_test}")
        logs = folder.parents[1] if len(folder.parents) > 1 else folder
        print(f"  curves and images  tensorboard --logdir {logs}")
        print(f"  one page           delta-iris report {folder}")


def _shorten(path: str) -> str:
    """A path as people write it: relative to the working directory if it lies in there."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
