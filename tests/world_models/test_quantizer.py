"""The codebook against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from delta_iris.world_models.tokens.quantizer import GROWN_UP, VectorQuantizer, code_entropy


def test_tokens_are_the_nearest_codewords_by_cosine() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4)
    latents = torch.randn(2, 5, 4) * 7
    tokens, unit = quantizer(latents)
    for latent, token in zip(latents.flatten(0, 1), tokens.flatten(), strict=True):
        cosines = F.cosine_similarity(latent.unsqueeze(0), quantizer.codebook)
        assert int(cosines.argmax()) == int(token)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(2, 5))


def test_the_gradient_passes_straight_through() -> None:
    quantizer = VectorQuantizer(16, 4)
    unit = F.normalize(torch.randn(6, 4), dim=-1).requires_grad_()
    tokens, _ = quantizer(unit)
    codes, commitment = quantizer.straight_through(unit, tokens)
    torch.testing.assert_close(codes, quantizer.codebook[tokens])
    weights = torch.randn(6, 4)
    (codes * weights).sum().backward()
    torch.testing.assert_close(unit.grad, weights)
    torch.testing.assert_close(commitment, (unit - quantizer.codebook[tokens]) ** 2)


def test_update_follows_the_definition() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4)
    codebook, usage = quantizer.codebook.clone(), quantizer.usage.clone()
    unit = F.normalize(torch.randn(40, 4), dim=-1)
    mask = torch.arange(40) % 3 != 0
    tokens, _ = quantizer(unit)
    metrics = quantizer.update(unit, tokens, mask)
    for code in range(8):
        mine = unit[(tokens == code) & mask]
        expected = codebook[code]
        if len(mine):
            expected = F.normalize(0.99 * expected + 0.01 * F.normalize(mine.mean(0), dim=0), dim=0)
        # One float32 rounding of the sums' order and of two normalizations.
        torch.testing.assert_close(quantizer.codebook[code], expected, atol=1e-6, rtol=0)
        share = len(mine) / int(mask.sum())
        torch.testing.assert_close(quantizer.usage[code], 0.98 * usage[code] + 0.02 * share)
    assert metrics["revived"] == 0
    assert metrics["codewords_in_use"] == len(tokens[mask].unique())


def test_unused_codewords_become_vectors_of_the_batch() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4)
    quantizer.usage[3] = 0.05 / 8  # under a tenth of uniform after the update, unless it is chosen
    unit = quantizer.codebook[[0, 1, 2]] * 1.0
    kept = torch.tensor([True, True, False])
    metrics = quantizer.update(unit, torch.tensor([0, 1, 2]), kept)
    assert metrics["revived"] == 1
    assert any(torch.equal(quantizer.codebook[3], vector) for vector in unit[kept])
    assert quantizer.usage[3] == 1 / 8


def test_settled_codewords_are_revived_only_where_nothing_uses_them() -> None:
    quantizer = VectorQuantizer(8, 4)
    quantizer.updates.fill_(GROWN_UP)
    quantizer.settle()
    quantizer.usage[3], quantizer.usage[4] = 0.05 / 8, 0.0005 / 8
    rare = quantizer.codebook[3].clone()
    unit = quantizer.codebook[[0, 1]].clone()
    metrics = quantizer.update(unit, torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool))
    assert metrics["revived"] == 1
    assert torch.equal(quantizer.codebook[3], rare)
    assert any(torch.equal(quantizer.codebook[4], vector) for vector in unit)


def test_a_young_codebook_does_not_settle() -> None:
    quantizer = VectorQuantizer(8, 4)
    unit = quantizer.codebook[[0, 1]].clone()
    for _ in range(GROWN_UP - 1):
        quantizer.update(unit, torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool))
    quantizer.settle()
    assert float(quantizer.threshold) == pytest.approx(0.1)
    quantizer.update(unit, torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool))
    quantizer.settle()
    assert float(quantizer.threshold) == pytest.approx(0.001)


def test_revival_draws_from_all_real_vectors_and_only_those() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(512, 4)
    unit = F.normalize(torch.randn(10, 4), dim=-1)
    mask = torch.tensor([False, True] * 5)
    candidates = quantizer._candidates(unit, mask)
    chosen = {int((unit == candidate).all(-1).nonzero()[0]) for candidate in candidates}
    assert chosen == {1, 3, 5, 7, 9}


def test_a_batch_of_padding_alone_changes_nothing() -> None:
    quantizer = VectorQuantizer(8, 4)
    quantizer.usage[3] = 0
    before = quantizer.codebook.clone()
    quantizer.update(F.normalize(torch.randn(5, 4), dim=-1), torch.zeros(5).long(), torch.zeros(5).bool())
    assert torch.equal(quantizer.codebook, before)


def test_entropy_in_bits() -> None:
    assert math.isclose(float(code_entropy(torch.ones(8))), 3, rel_tol=1e-6)
    assert float(code_entropy(torch.tensor([5.0, 0, 0]))) == 0
    assert float(code_entropy(torch.zeros(4))) == 0
