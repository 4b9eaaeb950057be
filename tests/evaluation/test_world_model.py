"""Tests of held-out metrics: they are means over everything, however it is divided into batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.evaluation.world_model import WorldModelEvaluator, imagine_open_loop, open_loop_error
from delta_iris.imagination.rollout import ImaginedEnv
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from tests.helpers import FRAMES, SIZE, make_cnn_tokenizer, make_segment, make_tokenizer, make_world_model

CONTEXT = 3


@pytest.fixture(params=[make_tokenizer, make_cnn_tokenizer], ids=["transformer", "cnn"])
def model(request: pytest.FixtureRequest) -> TokenWorldModel:
    return make_world_model(request.param())


def evaluate(model: TokenWorldModel, *segments: SegmentBatch) -> dict[str, Tensor]:
    """Metrics over batches of held-out segments."""
    evaluator = WorldModelEvaluator(model, CONTEXT)
    for segment in segments:
        evaluator.update(segment)
    return evaluator.compute()


def with_rare_events(segment: SegmentBatch) -> SegmentBatch:
    """One reward that is not zero and one end, both in the first segment."""
    rewards, terminated = torch.zeros_like(segment.rewards), torch.zeros_like(segment.terminated)
    rewards[0, 4], terminated[0, 5] = 2.0, 1
    return segment._replace(rewards=rewards, terminated=terminated)


def test_metrics_do_not_depend_on_the_sizes_of_batches(model: TokenWorldModel) -> None:
    segment = with_rare_events(make_segment(4, padded=True))
    whole = evaluate(model, segment)
    parts = evaluate(model, segment.select(slice(0, 1)), segment.select(slice(1, None)))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        # Imagined frames are sampled.
        if not name.startswith("open_loop_l2"):
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_metrics_are_summed_over_processes(model: TokenWorldModel) -> None:
    """Two processes with the same segments have the same means as one."""
    segment = with_rare_events(make_segment(2))
    evaluator = WorldModelEvaluator(model, CONTEXT)
    evaluator.update(segment)
    values, doubled = evaluator.compute(), evaluator.compute(lambda x: 2 * x)
    assert values.keys() == doubled.keys()
    for name, value in values.items():
        torch.testing.assert_close(doubled[name], value, msg=name)


def test_metrics_equal_their_definitions(model: TokenWorldModel) -> None:
    segment = with_rare_events(make_segment(2))
    values, dynamics = evaluate(model, segment), model.dynamics
    frames, tokens = to_float(segment.frames), model.tokenizer.encode(segment.frames, segment.actions, segment.mask)
    reconstructed = model.reconstruct(segment).clamp(0, 1)
    with torch.no_grad():
        logits = dynamics.predict(segment, tokens)
    l2 = (reconstructed - frames[:, 1:]).square().mean()
    torch.testing.assert_close(values["held_out/reconstruction_l2"], l2)
    assert float(values["held_out/reconstruction_psnr"]) == pytest.approx(10 * math.log10(1 / float(l2)), rel=1e-5)
    copy_l2 = (frames[:, 1:] - frames[:, :-1]).square().mean()
    torch.testing.assert_close(values["held_out/copy_l2"], copy_l2, rtol=1e-5, atol=0)
    assert float(values["held_out/copy_psnr"]) == pytest.approx(10 * math.log10(1 / float(copy_l2)), rel=1e-5)
    error = (dynamics.reward_codec.mean(logits.rewards) - segment.rewards).abs()
    torch.testing.assert_close(values["held_out/dynamics_reward_error_nonzero"], error[0, 4])
    zero = segment.rewards == 0
    torch.testing.assert_close(values["held_out/dynamics_reward_error_zero"], error[zero].mean())
    assert values["held_out/dynamics_end_recall"] == float(logits.ends[0, 5, 1] > logits.ends[0, 5, 0])
    log_probs = logits.tokens[:, :-1].log_softmax(-1).gather(-1, tokens.unsqueeze(-1))
    perplexity = (-log_probs.mean()).exp()
    torch.testing.assert_close(values["held_out/dynamics_token_perplexity"], perplexity, rtol=1e-5, atol=1e-5)
    loss = dynamics.loss((segment, tokens)).loss.detach()
    torch.testing.assert_close(values["held_out/dynamics_loss"], loss, rtol=1e-5, atol=1e-5)
    frequencies = tokens.flatten().bincount() / tokens.numel()
    entropy = -sum(f * math.log2(f) for f in frequencies.tolist() if f > 0)
    assert float(values["held_out/codebook_entropy"]) == pytest.approx(entropy, rel=1e-5)


def test_metrics_without_a_target_are_omitted(model: TokenWorldModel) -> None:
    segment = make_segment(2)
    rewards, terminated = torch.zeros_like(segment.rewards), torch.zeros_like(segment.terminated)
    names = evaluate(model, segment._replace(rewards=rewards, terminated=terminated)).keys()
    assert "held_out/dynamics_reward_error_zero" in names
    assert not {"held_out/dynamics_end_recall", "held_out/dynamics_reward_error_nonzero"} & names


def test_segments_with_a_single_real_step_give_metrics_of_steps_only(model: TokenWorldModel) -> None:
    segment = make_segment(2)
    mask = torch.zeros_like(segment.mask)
    mask[:, 0] = True
    values = evaluate(model, segment._replace(mask=mask))
    assert "held_out/dynamics_reward_loss" in values
    transitions = ("held_out/reconstruction", "held_out/copy", "held_out/dynamics_token", "open_loop", "copy")
    assert not any(name.startswith(transitions) for name in values)


def test_frames_without_any_change_give_finite_metrics(model: TokenWorldModel) -> None:
    segment = make_segment(2)
    still = segment._replace(frames=torch.zeros_like(segment.frames))
    assert all(value.isfinite() for value in evaluate(model, still).values())


def test_segments_within_the_context_are_not_imagined(model: TokenWorldModel) -> None:
    values = evaluate(model, make_segment(2).slice_time(0, CONTEXT))
    assert "held_out/reconstruction_l2" in values
    assert not any(name.startswith(("open_loop_l2", "copy_l2")) for name in values)


def test_open_loop_error_compares_with_real_frames_under_the_same_actions() -> None:
    tokenizer, segment = make_tokenizer(), make_segment(2)
    # An action must change the frame that it leads to.
    torch.nn.init.normal_(tokenizer.decoder.action.weight, std=10)
    torch.nn.init.normal_(tokenizer.decoder.to_pixels.weight, std=1)
    model = make_world_model(tokenizer)
    segment.mask[1, 6:] = False
    torch.manual_seed(5)
    found = open_loop_error(model, segment, CONTEXT)
    assert len(found) == 2 * (FRAMES - CONTEXT)
    torch.manual_seed(5)
    env = ImaginedEnv(model)
    env.reset(segment.slice_time(0, CONTEXT))
    real = to_float(segment.frames)
    for step in range(1, FRAMES - CONTEXT + 1):
        t = CONTEXT + step - 1
        frame, _, _ = env.step(segment.actions[:, t - 1])
        kept = segment.mask[:, t]
        imagined, copied = found[f"open_loop_l2/{step:02}"], found[f"copy_l2/{step:02}"]
        errors = (frame - real[:, t]).square().mean((1, 2, 3))[kept]
        torch.testing.assert_close(imagined.total / imagined.weight, errors.mean())
        assert imagined.weight == copied.weight == kept.sum()
        errors = (real[:, CONTEXT - 1] - real[:, t]).square().mean((1, 2, 3))[kept]
        torch.testing.assert_close(copied.total / copied.weight, errors.mean())


def test_open_loop_error_omits_segments_that_start_from_padding(model: TokenWorldModel) -> None:
    segment = make_segment(2)
    segment.mask[0, CONTEXT - 1] = False
    found = open_loop_error(model, segment, CONTEXT)
    assert all(mean.weight == 1 for mean in found.values())


def test_open_loop_imagination_starts_from_the_context_only(model: TokenWorldModel) -> None:
    segment, changed = make_segment(2), make_segment(2)
    changed.frames[:, CONTEXT:] = 7
    # The action of the last step leads beyond the segment.
    changed.actions[:, -1] = 0
    frames = []
    for each in (segment, changed):
        torch.manual_seed(0)
        frames.append(imagine_open_loop(model, each, CONTEXT))
    assert frames[0].shape == (2, FRAMES - CONTEXT, 3, *SIZE)
    assert torch.equal(*frames)
