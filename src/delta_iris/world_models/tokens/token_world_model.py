"""The world model as an environment: reset from real frames, step by actions (paper §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.acceleration.side_stream import beside
from delta_iris.actor_critic.module import Agent, ImaginedWindow
from delta_iris.data.segment import Window, to_float
from delta_iris.nn.sampling import sample
from delta_iris.world_models.tokens.dynamics import WorldModel
from delta_iris.world_models.tokens.dynamics_network import DynamicsCache
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["Imagination"]


class Imagination:
    """B imagined trajectories, stepped together.

    The caches of the dynamics and of the decoder hold at most a training window; when it is full they start anew from
    the last `context` frames, so imagination may go on for ever.

    Args:
        tokenizer: encodes the real frames, paints the imagined ones.
        world_model: predicts tokens, rewards and ends.
        context: frames that the caches start anew from, 2 or more.
    """

    def __init__(self, tokenizer: Tokenizer, world_model: WorldModel, context: int = 6) -> None:
        self.tokenizer, self.world_model, self.context = tokenizer, world_model, context
        # The trajectory so far, a tensor a step: frames (B, 3, H, W) and which are real (B,); actions (B,) and tokens
        # (B, K) of the transitions between them.
        self._frames: list[Tensor]
        self._valid: list[Tensor]
        self._actions: list[Tensor]
        self._tokens: list[Tensor]
        self._dynamics: DynamicsCache
        self._decoder: Any
        # What dynamics and decoder see of the last frame, where they have begun to look at it.
        self._seen: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None = None

    @torch.no_grad()
    def reset(self, window: Window) -> Tensor:
        """Start from real steps; their last frame is the first to act on (its recorded action is not used).

        Args:
            window: B windows of T ≥ 1 steps whose last frames are real.

        Returns:
            that frame, (B, 3, H, W) floats in [0, 1].
        """
        frames = to_float(window.frames)
        tokens = self.tokenizer.encode(frames, window.actions, window.valid)
        self._seen = None
        self._frames, self._valid = list(frames.unbind(1)), list(window.valid.unbind(1))
        self._actions, self._tokens = list(window.actions[:, :-1].unbind(1)), list(tokens.unbind(1))
        self._fill_caches(frames[:, :-1], window.actions[:, :-1], tokens, window.valid)
        return self._frames[-1]

    def _fill_caches(self, past: Tensor, actions: Tensor, tokens: Tensor, valid: Tensor) -> None:
        """Write the known past, all of it before the frame to act on, into fresh caches."""
        self._dynamics = self.world_model.dynamics.start(past, actions, tokens, valid[:, :-1])
        self._decoder = self.tokenizer.start_decoding(len(past))
        if past.shape[1] > 0:
            codes = self.tokenizer.quantizer.lookup(tokens)
            self.tokenizer.decode(past, actions, codes, valid[:, :-1] & valid[:, 1:], self._decoder)

    @torch.no_grad()
    def look(self) -> None:
        """Begin to look at the last frame, beside whatever follows before the next `step`, which does it otherwise."""
        frame, look_on, look_back = self._frames[-1], self.world_model.dynamics.look, self.tokenizer.look
        self._seen = (
            beside(lambda: look_on(frame), frame.device, 0),
            beside(lambda: look_back(frame.unsqueeze(1)), frame.device, 1),
        )

    @torch.no_grad()
    def step(self, actions: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Act, (B,) int64.

        Args:
            actions: (B,) int64.
            tokens: (B, K) int64 to take for the transition's tokens; sampled where None.

        Returns:
            the next frame (B, 3, H, W) floats clamped to [0, 1], the reward (B,) and whether the episode ended (B,)
            int64. What follows an end means nothing.
        """
        if len(self._frames) > self.tokenizer.max_transitions:
            self._forget()
        if self._seen is None:
            self.look()
        assert self._seen is not None
        (seen_ahead, seen_back), self._seen = self._seen, None
        dynamics, frame = self.world_model.dynamics, self._frames[-1]
        token_logits, reward_logits, end_logits = dynamics.act(seen_ahead(), actions, self._dynamics)
        chosen: list[Tensor] = []
        for k in range(self.tokenizer.tokens_per_frame):
            if k > 0:
                token_logits = dynamics.next_token(chosen[-1], self._dynamics)
            chosen.append(sample(token_logits) if tokens is None else tokens[:, k])
        dynamics.finish(chosen[-1], self._dynamics)
        transition, real = torch.stack(chosen, dim=1), torch.ones_like(actions, dtype=torch.bool)
        painted = self.tokenizer.decode(
            frame.unsqueeze(1),
            actions.unsqueeze(1),
            self.tokenizer.quantizer.lookup(transition).unsqueeze(1),
            real.unsqueeze(1),
            self._decoder,
            seen_back(),
        )
        next_frame = painted[:, 0].float().clamp(0, 1)
        self._frames.append(next_frame)
        self._valid.append(real)
        self._actions.append(actions)
        self._tokens.append(transition)
        return next_frame, self.world_model.rewards.mean(reward_logits), sample(end_logits)

    def _forget(self) -> None:
        """Keep the last frames alone, and the transitions between them."""
        self._frames, self._valid = self._frames[-self.context :], self._valid[-self.context :]
        between = len(self._actions) + 1 - self.context
        self._actions, self._tokens = self._actions[between:], self._tokens[between:]
        past = torch.stack(self._frames, 1)[:, :-1]
        actions, tokens = torch.stack(self._actions, 1), torch.stack(self._tokens, 1)
        self._fill_caches(past, actions, tokens, torch.stack(self._valid, 1))

    @torch.no_grad()
    def rollout(self, agent: Agent, window: Window) -> ImaginedWindow:
        """Let the agent act for its horizon, starting from real windows of burn-in + 1 steps."""
        frame = self.reset(window)
        burn_in = to_float(window.frames[:, :-1])
        state = agent.network.burn_in(burn_in, window.valid[:, :-1])
        actions, rewards, ends = [], [], []
        for _ in range(agent.horizon):
            # Three CNNs look at the same frame at the same time: the agent's too.
            self.look()
            action, state = agent.act(frame, state)
            frame, reward, end = self.step(action)
            actions.append(action)
            rewards.append(reward)
            ends.append(end)
        return ImaginedWindow(
            torch.stack(self._frames, 1),
            window.valid[:, :-1],
            torch.stack(actions, 1),
            torch.stack(rewards, 1),
            torch.stack(ends, 1),
        )
