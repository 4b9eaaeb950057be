"""Tests of cutting frames into patches and of the grids from patches to tokens."""

from __future__ import annotations

import pytest
import torch

from delta_iris.world_models.delta_iris.patches import from_patches, pooled_grids, to_patches


def test_grids_are_halved_down_to_the_tokens() -> None:
    assert pooled_grids((64, 64), 8, 4, 3) == [(8, 8), (4, 4), (2, 2)]
    assert pooled_grids((32, 64), 8, 8, 2) == [(4, 8), (2, 4)]
    assert pooled_grids((64, 64), 8, 64, 1) == [(8, 8)]


@pytest.mark.parametrize(
    ("frame_size", "patch_size", "tokens_per_frame", "num_groups", "message"),
    [
        ((64, 64), 8, 5, 3, r"tokens_per_frame 5 cannot be reached.*one of \[64, 16, 4, 1\]"),
        ((64, 64), 7, 4, 3, "patch_size 7 does not divide frames of 64×64 pixels"),
        ((64, 64), 8, 4, 2, "need 3 entries each"),
        ((48, 48), 8, 4, 2, r"one of \[36, 9\]"),
    ],
)
def test_sizes_that_do_not_fit_together_raise(
    frame_size: tuple[int, int], patch_size: int, tokens_per_frame: int, num_groups: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pooled_grids(frame_size, patch_size, tokens_per_frame, num_groups)


def test_patches_are_squares_of_pixels_in_row_major_order() -> None:
    frames = torch.rand(2, 3, 3, 8, 12)
    patches = to_patches(frames, 4)
    assert patches.shape == (2, 3, 6, 48)
    assert torch.equal(patches[:, :, 4], frames[..., 4:8, 4:8].flatten(2))
    assert torch.equal(from_patches(patches, (2, 3), 4), frames)
