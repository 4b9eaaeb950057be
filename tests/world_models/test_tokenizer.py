"""Tests of what all tokenizers share: the loss, its parts, and training under a plain Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.world_models.tokens.quantizer import VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import ReconstructionLossWeights, Tokenizer
from tests.helpers import make_cnn_tokenizer, make_frame_tokenizer, make_segment, make_tokenizer
from tests.world_models.tokenizer_helpers import MakeTokenizer

MAKERS: list[MakeTokenizer] = [make_tokenizer, make_cnn_tokenizer]
ALL_MAKERS: list[MakeTokenizer] = [*MAKERS, make_frame_tokenizer]


@pytest.mark.parametrize("make", MAKERS)
def test_loss_equals_its_definition(make: MakeTokenizer) -> None:
    weights = ReconstructionLossWeights(l1=0.3, l2=0.7, max_error=0.2, commitment=0.5)
    tokenizer, segment = make(loss_weights=weights), make_segment(padded=True)
    output, reconstruction = tokenizer.loss(segment), tokenizer.reconstruct(segment)
    error = (reconstruction.frames - to_float(segment.frames[:, 1:]))[segment.transition_mask].flatten(1)
    commitment = reconstruction.latents - tokenizer.quantizer.lookup(reconstruction.tokens)
    expected = {
        "l1": error.abs().mean(),
        "l2": error.square().mean(),
        "max_error": error.square().amax(1).mean(),
        "commitment": commitment[segment.transition_mask].square().mean(),
    }
    assert output.metrics.keys() == expected.keys()
    for name, value in expected.items():
        # float32 sums in another order.
        torch.testing.assert_close(output.metrics[name], value.detach(), rtol=1e-5, atol=1e-6)
    total = 0.3 * expected["l1"] + 0.7 * expected["l2"] + 0.2 * expected["max_error"] + 0.5 * expected["commitment"]
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", ALL_MAKERS)
def test_losses_of_parts_add_up_to_that_of_the_batch(make: MakeTokenizer) -> None:
    tokenizer, batch = make(), make_segment(padded=True)
    whole = tokenizer.loss(batch)
    parts = [tokenizer.loss(batch.select(rows), batch) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=1e-5, atol=1e-6)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(parts[0].metrics[name] + parts[1].metrics[name], value, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    tokenizer.update_codebook([part.aux for part in parts])
    codebook = tokenizer.quantizer.codebook
    other = make()
    torch.manual_seed(0)
    other.update_codebook([other.loss(batch).aux])
    torch.testing.assert_close(codebook, other.quantizer.codebook, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", ALL_MAKERS)
def test_tokens_of_encode_and_reconstruct_are_equal(make: MakeTokenizer) -> None:
    tokenizer, segment = make(), make_segment()
    tokens = tokenizer.encode(segment.frames, segment.actions, segment.mask)
    assert tokens.shape == (3, 9 - tokenizer.context_frames, 4)
    assert torch.equal(tokens, tokenizer.reconstruct(segment).tokens)
    assert torch.equal(tokens, tokenizer.encode(to_float(segment.frames), segment.actions, segment.mask))


def parameters_of(tokenizer: Tokenizer) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in tokenizer.parameters()]


@pytest.mark.parametrize("make", ALL_MAKERS)
def test_trains_alone_under_a_plain_trainer(make: MakeTokenizer, tmp_path: Path) -> None:
    tokenizer, before = make(), make()
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    segments: list[SegmentBatch] = [make_segment(seed=seed) for seed in range(3)]
    trainer.fit(tokenizer, DataLoader(segments, batch_size=None))  # type: ignore[arg-type]
    assert not torch.equal(tokenizer.quantizer.codebook, before.quantizer.codebook)
    pairs = list(zip(parameters_of(tokenizer), parameters_of(before), strict=True))
    assert not any(torch.equal(new, old) for new, old in pairs if old.ndim > 1)
    if isinstance(tokenizer.quantizer, VectorQuantizer):
        # The codebook is updated once a step, and nothing is left over for another backward pass.
        assert tokenizer.quantizer.num_updates == 3
        tokenizer.on_after_backward()
        assert tokenizer.quantizer.num_updates == 3
