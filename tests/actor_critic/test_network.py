"""Tests of the actor-critic's network: memory, burn-in and the critic's gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.actor_critic.network import ActorCriticNetwork
from delta_iris.nn.cnn import FrameEncoder, MLPEncoder
from tests.actor_critic.actor_critic_helpers import MAKERS
from tests.helpers import SMALL_CNN

for_pictures_and_vectors = pytest.mark.parametrize(("make", "input_shape"), MAKERS, ids=["picture", "vector"])


@for_pictures_and_vectors
def test_burn_in_ignores_padding_and_remembers_observations(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...]
) -> None:
    network, inputs = make().network, torch.rand(2, 3, *input_shape)
    mask = torch.tensor([[False, False, True], [True, True, True]])
    hidden, cell = network.burn_in(inputs, mask)
    changed = inputs.clone()
    changed[0, :2] = 0
    assert torch.equal(hidden, network.burn_in(changed, mask)[0])
    _, _, (expected_hidden, expected_cell) = network(inputs[:1, 2:], network.initial_memory(1))
    # One convolution over two frames and one over six may round differently.
    torch.testing.assert_close(hidden[:, :1], expected_hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cell[:, :1], expected_cell, atol=1e-6, rtol=1e-5)
    changed[1, 0] = 0
    assert not torch.equal(hidden[:, 1], network.burn_in(changed, mask)[0][:, 1])


@for_pictures_and_vectors
def test_steps_equal_the_whole_sequence(make: Callable[..., ActorCritic], input_shape: tuple[int, ...]) -> None:
    network, inputs = make().network, torch.rand(2, 6, *input_shape)
    logits, values, final_memory = network(inputs, network.initial_memory(2))
    memory = network.initial_memory(2)
    for t in range(6):
        step_logits, step_values, memory = network(inputs[:, t : t + 1], memory)
        torch.testing.assert_close(step_logits[:, 0], logits[:, t], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(step_values[:, 0], values[:, t], atol=1e-6, rtol=1e-5)
    for found, expected in zip(memory, final_memory, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
@for_pictures_and_vectors
def test_the_critics_gradient_into_shared_layers_is_scaled(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...], scale: float
) -> None:
    network = make().network
    inputs, gradients = torch.rand(2, 4, *input_shape), []
    for network.critic_grad_scale in (1.0, scale):
        logits, values, _ = network(inputs, network.initial_memory(2))
        shared = [*network.encoder.parameters(), *network.lstm.parameters()]
        gradients.append(torch.autograd.grad(values.square().sum(), shared, retain_graph=True))
        actor = torch.autograd.grad(logits.square().sum(), shared)
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(part, scale * whole, atol=1e-6, rtol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in actor)


@for_pictures_and_vectors
def test_head_layers_are_the_identity_at_first_and_learn(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...]
) -> None:
    plain, deep = make().network, make(head_layers=2, head_units=24).network
    deep.load_state_dict(plain.state_dict(), strict=False)
    inputs = torch.rand(2, 4, *input_shape)
    expected, found = (network(inputs, network.initial_memory(2)) for network in (plain, deep))
    torch.testing.assert_close(found[:2], expected[:2])
    heads = [*deep.actor_mlp.parameters(), *deep.critic_mlp.parameters()]
    optimizer = torch.optim.SGD(heads, lr=0.1)
    for _ in range(2):  # the first step moves only the last layer of each block
        logits, values, _ = deep(inputs, deep.initial_memory(2))
        optimizer.zero_grad()
        (logits.square().sum() + values.square().sum()).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in heads)


def test_pictures_get_a_cnn_and_vectors_an_mlp() -> None:
    pictures = ActorCriticNetwork((3, 32, 16), 5, 11, 16, SMALL_CNN, 1.0)
    assert isinstance(pictures.encoder, FrameEncoder)
    assert pictures(torch.rand(2, 4, 3, 32, 16), pictures.initial_memory(2))[0].shape == (2, 4, 5)
    vectors = ActorCriticNetwork((7,), 5, 11, 16, SMALL_CNN, 1.0)
    assert isinstance(vectors.encoder, MLPEncoder)
    logits, values, memory = vectors(torch.rand(2, 4, 7), vectors.initial_memory(2))
    assert (logits.shape, values.shape) == ((2, 4, 5), (2, 4, 11))
    assert memory[0].shape == memory[1].shape == (1, 2, 16)


@pytest.mark.parametrize("input_shape", [(), (32, 32), (2, 3, 32, 32)])
def test_invalid_input_shapes_raise(input_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="input_shape is"):
        ActorCriticNetwork(input_shape, 5, 11, 16, SMALL_CNN, 1.0)
