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
    """Frames 1 … T − 1 of a segment, decoded from given tokens."""
    codes = tokenizer.quantizer.lookup(tokens)
    frames = to_float(segment.frames)[:, :-1]
    return tokenizer.decode(frames, segment.actions[:, :-1], codes, segment.transition_mask)


def train_step(tokenizer: Tokenizer, segment: SegmentBatch, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take an optimizer step and update the codebook; return the metrics of the loss."""
    output = tokenizer.loss(segment)
    optimizer.zero_grad()
    output.loss.backward()
    tokenizer.update_codebook([output.aux])
    optimizer.step()
    return output.metrics
