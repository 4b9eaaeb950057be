"""Says before a run what it will be, and after it what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

__all__ = ["RunSummary", "count_parameters"]


def count_parameters(module: Any) -> int:
    """Number of a module's parameters, those of target networks included."""
    return sum(p.numel() for p in module.parameters())


class RunSummary(L.Callback):
    """Prints parameter counts and the imagined-to-collected ratio at the start, and where to look at the end."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Print what will run."""
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        tokenizer, world_model, agent = (
            count_parameters(m) for m in (module.tokenizer, module.world_model, module.agent)
        )
        schedule, epochs = trainer.fit_loop.schedule, trainer.max_epochs or 0  # type: ignore[attr-defined]
        print(
            f"parameters      tokenizer {tokenizer / 1e6:.2f}M + dynamics {world_model / 1e6:.2f}M = world model "
            f"{(tokenizer + world_model) / 1e6:.2f}M; agent {agent / 1e6:.2f}M (target network included)"
        )
        if epochs > 0:
            frames = schedule.frames_until(epochs)
            imagined = schedule.imagined_until(epochs, module.agent.horizon)
            print(
                f"{epochs} epochs".ljust(16) + f"{frames:,} frames collected, {imagined:,} imagined: "
                f"imagined-to-collected ratio {imagined / max(1, frames):.1f}"
            )
        recorded = trainer.datamodule.recorded_episodes  # type: ignore[attr-defined]
        if recorded:
            print(f"recordings      {len(recorded)} episodes of {recorded[0].parent}, with which the replay begins")
        if module.accelerating:
            told = "on: compiled, launched as CUDA graphs (the first steps of each phase take a minute)"
        else:
            told = "off, by model.accelerate" if not module.accelerate else f"off: no CUDA device ({module.device})"
        print(f"acceleration    {told}")
        print(f"run folder      {folder}", flush=True)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print what there is to look at, unless the run was interrupted."""
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
            print(f"  the trained agent      {last}")
            print(f"  see how well it plays  delta-iris test --config {folder / 'config.yaml'} --ckpt_path {last}")
        print(
            f"  curves and pictures    tensorboard --logdir {folder.parents[1] if len(folder.parents) > 1 else folder}"
        )


def _folder(trainer: L.Trainer) -> Path:
    # All processes must ask: the first one tells it to the others.
    return Path(trainer.log_dir or trainer.default_root_dir)
