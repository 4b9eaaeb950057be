"""Random trajectories for the tests of the actor-critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.actor_critic.batch import Rollout
from delta_iris.actor_critic.module import ActorCritic
from tests.helpers import ACTIONS, SIZE, make_actor_critic

PICTURE, VECTOR = (3, *SIZE), (7,)


def make_vector_actor_critic(**changes: Any) -> ActorCritic:
    """An actor-critic that sees vectors, with arguments changed and heads that are not zero."""
    torch.manual_seed(2)
    options: dict[str, Any] = {"lstm_size": 16, "burn_in": 3, "horizon": 5}
    actor_critic = ActorCritic(VECTOR, ACTIONS, **(options | changes))
    for network in (actor_critic.network, actor_critic.target):
        for head in (network.actor, network.critic):
            torch.nn.init.normal_(head.weight, std=0.3)
    return actor_critic


def with_head_layers(make: Callable[..., ActorCritic], **changes: Any) -> ActorCritic:
    """An actor-critic with residual layers in its heads that are not the identity."""
    actor_critic = make(head_layers=2, head_units=24, **changes)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for network in (actor_critic.network, actor_critic.target):
            for p in [*network.actor_mlp.parameters(), *network.critic_mlp.parameters()]:
                p.copy_(torch.randn(p.shape, generator=generator))
    return actor_critic


MAKERS: list[tuple[Callable[..., ActorCritic], tuple[int, ...]]] = [
    (make_actor_critic, PICTURE),
    (make_vector_actor_critic, VECTOR),
]
"""Makers of actor-critics, and the shape of an observation of each."""


def make_rollout(
    actor_critic: ActorCritic,
    batch: int = 4,
    terminated: Tensor | None = None,
    input_shape: tuple[int, ...] = PICTURE,
) -> Rollout:
    """Random trajectories, by default without an end."""
    generator = torch.Generator().manual_seed(0)
    horizon, burn_in = actor_critic.horizon, actor_critic.burn_in
    return Rollout(
        torch.rand(batch, burn_in + horizon + 1, *input_shape, generator=generator),
        torch.ones(batch, burn_in, dtype=torch.bool),
        torch.randint(0, ACTIONS, (batch, horizon), generator=generator),
        torch.randn(batch, horizon, generator=generator),
        torch.zeros(batch, horizon, dtype=torch.int64) if terminated is None else terminated,
    )
