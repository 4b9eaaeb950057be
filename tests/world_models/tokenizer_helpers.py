"""Encoding, decoding and training steps for the tests of tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.world_models.tokens.tokenizer import Tokenizer

MakeTokenizer = Callable[..., Tokenizer]


def encode_latents(tokenizer: Tokenizer, segment: SegmentBatch) -> Tensor:
    """Latents of all transitions of a segment."""
    return tokenizer.encode_latents(to_float(segment.frames), segment.actions, segment.mask)


def decode(tokenizer: Tokenizer, segment: SegmentBatch, tokens: Tensor) -> Tensor:
    """The frames of a segment that have tokens, decoded from given ones."""
    codes, number = tokenizer.quantizer.lookup(tokens), tokens.shape[1]
    frames = to_float(segment.frames)[:, :number]
    return tokenizer.decode(frames, segment.actions[:, :number], codes, tokenizer.token_mask(segment))


def train_step(tokenizer: Tokenizer, segment: SegmentBatch, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take an optimizer step and update the codebook; return the metrics of the loss."""
    output = tokenizer.loss(segment)
    optimizer.zero_grad()
    output.loss.backward()
    tokenizer.update_codebook([output.aux])
    optimizer.step()
    return output.metrics
