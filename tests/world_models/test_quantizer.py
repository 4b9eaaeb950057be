"""Tests of vector quantization against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.nn.statistics import code_entropy
from delta_iris.world_models.tokens.quantizer import MIN_UPDATES, CodebookConfig, VectorQuantizer

CONFIG = CodebookConfig(size=8, dim=4)


def test_tokens_are_the_nearest_codewords_by_cosine() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(replace(CONFIG, size=16))
    latents = torch.randn(2, 5, 4) * 7
    tokens, unit = quantizer(latents)
    for latent, token in zip(latents.flatten(0, 1), tokens.flatten(), strict=True):
        cosines = F.cosine_similarity(latent.unsqueeze(0), quantizer.codebook)
        assert int(cosines.argmax()) == int(token)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 5))


def test_gradient_passes_straight_through() -> None:
    quantizer = VectorQuantizer(replace(CONFIG, size=16))
    unit = F.normalize(torch.randn(6, 4), dim=-1).requires_grad_()
    tokens, _ = quantizer(unit)
    codes, commitment = quantizer.straight_through(unit, tokens)
    torch.testing.assert_close(codes, quantizer.codebook[tokens])
    weights = torch.randn(6, 4)
    (codes * weights).sum().backward()
    torch.testing.assert_close(unit.grad, weights)
    torch.testing.assert_close(commitment, (unit - quantizer.codebook[tokens]) ** 2)


@pytest.mark.parametrize("decay", [0.99, 0.8])
def test_update_equals_its_definition(decay: float) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(replace(CONFIG, decay=decay))
    codebook, usage = quantizer.codebook.clone(), quantizer.usage.clone()
    unit = F.normalize(torch.randn(40, 4), dim=-1)
    mask = torch.arange(40) % 3 != 0
    tokens, _ = quantizer(unit)
    metrics = quantizer.update(unit, tokens, mask)
    for code in range(8):
        chosen = unit[(tokens == code) & mask]
        expected = codebook[code]
        if len(chosen):
            expected = F.normalize(decay * expected + (1 - decay) * F.normalize(chosen.mean(0), dim=0), dim=0)
        # One float32 rounding of the sums' order and of two normalizations.
        torch.testing.assert_close(quantizer.codebook[code], expected, atol=1e-6, rtol=0)
        frequency = len(chosen) / int(mask.sum())
        torch.testing.assert_close(quantizer.usage[code], 0.98 * usage[code] + 0.02 * frequency)
    assert quantizer.num_updates == 1
    assert metrics["codes_reset"] == 0
    assert metrics["codes_used"] == len(tokens[mask].unique())


def test_dead_codes_are_reset_to_latents_of_the_batch() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(CONFIG)
    quantizer.usage[3] = 0.05 / 8  # below a tenth of uniform after the update, unless it is chosen
    unit = quantizer.codebook[[0, 1, 2]].clone()
    mask = torch.tensor([True, True, False])
    metrics = quantizer.update(unit, torch.tensor([0, 1, 2]), mask)
    assert metrics["codes_reset"] == 1
    assert any(torch.equal(quantizer.codebook[3], latent) for latent in unit[mask])
    assert quantizer.usage[3] == 1 / 8


def test_a_skipped_update_changes_nothing() -> None:
    quantizer = VectorQuantizer(CONFIG)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    unit = torch.full((3, 4), torch.nan)
    quantizer.update(unit, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool), torch.tensor(True))
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def update_with_two_codes(quantizer: VectorQuantizer) -> tuple[dict[str, Tensor], Tensor]:
    """Update with a batch of the first two codewords; return the metrics and the batch."""
    unit = quantizer.codebook[[0, 1]].clone()
    return quantizer.update(unit, torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)), unit


def test_restricted_resets_spare_codes_that_are_rarely_used() -> None:
    quantizer = VectorQuantizer(CONFIG)
    quantizer.num_updates.fill_(MIN_UPDATES)
    quantizer.restrict_code_reset()
    quantizer.usage[3], quantizer.usage[4] = 0.05 / 8, 0.0005 / 8
    rare = quantizer.codebook[3].clone()
    metrics, unit = update_with_two_codes(quantizer)
    assert metrics["codes_reset"] == 1
    assert torch.equal(quantizer.codebook[3], rare)
    assert any(torch.equal(quantizer.codebook[4], latent) for latent in unit)


def test_resets_of_a_young_codebook_are_not_restricted() -> None:
    quantizer = VectorQuantizer(CONFIG)
    for _ in range(MIN_UPDATES - 1):
        update_with_two_codes(quantizer)
    quantizer.restrict_code_reset()
    assert float(quantizer.reset_threshold) == pytest.approx(0.1)
    update_with_two_codes(quantizer)
    quantizer.restrict_code_reset()
    assert float(quantizer.reset_threshold) == pytest.approx(0.001)


def test_resets_sample_from_all_real_latents_and_only_those() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(replace(CONFIG, size=512))
    quantizer.usage.zero_()
    unit = F.normalize(torch.randn(10, 4), dim=-1)
    mask = torch.tensor([False, True] * 5)
    # Code 0 is used, so that its frequency saves it; all others are dead.
    metrics = quantizer.update(unit, torch.zeros(10, dtype=torch.int64), mask)
    assert metrics["codes_reset"] == 511
    chosen = {int((unit == codeword).all(-1).nonzero()[0]) for codeword in quantizer.codebook[1:]}
    assert chosen == {1, 3, 5, 7, 9}


def test_a_batch_of_padding_changes_nothing() -> None:
    quantizer = VectorQuantizer(CONFIG)
    quantizer.usage[3] = 0
    before = quantizer.codebook.clone()
    quantizer.update(F.normalize(torch.randn(5, 4), dim=-1), torch.zeros(5).long(), torch.zeros(5).bool())
    assert torch.equal(quantizer.codebook, before)


def test_entropy_of_codes_is_in_bits() -> None:
    assert float(code_entropy(torch.ones(8))) == pytest.approx(3, rel=1e-6)
    assert float(code_entropy(torch.tensor([5.0, 0, 0]))) == 0
    assert float(code_entropy(torch.zeros(4))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, r"size is 0"),
        ({"dim": 0}, r"dim 0"),
        ({"decay": -0.1}, r"decay is -0\.1: it must be at least 0 and below 1"),
        ({"decay": 1.0}, r"decay is 1\.0: it must be at least 0 and below 1"),
        ({"usage_decay": 1.0}, r"usage_decay is 1\.0"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookConfig(**changes)  # type: ignore[arg-type]
