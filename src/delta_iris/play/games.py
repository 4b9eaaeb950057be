"""One game in the real environment, and one in the world model; both one step at a time."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.actor_critic.network import Memory
from delta_iris.actor_critic.policy import FramePolicy
from delta_iris.data.segment import SegmentBatch, to_float, to_images
from delta_iris.imagination.policy import Actor
from delta_iris.nn.sampling import sample_categorical
from delta_iris.pretrained import Agent
from delta_iris.world_models.base import WorldModel

__all__ = ["ImaginedGame", "PolicyOutput", "RealGame"]

Frame = NDArray[np.uint8]


class PolicyOutput(NamedTuple):
    """What the actor-critic makes of an observation.

    Attributes:
        logits: (1, A) of the actions.
        value: the expected discounted return from here on.
        memory: of the actor-critic, after the observation.
    """

    logits: Tensor
    value: float
    memory: Memory

    @property
    def probabilities(self) -> list[float]:
        """Of the A actions."""
        values: list[float] = self.logits[0].softmax(-1).tolist()
        return values

    def sample(self) -> int:
        """Sample an action."""
        return int(sample_categorical(self.logits))


@torch.no_grad()
def _evaluate(actor_critic: Actor, inputs: Tensor, memory: Memory) -> PolicyOutput:
    """Show an observation (1, *input_shape) to the actor-critic."""
    logits, values, memory = actor_critic.evaluate(inputs, memory)
    return PolicyOutput(logits, float(values), memory)


class RealGame:
    """An agent's environment, and what the agent thinks of its frames.

    Args:
        agent: its configuration names the environment.

    Attributes:
        env: the environment.
        actor_critic: the agent's.
        frame: (H, W, 3) uint8, the present one.
        step_count: steps of the episode.
        reward: of the last step.
        total: sum of the episode's rewards.
        ended: why the episode is over, `terminated` or `truncated`; None while it goes on.
        info: what the environment says of itself.
        output: the actor-critic's, at the present frame.

    Raises:
        UserError: if the environment cannot be made, or the agent is of another one.
    """

    frame: Frame
    output: PolicyOutput

    def __init__(self, agent: Agent) -> None:
        self.env = agent.make_env()
        self._world_model, self._context = agent.world_model, agent.system.context
        policy: Any = agent.system.make_policy()
        self.actor_critic: Actor = policy.actor_critic
        # Other policies see what the world model makes of the frames.
        self._perceive = policy.perceive if isinstance(policy, FramePolicy) else None
        self._frames: deque[Frame] = deque(maxlen=self._context)
        self._actions: deque[int] = deque(maxlen=max(1, self._context - 1))
        self._filtered: Any = None
        self._tokens: tuple[int, list[int] | None] = 0, None
        self.step_count, self.reward, self.total = 0, 0.0, 0.0
        self.ended: str | None = None
        self.info: dict[str, Any] = {}

    def reset(self, seed: int) -> None:
        """Start an episode.

        Args:
            seed: of the environment.
        """
        frame, self.info = self.env.reset(seed=seed)
        self._frames.clear()
        self._actions.clear()
        self._tokens = 0, None
        self.step_count, self.reward, self.total, self.ended = 0, 0.0, 0.0, None
        if self._perceive is None:
            assert self._world_model is not None
            self._filtered = self._world_model.initial_state(1)
        self._see(np.asarray(frame), self.actor_critic.initial_memory(1))

    def step(self, action: int) -> None:
        """Act in the environment.

        Args:
            action: its number.
        """
        frame, reward, terminated, truncated, self.info = self.env.step(action)
        self.step_count += 1
        self.reward = float(reward)
        self.total += self.reward
        self.ended = "terminated" if terminated else "truncated" if truncated else None
        self._actions.append(action)
        self._see(np.asarray(frame), self.output.memory)

    def segment(self, length: int | None = None) -> SegmentBatch:
        """The last steps up to the present frame, B = 1, without rewards.

        Args:
            length: number of steps, fewer at an episode's start; None for all that the agent acts on.
        """
        frames = list(self._frames)[-(length or self._context) :]
        actions = list(self._actions)[len(self._actions) + 1 - len(frames) :]
        segment = SegmentBatch.from_numpy(np.stack(frames), [*actions, 0])
        segment.is_first[:, 0] = len(frames) == self.step_count + 1
        return segment

    def tokens(self) -> list[int] | None:
        """The world model's tokens of the last transition; None at an episode's start or where it has none."""
        if self._world_model is None or self.step_count == 0:
            return None
        # Encoded once a step, at the first request, and without drawing any of the game's random numbers.
        if self._tokens[0] != self.step_count:
            with torch.random.fork_rng(devices=[]):
                state, _ = self._world_model.observe(self._world_model.initial_state(1), self.segment(2))
            self._tokens = self.step_count, _tokens(self._world_model, state)
        return self._tokens[1]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _see(self, frame: Frame, memory: Memory) -> None:
        self.frame = frame
        self._frames.append(frame)
        segment = self.segment(1)
        if self._perceive is not None:
            inputs = self._perceive(to_float(segment.frames))[:, 0]
        else:
            assert self._world_model is not None
            last_action = torch.tensor([self._actions[-1]]) if self._actions else None
            self._filtered, sequence = self._world_model.observe(self._filtered, segment, last_action)
            inputs = sequence[:, -1]
        self.output = _evaluate(self.actor_critic, inputs, memory)


class ImaginedGame:
    """A game that goes on in the world model from where a real one stands.

    Args:
        agent: an agent with a world model.
        start: the real game, which stays as it is.

    Attributes:
        frame: (H, W, 3) uint8, the present one; real at first.
        step_count: imagined steps.
        reward: predicted for the last step.
        total: sum of the predicted rewards.
        end_probability: predicted for the last step.
        ended: `terminated` once an end was sampled; None while the game goes on.
        output: the actor-critic's, at the present frame.
    """

    def __init__(self, agent: Agent, start: RealGame) -> None:
        assert agent.world_model is not None
        self._model: WorldModel[Any] = agent.world_model
        self._actor_critic = start.actor_critic
        self._state, _ = self._model.observe(self._model.initial_state(1), start.segment())
        self.frame, self.output = start.frame, start.output
        self.step_count, self.reward, self.total, self.end_probability = 0, 0.0, 0.0, 0.0
        self.ended: str | None = None

    def step(self, action: int) -> None:
        """Imagine one step.

        Args:
            action: its number.
        """
        self._state, prediction = self._model.step(self._state, torch.tensor([action]))
        self.step_count += 1
        self.reward = float(prediction.reward)
        self.total += self.reward
        self.end_probability = float(prediction.end_logits[0].softmax(-1)[1])
        self.ended = "terminated" if int(sample_categorical(prediction.end_logits)) else None
        self.frame = to_images(self._model.decode(self._state))[0]
        self.output = _evaluate(self._actor_critic, self._model.actor_input(self._state), self.output.memory)

    def tokens(self) -> list[int] | None:
        """The tokens of the last step; None where the world model has none."""
        return _tokens(self._model, self._state)


def _tokens(world_model: WorldModel[Any], state: Any) -> list[int] | None:
    tokens = world_model.tokens(state)
    if tokens is None:
        return None
    values: list[int] = tokens[0].tolist()
    return values
