"""Tests of tokenizer and dynamics as one world model: filtering, imagining, evaluating."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.world_models.tokens.token_world_model import TokenState, TokenWorldModel
from tests.helpers import (
    ACTIONS,
    CODES,
    CONTEXT,
    FRAMES,
    SIZE,
    WORLD_MODELS,
    make_cnn_tokenizer,
    make_dynamics,
    make_frame_tokenizer,
    make_segment,
    make_tokenizer,
    make_world_model,
)
from tests.world_models.tokenizer_helpers import MakeTokenizer, decode


@pytest.fixture(params=WORLD_MODELS.values(), ids=list(WORLD_MODELS))
def model(request: pytest.FixtureRequest) -> TokenWorldModel:
    made: TokenWorldModel = request.param()
    return made


def make_real_ending_segment() -> SegmentBatch:
    """A segment whose first row begins with padding; all last frames are real."""
    segment = make_segment(padded=True)
    segment.mask[1, -2:] = True
    return segment


def observe(model: TokenWorldModel, segment: SegmentBatch) -> TokenState:
    """The state after a segment."""
    return model.observe(model.initial_state(len(segment.mask)), segment)[0]


def perceive(model: TokenWorldModel, segment: SegmentBatch) -> Tensor:
    """What the actor-critic is to see of real frames."""
    frames = to_float(segment.frames)
    with torch.no_grad():
        return model.tokenizer.perceive(frames, model.tokenizer.encode(frames, segment.actions, segment.mask))


def random_step(seed: int = 5) -> tuple[Tensor, Tensor]:
    """An action and the tokens of the transition."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ACTIONS, (3,), generator=generator), torch.randint(0, CODES, (3, 4), generator=generator)


def assert_same_state(model: TokenWorldModel, found: TokenState, expected: TokenState) -> None:
    """Compare two states and what is imagined from them; both are consumed."""
    for name in ("frames", "mask", "actions", "tokens"):
        values, expected_values = getattr(found, name), getattr(expected, name)
        assert len(values) == len(expected_values)
        assert all(torch.equal(*pair) for pair in zip(values, expected_values, strict=True)), name
    for seed in range(3):
        found, prediction = model.step(found, *random_step(seed))
        expected, expected_prediction = model.step(expected, *random_step(seed))
        torch.testing.assert_close(model.decode(found), model.decode(expected), atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(prediction.reward, expected_prediction.reward, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.end_logits, expected_prediction.end_logits, atol=5e-6, rtol=1e-5)


def test_imagined_steps_equal_the_forward_pass_over_the_whole_segment(model: TokenWorldModel) -> None:
    segment, steps = make_real_ending_segment(), FRAMES - CONTEXT
    tokenizer, start = model.tokenizer, segment.slice_time(0, CONTEXT)
    state = observe(model, start)
    generator = torch.Generator().manual_seed(5)
    actions = torch.randint(0, ACTIONS, (3, steps), generator=generator)
    tokens = torch.randint(0, tokenizer.codebook_size, (3, steps, 4), generator=generator)
    frames, rewards, ends = [], [], []
    for i in range(steps):
        state, prediction = model.step(state, actions[:, i], tokens[:, i])
        frames.append(model.decode(state))
        rewards.append(prediction.reward)
        ends.append(prediction.end_logits)
    # The same trajectory as one segment: the real frames, then the imagined ones with the tokens that were given.
    mask = torch.cat([start.mask, torch.ones(3, steps, dtype=torch.bool)], 1)
    known = tokenizer.encode(start.frames, start.actions, start.mask)
    all_frames = torch.cat([to_float(start.frames), torch.stack(frames, 1)], 1)
    all_actions = torch.cat([segment.actions[:, : CONTEXT - 1], actions, actions[:, :1]], 1)
    all_tokens = torch.cat([known, tokens], 1)
    whole = segment._replace(frames=all_frames, actions=all_actions, mask=mask)
    with torch.no_grad():
        decoded = decode(tokenizer, whole, all_tokens).clamp(0, 1)[:, -steps:]
        logits = model.dynamics.predict(whole, all_tokens)
        expected_rewards = model.dynamics.reward_codec.mean(logits.rewards)
    # float32 sums in another order, around one; convolutions of another batch size round differently in every layer.
    torch.testing.assert_close(torch.stack(frames, 1), decoded, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(rewards, 1), expected_rewards[:, CONTEXT - 1 : -1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack(ends, 1), logits.ends[:, CONTEXT - 1 : -1], atol=5e-6, rtol=1e-5)


def test_actor_input_is_the_last_frame_as_it_is_perceived(model: TokenWorldModel) -> None:
    segment = make_segment().slice_time(0, CONTEXT)
    state, inputs = model.observe(model.initial_state(3), segment)
    torch.testing.assert_close(inputs, perceive(model, segment))
    assert torch.equal(model.actor_input(state), inputs[:, -1])
    assert model.actor_input_space.shape == inputs.shape[2:] == (3, *SIZE)
    for _ in range(2):
        seen = model.actor_input(state)
        assert torch.equal(model.decode(state), seen)
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
        state, _ = model.step(state, *random_step())
        assert torch.equal(model.actor_input(state), state.frames[-1])


def test_real_and_imagined_frames_have_one_layout_in_memory(model: TokenWorldModel) -> None:
    """The regions that encode them would be compiled for each."""
    state, _ = model.observe(model.initial_state(3), make_segment().slice_time(0, CONTEXT))
    for _ in range(2):
        state, _ = model.step(state, *random_step())
    assert all(frame.is_contiguous() for frame in state.frames)


def test_iris_sees_reconstructions_and_delta_iris_the_frames_themselves() -> None:
    segment = make_segment().slice_time(0, CONTEXT)
    for tokenizer in (make_tokenizer(), make_frame_tokenizer()):
        model = make_world_model(tokenizer)
        _, inputs = model.observe(model.initial_state(3), segment)
        assert torch.equal(inputs, to_float(segment.frames)) == bool(tokenizer.context_frames)
        if not tokenizer.context_frames:
            with torch.no_grad():
                # The gradient's way straight through the codebook rounds the codewords.
                expected = tokenizer.reconstruct(segment).frames.clamp(0, 1)
            torch.testing.assert_close(inputs, expected, atol=2e-4, rtol=0)


def test_dynamics_for_tokens_of_another_kind_raise() -> None:
    with pytest.raises(ValueError, match="TokenDynamics does not fit FrameTokenizer"):
        make_world_model(make_frame_tokenizer(), make_dynamics())


def test_prefetching_changes_no_result(model: TokenWorldModel) -> None:
    segment = make_segment().slice_time(0, CONTEXT)
    states = [observe(model, segment), observe(model, segment)]
    model.prefetch(states[0])
    assert_same_state(model, *states)


def test_observing_forgets_what_was_prefetched(model: TokenWorldModel) -> None:
    segment = make_segment(seed=1).slice_time(0, CONTEXT)
    state = observe(model, segment.slice_time(0, 3))
    model.prefetch(state)
    state, _ = model.observe(state, segment.slice_time(3, None), segment.actions[:, 2])
    assert_same_state(model, state, observe(model, segment))
    state = observe(model, segment)
    model.prefetch(state)
    other = make_segment().slice_time(0, CONTEXT)
    assert_same_state(model, observe(model, other), observe(model, other))


@pytest.mark.parametrize("length", [1, 2, CONTEXT, FRAMES])
def test_an_episode_that_starts_anew_is_one_with_padding_before_it(model: TokenWorldModel, length: int) -> None:
    """Whether it is shorter or longer than the others, which then have padding before them."""
    segment, other = make_segment().slice_time(0, CONTEXT), make_segment(1, length, seed=3)
    state = model.restart(observe(model, segment), torch.tensor([1]), other)
    whole = make_segment(3, max(CONTEXT, length), seed=9)
    whole.mask[:] = False
    for row, part in ((0, segment.select([0])), (1, other), (2, segment.select([2]))):
        for field, value in zip(whole, part, strict=True):
            field[row, -value.shape[1] :] = value[0]
    expected = observe(model, whole)
    # What lies under the padding is anything.
    state.frames, state.actions, state.tokens = list(expected.frames), list(expected.actions), list(expected.tokens)
    assert all(torch.equal(*pair) for pair in zip(state.mask, expected.mask, strict=True))
    assert_same_state(model, state, expected)


def test_starting_one_episode_anew_does_not_change_the_others(model: TokenWorldModel) -> None:
    states = [observe(model, make_segment().slice_time(0, CONTEXT)) for _ in range(2)]
    for step in range(2 * FRAMES):
        if step % 5 == 2:
            states[1] = model.restart(states[1], torch.tensor([1]), make_segment(1, CONTEXT, seed=step))
        action, tokens = random_step(step)
        (states[0], one), (states[1], other) = (model.step(state, action, tokens) for state in states)
        for found, expected in ((other.reward, one.reward), (other.end_logits, one.end_logits)):
            torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=2e-4, rtol=1e-4)
        frames, expected_frames = model.decode(states[1]), model.decode(states[0])
        torch.testing.assert_close(frames[[0, 2]], expected_frames[[0, 2]], atol=2e-5, rtol=1e-5)
        # The reward depends on all that went before, also where a frame is decoded from its tokens alone.
        assert not torch.equal(other.reward[1], one.reward[1]) or step < 2


def test_imagination_continues_beyond_the_segment_length(model: TokenWorldModel) -> None:
    segment = make_segment()
    state = observe(model, segment.slice_time(0, CONTEXT))
    torch.manual_seed(0)
    history = [to_float(segment.frames[:, t]) for t in range(CONTEXT)]
    actions = [segment.actions[:, t] for t in range(CONTEXT - 1)]
    lengths = []
    for _ in range(3 * FRAMES):
        actions.append(torch.randint(0, ACTIONS, (3,)))
        state, prediction = model.step(state, actions[-1])
        history.append(model.decode(state))
        lengths.append(len(state.frames))
        assert history[-1].shape == history[0].shape
        assert prediction.reward.isfinite().all()
        assert prediction.end_logits.isfinite().all()
        assert len(state.frames) == len(state.mask) == len(state.actions) + 1
        assert len(state.tokens) == len(state.frames) - model.tokenizer.context_frames
    # The caches are refilled from the last `context` frames when they are full.
    assert (min(lengths), max(lengths)) == (CONTEXT + 1, FRAMES)
    kept = lengths[-1]
    torch.testing.assert_close(torch.stack(state.frames), torch.stack(history[-kept:]))
    assert torch.equal(torch.stack(state.actions), torch.stack(actions[1 - kept :]))


def test_refilled_caches_equal_those_of_the_last_frames(model: TokenWorldModel) -> None:
    segment = make_segment()
    state = observe(model, segment.slice_time(0, CONTEXT))
    for seed in range(FRAMES - CONTEXT):
        state, _ = model.step(state, *random_step(seed))
    assert len(state.frames) == FRAMES
    # A model that has stored only the last frames, with the tokens that were imagined.
    frames, actions = torch.stack(state.frames[-CONTEXT:], 1), torch.stack(state.actions[1 - CONTEXT :], 1)
    first = model.tokenizer.context_frames - CONTEXT
    tokens, mask = torch.stack(state.tokens[first:], 1), torch.ones(3, CONTEXT, dtype=torch.bool)
    network, tokenizer = model.dynamics.network, model.tokenizer
    with torch.no_grad():
        cache = network.prefill(frames[:, :-1], actions, tokens, mask[:, :-1])
        action, following = random_step(9)
        _, reward_logits, end_logits = network.predict_first_token(network.encode_frame(frames[:, -1]), action, cache)
        all_actions = torch.cat([actions, action.unsqueeze(1)], 1)
        codes = tokenizer.quantizer.lookup(torch.cat([tokens, following.unsqueeze(1)], 1))
        decoded = tokenizer.decode(frames, all_actions, codes, mask)[:, -1].clamp(0, 1)
    state, prediction = model.step(state, action, following)
    assert len(state.frames) == CONTEXT + 1
    torch.testing.assert_close(model.decode(state), decoded, atol=5e-6, rtol=1e-5)
    expected = model.dynamics.reward_codec.mean(reward_logits)
    torch.testing.assert_close(prediction.reward, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.end_logits, end_logits, atol=5e-6, rtol=1e-5)


def observe_in_parts(model: TokenWorldModel, segment: SegmentBatch, edges: tuple[int, ...]) -> TokenState:
    """The state after the steps from the first edge to the last, observed from edge to edge."""
    state = model.initial_state(len(segment.mask))
    for start, stop in itertools.pairwise(edges):
        part = segment.slice_time(start, stop)
        state, inputs = model.observe(state, part, segment.actions[:, start - 1] if start else None)
        torch.testing.assert_close(inputs, perceive(model, part))
    return state


@pytest.mark.parametrize("edges", [(0, 4, 5), (0, 4, FRAMES), (0, 2, 3, 4, 6)])
def test_observing_in_parts_equals_observing_all_at_once(model: TokenWorldModel, edges: tuple[int, ...]) -> None:
    """As long as what came before each part fits into the context."""
    segment = make_real_ending_segment()
    expected = observe(model, segment.slice_time(0, edges[-1]))
    assert_same_state(model, observe_in_parts(model, segment, edges), expected)


@pytest.mark.parametrize(
    "make",
    [
        make_tokenizer,
        make_cnn_tokenizer,
        make_frame_tokenizer,
    ],
)
def test_observing_frame_by_frame_equals_observing_all_at_once(make: MakeTokenizer) -> None:
    model, segment = make_world_model(make()), make_segment()
    state = observe_in_parts(model, segment, tuple(range(CONTEXT + 2)))
    assert_same_state(model, state, observe(model, segment.slice_time(0, CONTEXT + 1)))


def test_observing_more_than_the_context_keeps_the_last_frames(model: TokenWorldModel) -> None:
    segment = make_segment()
    state = observe(model, segment.slice_time(0, 6))
    state, _ = model.observe(state, segment.slice_time(6, 8), segment.actions[:, 5])
    assert_same_state(model, state, observe(model, segment.slice_time(6 - CONTEXT, 8)))


@pytest.mark.parametrize("length", [FRAMES - 1, FRAMES])
def test_observing_never_keeps_more_than_a_segment(model: TokenWorldModel, length: int) -> None:
    segment, following = make_segment(), make_segment(seed=1).slice_time(0, length)
    state, inputs = model.observe(observe(model, segment), following, segment.actions[:, -1])
    torch.testing.assert_close(inputs, perceive(model, following))
    assert len(state.frames) == FRAMES
    assert len(state.actions) == FRAMES - 1
    assert len(state.tokens) == FRAMES - model.tokenizer.context_frames
    joined = SegmentBatch(*(torch.cat(fields, 1) for fields in zip(segment, following, strict=True)))
    assert_same_state(model, state, observe(model, joined.slice_time(-FRAMES, None)))


def test_observing_follows_imagined_frames(model: TokenWorldModel) -> None:
    segment = make_segment()
    state = observe(model, segment.slice_time(0, 2))
    action, tokens = random_step()
    state, _ = model.step(state, action, tokens)
    imagined = copy.copy(state.frames)
    state, _ = model.observe(state, segment.slice_time(3, 5), segment.actions[:, 2])
    frames = torch.cat([torch.stack(imagined, 1), to_float(segment.frames[:, 3:5])], 1)
    actions = torch.stack([segment.actions[:, 0], action, *segment.actions[:, 2:5].unbind(1)], 1)
    joined = segment.slice_time(0, 5)._replace(frames=frames, actions=actions)
    assert_same_state(model, state, observe(model, joined))


def test_observing_after_other_frames_without_last_action_raises(model: TokenWorldModel) -> None:
    segment = make_segment()
    state = observe(model, segment.slice_time(0, 2))
    with pytest.raises(ValueError, match="last_action is needed"):
        model.observe(state, segment.slice_time(2, 4))


def test_reconstruct_equals_the_tokenizers(model: TokenWorldModel) -> None:
    segment = make_segment(padded=True)
    frames = model.reconstruct(segment)
    assert frames.shape == (3, FRAMES - 1, 3, *SIZE)
    assert not frames.requires_grad
    with torch.no_grad():
        assert torch.equal(frames, model.tokenizer.reconstruct(segment).frames[:, 1 - FRAMES :])


def test_evaluate_counts_the_codes_of_real_frames_or_transitions(model: TokenWorldModel) -> None:
    segment = make_segment(padded=True)
    evaluation = model.evaluate(segment)
    tokens = model.tokenizer.encode(segment.frames, segment.actions, segment.mask)
    tokens = tokens[segment.transition_mask if model.tokenizer.context_frames else segment.mask]
    assert evaluation.code_counts is not None
    assert evaluation.code_counts.tolist() == [int((tokens == code).sum()) for code in range(CODES)]
    errors, _ = model.tokenizer.evaluate(segment)
    assert evaluation.means["copy_l2"] == errors["copy_l2"]
    names = {"reconstruction_l1", "reconstruction_l2", "copy_l2", "dynamics_end_recall", "dynamics_token_accuracy"}
    names |= {f"dynamics_{part}_loss" for part in ("token", "reward", "end")}
    names |= {"dynamics_reward_error_zero", "dynamics_reward_error_nonzero"}
    assert evaluation.means.keys() == names


def test_summarize_adds_functions_of_the_means(model: TokenWorldModel) -> None:
    numbers = {"reconstruction_l2": 0.01, "copy_l2": 0.0, "dynamics_token_loss": 2.0, "dynamics_end_loss": 0.5}
    values = model.summarize({name: torch.tensor(value) for name, value in numbers.items()})
    expected = {"reconstruction_psnr": 20, "copy_psnr": 100, "dynamics_loss": 2.5}
    expected |= {"dynamics_token_perplexity": math.exp(2)} | numbers
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)
