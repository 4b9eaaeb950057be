"""Tests of the codebook that is learned by gradient."""

from __future__ import annotations

import pytest
import torch

from delta_iris.acceleration.inference_copy import InferenceCopy
from delta_iris.world_models.iris.gradient_quantizer import GradientCodebookConfig, GradientQuantizer


def make_quantizer() -> GradientQuantizer:
    torch.manual_seed(0)
    quantizer = GradientQuantizer(GradientCodebookConfig(16, 4))
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


def test_tokens_are_the_nearest_codewords_by_distance() -> None:
    quantizer = make_quantizer()
    latents = torch.randn(2, 5, 4)
    tokens, same = quantizer(latents)
    assert torch.equal(same, latents)
    assert torch.equal(tokens, torch.cdist(latents.flatten(0, 1), quantizer.codebook).argmin(-1).view(2, 5))


def test_gradient_passes_straight_through_to_the_latents_only() -> None:
    quantizer = make_quantizer()
    latents = torch.randn(6, 4, requires_grad=True)
    tokens, _ = quantizer(latents)
    codes, commitment = quantizer.straight_through(latents, tokens)
    torch.testing.assert_close(codes, quantizer.codebook[tokens])
    weights = torch.randn(6, 4)
    (codes * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)
    assert quantizer.codebook.grad is None
    torch.testing.assert_close(commitment, (latents - quantizer.codebook[tokens]) ** 2)


def test_update_measures_real_tokens_and_changes_nothing() -> None:
    quantizer = make_quantizer()
    before = quantizer.codebook.detach().clone()
    tokens, mask = torch.tensor([0, 1, 2, 3, 9]), torch.tensor([True, True, True, True, False])
    metrics = quantizer.update(torch.randn(5, 4), tokens, mask)
    assert {name: float(value) for name, value in metrics.items()} == {"codebook_entropy": 2, "codes_used": 4}
    quantizer.restrict_code_reset()
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("sizes", [(0, 4), (16, 0)])
def test_invalid_sizes_raise(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both must be 1 or more"):
        GradientCodebookConfig(*sizes)


def test_a_copy_for_inference_gives_the_same_tokens() -> None:
    quantizer = GradientQuantizer(GradientCodebookConfig(size=64, dim=8))
    with torch.no_grad():
        quantizer.codebook.add_(3)  # codewords with a common part are close to each other in bf16
    copied = InferenceCopy(quantizer, torch.bfloat16)
    copied.sync()
    latents = 3 + torch.randn(500, 8) / 64
    assert torch.equal(copied.module(latents)[0], quantizer(latents)[0])
