"""Tests of the world model that captures its steps: its static caches change no result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.world_models.iris import FrameDynamics
from delta_iris.world_models.tokens.captured_world_model import CapturedTokenWorldModel
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from tests.helpers import (
    ACTIONS,
    CODES,
    CONTEXT,
    FRAMES,
    SIZE,
    make_dynamics,
    make_frame_dynamics,
    make_frame_tokenizer,
    make_segment,
    make_tokenizer,
    make_world_model,
)


def make_captured() -> CapturedTokenWorldModel:
    return CapturedTokenWorldModel(make_frame_tokenizer(), make_frame_dynamics(), SIZE, CONTEXT)


def imagine(model: TokenWorldModel, start: SegmentBatch, steps: int) -> list[Tensor]:
    """All that a model imagines in a number of steps, with sampled tokens."""
    state, inputs = model.observe(model.initial_state(len(start.mask)), start)
    torch.manual_seed(0)
    results = [inputs]
    for step in range(steps):
        model.prefetch(state)
        state, prediction = model.step(state, torch.full((len(start.mask),), step % ACTIONS, device=start.mask.device))
        results += [model.decode(state), state.tokens[-1], prediction.reward, prediction.end_logits]
    return results


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        # The cache is as long as a segment in both; only where its position is kept differs.
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_positions_on_the_device_change_no_result() -> None:
    """Through rollouts from different starts, weights that change, another batch size, and a restart of the caches."""
    captured, plain = make_captured(), make_world_model(make_frame_tokenizer())
    first, second = make_segment(padded=True).slice_time(0, CONTEXT), make_segment(seed=1).slice_time(0, CONTEXT)
    for start in (first, second, first.select([0, 2]), second):
        assert_same(imagine(captured, start, FRAMES), imagine(plain, start, FRAMES))
        for model in (captured, plain):
            with torch.no_grad():
                model.dynamics.network.time_embedding.mul_(1.5)


def test_given_tokens_are_taken() -> None:
    tokens = torch.arange(12).view(3, 4)
    states = []
    for model in (make_captured(), make_world_model(make_frame_tokenizer())):
        state, _ = model.observe(model.initial_state(3), make_segment().slice_time(0, CONTEXT))
        state, prediction = model.step(state, torch.zeros(3, dtype=torch.int64), tokens)
        assert torch.equal(state.tokens[-1], tokens)
        states.append([model.decode(state), prediction.reward])
    assert_same(*states)


def test_a_decoder_with_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="TransformerTokenizer decodes with a cache"):
        CapturedTokenWorldModel(make_tokenizer(), make_dynamics(), SIZE, CONTEXT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_of_steps_change_no_result(no_tf32: None) -> None:
    captured, plain = make_captured(), make_world_model(make_frame_tokenizer())
    for model in (captured, plain):
        model.tokenizer.cuda()
        model.dynamics.cuda()
    for seed in range(3):
        segment = make_segment(padded=True, seed=seed).slice_time(0, CONTEXT)
        start = SegmentBatch(*(field.cuda() for field in segment))
        assert_same(imagine(captured, start, FRAMES), imagine(plain, start, FRAMES))
    captured.release_graphs()
    assert_same(imagine(captured, start, 3), imagine(plain, start, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cache_with_room_for_one_step_suffices(no_tf32: None) -> None:
    """The warm-ups before the capture take no room."""
    dynamics = [FrameDynamics(SIZE, ACTIONS, CONTEXT + 1, 4, CODES, TransformerConfig(16, 2, 2)) for _ in range(2)]
    dynamics[1].load_state_dict(dynamics[0].state_dict())
    captured = CapturedTokenWorldModel(make_frame_tokenizer().cuda(), dynamics[0].cuda(), SIZE, CONTEXT)
    plain = TokenWorldModel(make_frame_tokenizer().cuda(), dynamics[1].cuda(), SIZE, CONTEXT)
    segment = make_segment(padded=True).slice_time(0, CONTEXT)
    start = SegmentBatch(*(field.cuda() for field in segment))
    assert_same(imagine(captured, start, 1), imagine(plain, start, 1))
