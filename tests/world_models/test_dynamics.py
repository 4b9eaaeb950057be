"""Tests of the token dynamics: causality token by token, padding, caches, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.data.segment import to_float
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.world_models.iris import FrameDynamics
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.dynamics import TokenDynamics
from tests.helpers import (
    ACTIONS,
    CODES,
    FRAMES,
    SIZE,
    SMALL_CNN,
    make_dynamics,
    make_frame_dynamics,
    make_segment,
    scramble,
)

MakeDynamics = Callable[..., BaseDynamics]
MAKERS: list[MakeDynamics] = [make_dynamics, make_frame_dynamics]


@pytest.fixture(params=MAKERS, ids=["transitions", "frames"])
def make(request: pytest.FixtureRequest) -> MakeDynamics:
    maker: MakeDynamics = request.param
    return maker


@pytest.fixture
def dynamics(make: MakeDynamics) -> BaseDynamics:
    return make()


def random_tokens(dynamics: BaseDynamics) -> Tensor:
    """Tokens for `make_segment()`: of its transitions, or of its frames."""
    number = FRAMES - dynamics.context_frames
    return torch.randint(0, CODES, (3, number, 4), generator=torch.Generator().manual_seed(0))


def of_transitions(dynamics: BaseDynamics, tokens: Tensor) -> Tensor:
    """A view of the tokens that each step but the last leads to, (B, T − 1, K)."""
    return tokens[:, 1 - dynamics.context_frames :]


def test_later_steps_do_not_change_earlier_predictions(dynamics: BaseDynamics) -> None:
    segment, tokens, t = make_segment(), random_tokens(dynamics), 4
    changed = scramble(segment, (torch.arange(FRAMES) > t).expand(3, FRAMES))
    other = tokens.clone()
    of_transitions(dynamics, other)[:, t:] += 1
    other %= CODES
    with torch.no_grad():
        before, after = dynamics.predict(segment, tokens), dynamics.predict(changed, other)
    assert torch.equal(before.rewards[:, : t + 1], after.rewards[:, : t + 1])
    assert torch.equal(before.ends[:, : t + 1], after.ends[:, : t + 1])
    assert torch.equal(before.tokens[:, :t], after.tokens[:, :t])
    assert torch.equal(before.tokens[:, t, 0], after.tokens[:, t, 0])
    assert not torch.equal(before.tokens[:, t, 1], after.tokens[:, t, 1])


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_token_changes_only_later_tokens_of_its_block(dynamics: BaseDynamics, k: int) -> None:
    segment, tokens, t = make_segment(), random_tokens(dynamics), 3
    other = tokens.clone()
    of_transitions(dynamics, other)[:, t, k] += 1
    other %= CODES
    with torch.no_grad():
        before, after = dynamics.predict(segment, tokens), dynamics.predict(segment, other)
    assert torch.equal(before.tokens[:, t, : k + 1], after.tokens[:, t, : k + 1])
    if k < 3:
        assert not torch.equal(before.tokens[:, t, k + 1], after.tokens[:, t, k + 1])
    assert not torch.equal(before.rewards[:, t + 1], after.rewards[:, t + 1])


@pytest.mark.parametrize("field", ["frames", "actions"])
def test_reward_and_end_depend_on_the_frame_and_the_action(dynamics: BaseDynamics, field: str) -> None:
    segment, tokens, t = make_segment(), random_tokens(dynamics), 5
    changed, other = segment._replace(**{field: getattr(segment, field).clone()}), tokens.clone()
    if field == "frames" and isinstance(dynamics, FrameDynamics):
        # It sees a frame through its tokens.
        other[:, t] = (tokens[:, t] + 1) % CODES
    else:
        getattr(changed, field)[:, t] = (getattr(segment, field)[:, t] + 1) % ACTIONS
    with torch.no_grad():
        before, after = dynamics.predict(segment, tokens), dynamics.predict(changed, other)
    assert not torch.equal(before.rewards[:, t], after.rewards[:, t])
    assert not torch.equal(before.ends[:, t], after.ends[:, t])


def test_padding_changes_no_result(dynamics: BaseDynamics) -> None:
    segment, tokens = make_segment(padded=True), random_tokens(dynamics)
    changed, real = scramble(segment, ~segment.mask), segment.transition_mask
    has_tokens = real if dynamics.context_frames else segment.mask
    other = torch.where(has_tokens.unsqueeze(-1), tokens, (tokens + 1) % CODES)
    with torch.no_grad():
        before, after = dynamics.predict(segment, tokens), dynamics.predict(changed, other)
        losses, changed_losses = dynamics.loss((segment, tokens)).to_dict(), dynamics.loss((changed, other)).to_dict()
    assert torch.equal(before.rewards[segment.mask], after.rewards[segment.mask])
    assert torch.equal(before.tokens[:, : FRAMES - 1][real], after.tokens[:, : FRAMES - 1][real])
    assert not torch.equal(before.rewards[~segment.mask], after.rewards[~segment.mask])
    assert all(torch.equal(losses[name], changed_losses[name]) for name in losses)


def test_losses_average_over_every_real_target(dynamics: BaseDynamics) -> None:
    segment, tokens = make_segment(padded=True), random_tokens(dynamics)
    with torch.no_grad():
        predictions, output = dynamics.predict(segment, tokens), dynamics.loss((segment, tokens))
    token_losses, reward_losses, end_losses = [], [], []
    targets = of_transitions(dynamics, tokens)
    for b in range(3):
        for t in range(FRAMES):
            if not segment.mask[b, t]:
                continue
            target = dynamics.reward_codec.two_hot(segment.rewards[b, t])
            reward_losses.append(F.cross_entropy(predictions.rewards[b, t], target))
            end_losses.append(F.cross_entropy(predictions.ends[b, t], segment.terminated[b, t]))
            if t + 1 < FRAMES and segment.mask[b, t + 1]:
                token_losses += [F.cross_entropy(predictions.tokens[b, t, k], targets[b, t, k]) for k in range(4)]
    assert len(token_losses) == 4 * (5 + 6 + 8)
    assert len(reward_losses) == 6 + 7 + 9
    terms = {"token_loss": token_losses, "reward_loss": reward_losses, "end_loss": end_losses}
    for name, values in terms.items():
        torch.testing.assert_close(output.metrics[name], torch.stack(values).mean(), rtol=1e-5, atol=1e-6)
    total = torch.stack([torch.stack(values).mean() for values in terms.values()]).sum()
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-6)


def test_losses_of_parts_add_up_to_that_of_the_batch(dynamics: BaseDynamics) -> None:
    segment, tokens = make_segment(padded=True), random_tokens(dynamics)
    with torch.no_grad():
        whole = dynamics.loss((segment, tokens))
        rows = slice(0, 1), slice(1, 3)
        parts = [dynamics.loss((segment.select(part), tokens[part]), (segment, tokens)) for part in rows]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("known", [0, 1, 4])
def test_stepping_with_a_cache_equals_the_whole_segment(dynamics: BaseDynamics, known: int) -> None:
    segment, tokens = make_segment(padded=known > 3), random_tokens(dynamics)
    segment.mask[1, -2:] = True
    frames, actions, network = to_float(segment.frames), segment.actions, dynamics.network
    with torch.no_grad():
        whole = dynamics.predict(segment, tokens)
        before = tokens[:, : known + 1 - dynamics.context_frames]
        cache = network.prefill(frames[:, :known], actions[:, :known], before, segment.mask[:, :known])
        following = of_transitions(dynamics, tokens)
        for t in range(known, FRAMES - 1):
            features = network.encode_frame(frames[:, t])
            token_logits, reward, end = network.predict_first_token(features, actions[:, t], cache)
            logits = [token_logits]
            for k in range(3):
                logits.append(network.predict_next_token(following[:, t, k], cache))
            network.end_block(following[:, t, 3], cache)
            # float32 sums in another order: a few units of the last place of logits around one.
            torch.testing.assert_close(torch.stack(logits, 1), whole.tokens[:, t], atol=5e-6, rtol=1e-5)
            torch.testing.assert_close(reward, whole.rewards[:, t], atol=5e-6, rtol=1e-5)
            torch.testing.assert_close(end, whole.ends[:, t], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [TokenDynamics, FrameDynamics])
def test_untrained_rewards_are_zero(kind: Callable[..., BaseDynamics]) -> None:
    transformer = TransformerConfig(dim=16, layers=1, heads=2)
    options: dict[str, Any] = {"frame_cnn": SMALL_CNN} if kind is TokenDynamics else {}
    dynamics = kind(SIZE, ACTIONS, FRAMES, 4, CODES, transformer, **options)
    predictions = dynamics.predict(make_segment(), random_tokens(dynamics))
    torch.testing.assert_close(
        dynamics.reward_codec.mean(predictions.rewards), torch.zeros(3, FRAMES), atol=1e-5, rtol=0
    )


def test_dropout_applies_only_in_training_on_segments(make: MakeDynamics) -> None:
    plain = dynamics = make()
    dropping = make(transformer=TransformerConfig(dim=16, layers=2, heads=2, dropout=0.5))
    dropping.load_state_dict(plain.state_dict())
    segment, tokens, network = make_segment(), random_tokens(dynamics), dropping.network
    frames, actions = to_float(segment.frames), segment.actions
    with torch.no_grad():
        whole = plain.predict(segment, tokens)
        one, other = dropping.predict(segment, tokens), dropping.predict(segment, tokens)
        assert not torch.equal(one.tokens, other.tokens)
        dropping.eval()
        assert not torch.equal(dropping.predict(segment, tokens).tokens, one.tokens)
        assert torch.equal(dropping.predict(segment, tokens).tokens, whole.tokens)
        # Imagination steps modules that are in training mode, without dropout.
        dropping.train()
        known = tokens[:, : 5 - dynamics.context_frames]
        cache = network.prefill(frames[:, :4], actions[:, :4], known, segment.mask[:, :4])
        logits, reward, _ = network.predict_first_token(network.encode_frame(frames[:, 4]), actions[:, 4], cache)
    torch.testing.assert_close(logits, whole.tokens[:, 4, 0], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(reward, whole.rewards[:, 4], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("dim", "heads", "dropout", "named"), [(16, 3, 0.0, "dim"), (16, 2, -0.1, "dropout"), (16, 2, 1.0, "dropout")]
)
def test_invalid_arguments_raise(make: MakeDynamics, dim: int, heads: int, dropout: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(transformer=TransformerConfig(dim, 2, heads, dropout))
