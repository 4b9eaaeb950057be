"""Measures of a world model on held-out segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.imagination.rollout import ImaginedEnv
from delta_iris.nn.statistics import WeightedMean, code_entropy
from delta_iris.world_models.base import WorldModel

__all__ = ["WorldModelEvaluator", "imagine_open_loop", "open_loop_error"]


@torch.no_grad()
def imagine_open_loop(world_model: WorldModel[Any], segment: SegmentBatch, context: int) -> Tensor:
    """Imagine the frames of a segment after its first ones, under the recorded actions.

    Args:
        world_model: imagines.
        segment: B segments of T > `context` steps.
        context: real frames to start from.

    Returns:
        (B, T − context, 3, H, W) floats in [0, 1].
    """
    env = ImaginedEnv(world_model)
    env.reset(segment.slice_time(0, context))
    frames = []
    for t in range(context, segment.mask.shape[1]):
        env.step(segment.actions[:, t - 1])
        frames.append(env.render())
    return torch.stack(frames, 1)


@torch.no_grad()
def open_loop_error(world_model: WorldModel[Any], segment: SegmentBatch, context: int) -> dict[str, WeightedMean]:
    """Squared error of frames imagined under the recorded actions; see `imagine_open_loop`.

    Args:
        world_model: imagines.
        segment: B segments of T > `context` steps.
        context: real frames to start from.

    Returns:
        for each step from 1 to T − context `open_loop_l2/01` … and, for comparison, `copy_l2/01` … of repeating the
        last real frame.
    """
    imagined = imagine_open_loop(world_model, segment, context)
    real, start = to_float(segment.frames), to_float(segment.frames[:, context - 1])
    values = {}
    for step in range(1, imagined.shape[1] + 1):
        t = context + step - 1
        mask = segment.mask[:, context - 1] & segment.mask[:, t]
        for name, frame in (("open_loop_l2", imagined[:, step - 1]), ("copy_l2", start)):
            values[f"{name}/{step:02}"] = WeightedMean.of((frame - real[:, t]).square().mean((1, 2, 3)), mask)
    return values


class WorldModelEvaluator:
    """Accumulates measures over batches of held-out segments and computes their means.

    Args:
        world_model: what is measured.
        context: real frames that open-loop imagination starts from.
    """

    def __init__(self, world_model: WorldModel[Any], context: int) -> None:
        self.world_model, self.context = world_model, context
        self._own: dict[str, WeightedMean] = {}
        self._open_loop: dict[str, WeightedMean] = {}
        self._code_counts: Tensor | None = None

    @torch.no_grad()
    def update(self, segment: SegmentBatch) -> None:
        """Measure a batch of segments."""
        evaluation = self.world_model.evaluate(segment)
        _accumulate(self._own, evaluation.means)
        if segment.mask.shape[1] > self.context:
            _accumulate(self._open_loop, open_loop_error(self.world_model, segment, self.context))
        counts = evaluation.code_counts
        if counts is not None:
            self._code_counts = counts if self._code_counts is None else self._code_counts + counts

    def compute(self, all_reduce: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, Tensor]:
        """Metrics averaged over all batches and ranks; metrics without a target are omitted.

        Args:
            all_reduce: sums a tensor over all processes.

        Returns:
            `held_out/…`, the world model's own metrics (see its `evaluate` and `summarize`) and `codebook_entropy` in
            bits if it has a codebook; and those of `open_loop_error`.
        """
        values = {f"held_out/{k}": v for k, v in self.world_model.summarize(_means(self._own, all_reduce)).items()}
        if self._code_counts is not None:
            values["held_out/codebook_entropy"] = code_entropy(all_reduce(self._code_counts.float()))
        return values | _means(self._open_loop, all_reduce)


def _accumulate(sums: dict[str, WeightedMean], values: dict[str, WeightedMean]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def _means(sums: dict[str, WeightedMean], all_reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    if not sums:
        return {}
    totals = all_reduce(torch.stack([torch.stack(value) for value in sums.values()]))
    return {name: total / weight for name, (total, weight) in zip(sums, totals, strict=True) if weight > 0}
