"""Tests of DreamerV3's world model: its recurrence, its divergences, its losses, and resets within a segment."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.layers import BlockLinear
from delta_iris.world_models.dreamer.arrivals import Arrivals
from delta_iris.world_models.dreamer.images import ImageConfig, ImageEncoder, StridedDecoder, StridedEncoder
from delta_iris.world_models.dreamer.recurrence import BlockGRU, LayerNormGRU
from delta_iris.world_models.dreamer.rssm import RSSMConfig, RSSMState, kl_divergence
from delta_iris.world_models.dreamer.world_model import DreamerLossWeights, DreamerWorldModel
from tests.dreamer_helpers import ACTIONS, LENGTH, RSSM_SIZES, SIZE, V2_SIZES, make_stream, make_world_model

DETER, STOCH, HIDDEN, BLOCKS = 12, 6, 8, 3


def noise(model: DreamerWorldModel, segment: SegmentBatch) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(*segment.mask.shape, model.rssm.latents, generator=generator)


# --- recurrence ---


def dense(layer: BlockLinear) -> tuple[Tensor, Tensor]:
    return torch.block_diag(*layer.weight), layer.bias.flatten()


def test_the_block_gru_is_a_dense_one_with_block_diagonal_matrices() -> None:
    torch.manual_seed(0)
    cell = BlockGRU(DETER, STOCH, ACTIONS, HIDDEN, BLOCKS, "silu")
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    deter, stoch, action = torch.randn(4, DETER), torch.randn(4, STOCH), torch.randn(4, ACTIONS)
    projected = torch.cat([layer(x) for layer, x in zip(cell.inputs, (deter, stoch, action), strict=True)], -1)
    # Each block's rows: its slice of the state, then all projections.
    rows = torch.cat([torch.cat([part, projected], -1) for part in deter.chunk(BLOCKS, -1)], -1)
    weight, bias = dense(cell.hidden)
    hidden = rows @ weight + bias
    hidden = F.silu(F.rms_norm(hidden, (DETER,), cell.norm.weight, 1e-4))
    weight, bias = dense(cell.gates)
    gates = (hidden @ weight + bias).unflatten(-1, (BLOCKS, 3, DETER // BLOCKS))
    reset, candidate, update = (gates[:, :, k].flatten(1) for k in range(3))
    update = torch.sigmoid(update - 1)
    expected = update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter
    torch.testing.assert_close(cell(deter, stoch, action), expected)


def test_the_dense_gru_follows_its_definition() -> None:
    torch.manual_seed(0)
    cell = LayerNormGRU(DETER, STOCH, ACTIONS, HIDDEN, "elu")
    deter, stoch, action = torch.randn(4, DETER), torch.randn(4, STOCH), torch.randn(4, ACTIONS)
    first: Any = cell.inputs[0]
    hidden = F.elu(first(torch.cat([stoch, action], -1)))
    gates = F.layer_norm(torch.cat([hidden, deter], -1) @ cell.gates.weight.T, (3 * DETER,), eps=1e-3)
    reset, candidate, update = gates.split(DETER, -1)
    update = torch.sigmoid(update - 1)
    expected = update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter
    torch.testing.assert_close(cell(deter, stoch, action), expected)


# --- latents ---


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_latents_are_mixed_with_the_uniform_distribution(unimix: float) -> None:
    model = make_world_model(rssm=dataclasses.replace(RSSM_SIZES, unimix=unimix))
    deter = 100 * torch.randn(5, 16)
    probabilities = model.rssm.prior_log_probs(deter).exp()
    logits = model.rssm.prior(deter).unflatten(-1, (4, 4))
    torch.testing.assert_close(probabilities, (1 - unimix) * logits.softmax(-1) + unimix / 4)


def test_latents_are_one_hot_and_their_gradient_is_that_of_the_probabilities() -> None:
    model = make_world_model()
    state, uniform = model.initial_state(2), torch.rand(2, 4)
    action, fresh = torch.zeros(2, ACTIONS), torch.zeros(2, dtype=torch.bool)
    features = torch.randn(2, model.encoder.num_features, requires_grad=True)
    new, log_probs = model.rssm.observe_step(state, action, features, fresh, uniform)
    assert set(new.stoch.round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    assert new.stoch.unflatten(-1, (4, 4)).sum(-1).allclose(torch.ones(2, 4))
    weights = torch.randn_like(new.stoch)
    straight = torch.autograd.grad((new.stoch * weights).sum(), features, retain_graph=True)[0]
    through = torch.autograd.grad((log_probs.exp().flatten(-2) * weights).sum(), features)[0]
    torch.testing.assert_close(straight, through)


def test_frames_taken_in_together_equal_one_after_another() -> None:
    """States and gradients do not depend on how many frames the recurrence takes in at a time."""
    model = make_world_model()
    torch.manual_seed(0)
    actions, features, uniform = (
        torch.randn(2, 11, ACTIONS),
        torch.randn(2, 11, model.encoder.num_features),
        torch.rand(2, 11, 4),
    )
    fresh = torch.rand(2, 11) < 0.2
    results = []
    for length in (11, 4, 1):
        state, deters = model.initial_state(2), []
        for chunk in zip(*(x.split(length, 1) for x in (actions, features, fresh, uniform)), strict=True):
            state, states, log_probs = model.rssm.observe_steps(state, *chunk)
            deters += [states.deter, states.stoch, log_probs.flatten(2)]
        found = [torch.cat(deters[i::3], 1) for i in range(3)]
        gradients = torch.autograd.grad(found[0].square().sum() + found[2].sum(), list(model.rssm.cell.parameters()))
        results.append([*found, *gradients])
    for other in results[1:]:
        # The same operations; only gradients are summed in another order.
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_the_divergence_is_that_of_independent_categoricals() -> None:
    p, q = (torch.randn(3, 4, 5).log_softmax(-1) for _ in range(2))
    independent = [torch.distributions.Independent(torch.distributions.Categorical(logits=x), 1) for x in (p, q)]
    torch.testing.assert_close(kl_divergence(p, q), torch.distributions.kl_divergence(*independent))


def divergence_gradients(model: DreamerWorldModel, name: str) -> dict[str, float]:
    """Norms of the gradients that one of the two divergences gives to prior and posterior."""
    segment = make_stream()
    posterior = model.filter(model.initial_state(2), segment, noise(model, segment))
    # Cut from the recurrence, through which both networks depend on everything.
    posterior = posterior._replace(deter=posterior.deter.detach())
    values, _ = model.losses(posterior, segment)[name]
    model.zero_grad()
    values.sum().backward()
    nets = {"prior": model.rssm.prior, "posterior": model.rssm.posterior}
    norms = {}
    for key, net in nets.items():
        last: Any = net[-1]
        norms[key] = 0.0 if last.weight.grad is None else float(last.weight.grad.norm())
    return norms


def test_each_divergence_trains_its_own_side_only() -> None:
    free = DreamerLossWeights(free_nats=0.0)
    dynamics = divergence_gradients(make_world_model(loss_weights=free), "dynamics")
    assert dynamics["prior"] > 0
    assert dynamics["posterior"] == 0
    representation = divergence_gradients(make_world_model(loss_weights=free), "representation")
    assert representation["posterior"] > 0
    assert representation["prior"] == 0


def test_below_the_free_nats_a_divergence_is_constant() -> None:
    model = make_world_model(loss_weights=DreamerLossWeights(free_nats=100.0))
    for name in ("dynamics", "representation"):
        assert divergence_gradients(model, name) == {"prior": 0.0, "posterior": 0.0}
    segment = make_stream()
    posterior = model.filter(model.initial_state(2), segment, noise(model, segment))
    assert (model.losses(posterior, segment)["dynamics"][0] == 100).all()


# --- segments ---


def test_frames_know_what_they_arrived_with() -> None:
    segment = make_stream(first=(5,))  # 0–4 end an episode of which 4 is the final frame, 5 begins one
    arrivals = Arrivals.of(segment)
    assert arrivals.rewarded[0].tolist() == [False] + [True] * 7
    assert torch.equal(arrivals.rewards[:, 1:5], segment.rewards[:, :4])
    assert arrivals.rewards[0, 5] == 0
    assert arrivals.terminal[0].tolist() == [slot == 4 for slot in range(LENGTH)]
    assert arrivals.last[0].tolist() == [slot == 4 for slot in range(LENGTH)]
    assert arrivals.fresh[0].tolist() == [slot == 5 for slot in range(LENGTH)]
    assert torch.equal(arrivals.actions[:, 1:], segment.actions[:, :-1])


def test_an_end_without_a_final_frame_teaches_nothing() -> None:
    segment = make_stream(first=(5,))
    segment.terminated[:] = 0
    segment.terminated[:, 4] = 1  # at the frame just before the next episode
    assert not Arrivals.of(segment).terminal.any()


@pytest.mark.parametrize("sizes", [RSSM_SIZES, V2_SIZES], ids=["block_gru", "layer_norm_gru"])
def test_a_segment_with_two_episodes_equals_two_segments(sizes: Any) -> None:
    model, cut = make_world_model(rssm=sizes), 3
    segment = make_stream(first=(0, cut))
    uniform = noise(model, segment)
    whole = model.filter(model.initial_state(2), segment, uniform)
    parts = []
    for start, stop in ((0, cut), (cut, LENGTH)):
        piece = segment.slice_time(start, stop)
        parts.append(model.filter(model.initial_state(2), piece, uniform[:, start:stop]))
    for name, field in zip(whole._fields, whole, strict=True):
        assert torch.equal(field, torch.cat([getattr(part, name) for part in parts], 1)), name
    separate = [
        model.losses(part, segment.slice_time(*span))
        for part, span in zip(parts, ((0, cut), (cut, LENGTH)), strict=True)
    ]
    for name, (values, mask) in model.losses(whole, segment).items():
        for index in (0, 1):
            expected = torch.cat([part[name][index] for part in separate], 1)
            torch.testing.assert_close((values, mask)[index], expected, msg=name)


def test_filtering_in_two_pieces_equals_filtering_at_once() -> None:
    model, segment = make_world_model(), make_stream()
    uniform = noise(model, segment)
    whole = model.filter(model.initial_state(2), segment, uniform)
    first = model.filter(model.initial_state(2), segment.slice_time(0, 5), uniform[:, :5])
    state = RSSMState(first.deter[:, -1], first.stoch[:, -1])
    second = model.filter(state, segment.slice_time(5, None), uniform[:, 5:], segment.actions[:, 4])
    torch.testing.assert_close(torch.cat([first.deter, second.deter], 1), whole.deter)


def test_the_loss_weighs_its_terms_and_adds_up_over_parts() -> None:
    weights = DreamerLossWeights(0.5, 2.0, 3.0, 0.7, 0.2, 0.0)
    model, segment = make_world_model(loss_weights=weights), make_stream(4, first=(3,))
    uniform = noise(model, segment)
    posterior = model.filter(model.initial_state(4), segment, uniform)
    loss, _ = model.loss(posterior, segment)
    means = {name: values[mask].mean() for name, (values, mask) in model.losses(posterior, segment).items()}
    expected = sum(getattr(weights, name) * mean for name, mean in means.items())
    torch.testing.assert_close(loss, expected)
    parts = [
        model.loss(type(posterior)(*(x[rows] for x in posterior)), segment.select(rows), segment)[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), loss)


def test_targets_are_frames_rewards_and_discounted_continuation() -> None:
    model, segment = make_world_model(), make_stream(first=(5,))
    posterior = model.filter(model.initial_state(2), segment, noise(model, segment))
    losses, arrivals = model.losses(posterior, segment), Arrivals.of(segment)
    frames = model.decoder(posterior.deter.flatten(0, 1), posterior.stoch.flatten(0, 1)).view(segment.frames.shape)
    torch.testing.assert_close(losses["image"][0], (frames - to_float(segment.frames)).square().sum((2, 3, 4)))
    _, continues = model.predict(posterior.features)
    target = model.discount * (~arrivals.terminal).float()
    torch.testing.assert_close(losses["continuation"][0], F.binary_cross_entropy(continues, target, reduction="none"))
    rewards = model.reward_codec.cross_entropy(model.reward(posterior.features), arrivals.rewards)
    torch.testing.assert_close(losses["reward"][0], rewards)


# --- the interface ---


def test_the_first_predictions_are_zero_rewards() -> None:
    model = make_world_model()
    _, prediction = model.step(model.initial_state(3), torch.tensor([0, 1, 2]))
    assert prediction.reward.tolist() == [0.0] * 3
    assert prediction.end_logits.shape == (3, 2)
    torch.testing.assert_close(prediction.end_logits.exp().sum(-1), torch.ones(3))


def test_observing_equals_filtering_with_the_same_random_numbers() -> None:
    model, segment = make_world_model(), make_stream()
    torch.manual_seed(5)
    state, inputs = model.observe(model.initial_state(2), segment)
    torch.manual_seed(5)
    expected = model.filter(model.initial_state(2), segment, torch.rand(2, LENGTH, 4))
    assert torch.equal(inputs, expected.features)
    assert torch.equal(model.actor_input(state), inputs[:, -1])
    assert model.actor_input_space.shape == inputs.shape[2:]


def test_given_latents_are_taken() -> None:
    model = make_world_model()
    latents = torch.randint(0, 4, (3, 4))
    state, _ = model.step(model.initial_state(3), torch.tensor([0, 1, 2]), latents)
    assert torch.equal(state.stoch.view(3, 4, 4).argmax(-1), latents)
    sampled, _ = model.step(model.initial_state(3), torch.tensor([0, 1, 2]))
    assert torch.equal(state.deter, sampled.deter)


def test_padding_does_not_matter() -> None:
    model, segment = make_world_model(), make_stream()
    padded = segment._replace(mask=segment.mask.clone(), is_first=segment.is_first.clone())
    padded.mask[:, :3], padded.is_first[:, :3], padded.is_first[:, 3] = False, False, True
    other = padded._replace(frames=padded.frames.clone(), rewards=padded.rewards.clone())
    other.frames[:, :3], other.rewards[:, :3] = 7, 99.0
    results = []
    for each in (padded, other):
        torch.manual_seed(0)
        means = model.evaluate(each).means
        results.append({name: (float(mean.total), float(mean.weight)) for name, mean in means.items()})
    assert results[0] == results[1]
    assert results[0]["prior_kl"][1] == 2 * (LENGTH - 3)


def test_half_precision_computes_nearly_the_same() -> None:
    model, segment = make_world_model(), make_stream()
    uniform = noise(model, segment)
    exact, _ = model.loss(model.filter(model.initial_state(2), segment, uniform), segment)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.filter(model.initial_state(2), segment, uniform)
        loss, _ = model.loss(posterior, segment)
    assert all(field.dtype == torch.float32 for field in posterior)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


# --- sizes ---


@pytest.mark.parametrize(("units", "millions"), [(256, 10.5), (384, 23.5), (512, 41.7), (768, 93.5), (1024, 166.0)])
def test_sizes_are_those_of_the_documentation(units: int, millions: float) -> None:
    with torch.device("meta"):
        model = DreamerWorldModel((64, 64), 17, units)
        actor_critic = FeatureActorCritic(model.num_features, 17, 0.9, units)
    total = sum(p.numel() for module in (model, actor_critic) for p in module.parameters() if p.requires_grad)
    assert round(total / 1e6, 1) == millions


def test_frames_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\.multipliers has 4 stages"):
        ImageEncoder((24, 24), 4, ImageConfig(), "silu")
    with pytest.raises(ValueError, match=r"images\.strided"):
        StridedEncoder(SIZE, 4, "elu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rssm": dataclasses.replace(RSSM_SIZES, blocks=3)}, "rssm.blocks is 3"),
        ({"units": 8, "rssm": RSSMConfig(deter=16)}, "units is 8"),
        ({"discount": 0.0}, "discount is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_world_model(**changes)


@pytest.mark.parametrize(("name", "value"), [("latents", 0), ("classes", 1), ("blocks", 0), ("unimix", 1.0)])
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        RSSMConfig(**{name: value})


def test_dreamer_v2_images_have_the_size_of_frames() -> None:
    frames = torch.rand(2, 3, 64, 64)
    encoder = StridedEncoder((64, 64), 4, "elu")
    assert encoder(frames).shape == (2, encoder.num_features)
    assert StridedDecoder(8, 6, 4, "elu")(torch.randn(2, 8), torch.randn(2, 6)).shape == frames.shape
