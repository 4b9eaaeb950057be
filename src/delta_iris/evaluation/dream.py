"""Real frames, their reconstructions, and frames imagined under the same actions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.evaluation.world_model import imagine_open_loop
from delta_iris.world_models.base import WorldModel

__all__ = ["Dream", "dream_of"]


class Dream(NamedTuple):
    """Three versions of the same T steps.

    Attributes:
        real: (T, H, W, 3) uint8.
        reconstructed: (T, H, W, 3) uint8; the first frame is real, as `WorldModel.reconstruct` begins with the second.
        imagined: (T, H, W, 3) uint8; the first `context` frames are real.
    """

    real: NDArray[np.uint8]
    reconstructed: NDArray[np.uint8]
    imagined: NDArray[np.uint8]


@torch.no_grad()
def dream_of(world_model: WorldModel[Any], segment: SegmentBatch, context: int, longest: int) -> Dream:
    """Reconstruct a segment, and imagine it under its own actions.

    Args:
        world_model: encodes, decodes and imagines.
        segment: T > `context` consecutive steps, B = 1, on the model's device.
        context: real frames that imagination starts from.
        longest: steps that the model reconstructs at once, more than `context`. Longer segments are reconstructed in
            pieces that begin `context` frames early.
    """
    steps = segment.mask.shape[1]
    real = segment.frames[0].permute(0, 2, 3, 1).cpu().numpy()
    pieces = [real[:1]]
    done = 1
    while done < steps:
        first = max(0, done - context)
        piece = world_model.reconstruct(segment.slice_time(first, first + longest))[0]
        # The piece's frames begin at `first` + 1.
        pieces.append(to_images(piece[done - first - 1 :]))
        done = min(first + longest, steps)
    imagined = imagine_open_loop(world_model, segment, context)[0]
    return Dream(real, np.concatenate(pieces), np.concatenate([real[:context], to_images(imagined)]))
