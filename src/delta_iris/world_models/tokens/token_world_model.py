"""A tokenizer and token dynamics as one world model (paper §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from delta_iris.acceleration.side_stream import run_on_side_stream
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.sampling import sample_categorical
from delta_iris.world_models.base import Evaluation, Prediction, WorldModel
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.dynamics_network import DynamicsCache
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["TokenState", "TokenWorldModel"]


@dataclass
class TokenState:
    """B trajectories so far, and the caches that hold them.

    Attributes:
        frames: (B, 3, H, W) floats in [0, 1], a tensor for each step: real frames, then imagined ones.
        mask: (B,) bool, which frames are real, a tensor for each step.
        actions: (B,) int64, a tensor for each transition.
        tokens: (B, K) int64, a tensor for each frame but the first `Tokenizer.context_frames`.
        seen: (B, 3, H, W) what the actor-critic sees of the last frame; None before the first.
        dynamics: cache of the dynamics; None before the first frame.
        decoder: cache of the tokenizer's decoder.
        prefetched: features of the last frame for the dynamics and for the decoder, once `prefetch` was called; None
            where either needs none.
    """

    frames: list[Tensor] = field(default_factory=list)
    mask: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    seen: Tensor | None = None
    dynamics: DynamicsCache | None = None
    decoder: Any = None
    prefetched: tuple[Callable[[], Tensor | None], Callable[[], Tensor | None]] | None = None


class TokenWorldModel(WorldModel[TokenState]):
    """Imagines with the dynamics, which predict tokens, and the tokenizer, which decodes them to frames.

    The caches hold at most one training segment. When they are full they are refilled from the last `context` frames,
    so that imagination may continue indefinitely.

    Args:
        tokenizer: encodes real frames and decodes imagined ones.
        dynamics: predicts tokens, rewards and ends.
        frame_size: height and width of a frame, in pixels.
        context: frames that the caches are refilled from, at least 2 and fewer than the tokenizer's longest segment.

    Raises:
        ValueError: if `context` is out of range, or the dynamics are made for tokens of another kind.
    """

    headlines: ClassVar[dict[str, str]] = WorldModel.headlines | {"dynamics_loss": "dynamics loss"}

    def __init__(
        self, tokenizer: Tokenizer, dynamics: BaseDynamics, frame_size: tuple[int, int], context: int = 6
    ) -> None:
        if not 2 <= context <= tokenizer.max_transitions:
            raise ValueError(f"context is {context}: it must be at least 2 and at most {tokenizer.max_transitions}")
        if tokenizer.context_frames != dynamics.context_frames:
            raise ValueError(
                f"{type(dynamics).__name__} does not fit {type(tokenizer).__name__}: one has tokens of transitions, "
                "the other of frames"
            )
        self.tokenizer, self.dynamics, self.context = tokenizer, dynamics, context
        self.actor_input_space = gym.spaces.Box(0.0, 1.0, (3, *frame_size), np.float32)

    def initial_state(self, batch: int) -> TokenState:
        """See `WorldModel.initial_state`."""
        return TokenState()

    @torch.no_grad()
    def observe(
        self, state: TokenState, segment: SegmentBatch, last_action: Tensor | None = None
    ) -> tuple[TokenState, Tensor]:
        """See `WorldModel.observe`. Frames that follow others are encoded with the last `context` frames before them.

        Raises:
            ValueError: if frames follow others and `last_action` is missing.
        """
        inputs = to_float(segment.frames)
        # Contiguous like imagined frames: each layout in memory would be compiled.
        frames = [frame.contiguous() for frame in inputs.unbind(1)]
        mask, actions = list(segment.mask.unbind(1)), list(segment.actions.unbind(1))
        if state.frames:
            if last_action is None:
                raise ValueError("last_action is needed: the action that led to the segment's first frame")
            frames = state.frames[-self.context :] + frames
            mask = state.mask[-self.context :] + mask
            known = state.actions[max(0, len(state.actions) + 1 - self.context) :]
            actions = [*known, last_action, *actions]
            longest = self.tokenizer.max_transitions + 1
            frames, mask, actions = frames[-longest:], mask[-longest:], actions[-longest:]
        window = inputs if len(frames) == inputs.shape[1] else torch.stack(frames, 1)
        all_actions, all_mask = torch.stack(actions, 1), torch.stack(mask, 1)
        tokens = self.tokenizer.encode(window, all_actions, all_mask)
        seen = self.tokenizer.perceive(inputs, tokens[:, -inputs.shape[1] :])
        new = TokenState(frames, mask, actions[:-1], list(tokens.unbind(1)), seen[:, -1])
        self._fill_caches(new, window[:, :-1], all_actions[:, :-1], tokens, all_mask)
        return new, seen

    def actor_input(self, state: TokenState) -> Tensor:
        """See `WorldModel.actor_input`: the last frame as the tokenizer perceives it."""
        assert state.seen is not None
        return state.seen

    def decode(self, state: TokenState) -> Tensor:
        """See `WorldModel.decode`: the last frame as the tokenizer perceives it."""
        return self.actor_input(state)

    def tokens(self, state: TokenState) -> Tensor | None:
        """See `WorldModel.tokens`; None at a first frame where tokens are those of transitions."""
        return state.tokens[-1] if state.tokens else None

    @torch.no_grad()
    def prefetch(self, state: TokenState) -> None:
        """Start encoding the current frame on side streams; see `WorldModel.prefetch`."""
        frame = state.frames[-1]
        for_dynamics, for_decoder = self.dynamics.network.encode_frame, self.tokenizer.encode_frame
        state.prefetched = (
            run_on_side_stream(lambda: for_dynamics(frame), frame.device, 0),
            run_on_side_stream(lambda: for_decoder(frame.unsqueeze(1)), frame.device, 1),
        )

    @torch.no_grad()
    def step(self, state: TokenState, action: Tensor, latents: Tensor | None = None) -> tuple[TokenState, Prediction]:
        """See `WorldModel.step`.

        Args:
            state: the present state, which is changed in place.
            action: (B,) int64.
            latents: (B, K) int64 tokens of the transition; sampled where None.
        """
        if len(state.frames) > self.tokenizer.max_transitions:
            self._restart_caches(state)
        state.seen, tokens, reward_logits, end_logits = self._imagine(state, action, latents)
        state.frames.append(state.seen)
        state.mask.append(torch.ones_like(action, dtype=torch.bool))
        state.actions.append(action)
        state.tokens.append(tokens)
        return state, Prediction(self.dynamics.reward_codec.mean(reward_logits), end_logits)

    @torch.no_grad()
    def restart(self, state: TokenState, rows: Tensor, segment: SegmentBatch) -> TokenState:
        """See `WorldModel.restart`. Episodes are aligned at their last frames; padding precedes the shorter ones."""
        fresh, _ = self.observe(self.initial_state(len(rows)), segment)
        assert state.seen is not None
        assert fresh.seen is not None

        def replaced(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
            return _replace_rows(old, new, rows, len(state.mask[-1]))

        aligned = TokenState(
            replaced(state.frames, fresh.frames),
            replaced(state.mask, fresh.mask),
            replaced(state.actions, fresh.actions),
            replaced(state.tokens, fresh.tokens),
            state.seen.index_copy(0, rows, fresh.seen),
        )
        self._refill_caches(aligned)
        return aligned

    @torch.no_grad()
    def reconstruct(self, segment: SegmentBatch) -> Tensor:
        """See `WorldModel.reconstruct`."""
        return self.tokenizer.reconstruct(segment).frames[:, 1 - self.tokenizer.context_frames :]

    @torch.no_grad()
    def evaluate(self, segment: SegmentBatch) -> Evaluation:
        """See `WorldModel.evaluate`: `reconstruction_…` of the tokenizer and `dynamics_…`; see their `evaluate`."""
        errors, tokens = self.tokenizer.evaluate(segment)
        means = {name if name == "copy_l2" else f"reconstruction_{name}": value for name, value in errors.items()}
        predictions = self.dynamics.evaluate(segment, tokens)
        means |= {f"dynamics_{name}": value for name, value in predictions.items()}
        codes = tokens[self.tokenizer.token_mask(segment)].flatten().bincount(minlength=self.tokenizer.codebook_size)
        return Evaluation(means, codes)

    def summarize(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `WorldModel.summarize`: adds `…_psnr` in decibels, `dynamics_token_perplexity` and `dynamics_loss`."""
        values = dict(means)
        for name in ("reconstruction", "copy"):
            if f"{name}_l2" in values:
                # Frames that are equal to the bit would have an infinite ratio.
                values[f"{name}_psnr"] = -10 * values[f"{name}_l2"].clamp(min=1e-10).log10()
        if "dynamics_token_loss" in values:
            values["dynamics_token_perplexity"] = values["dynamics_token_loss"].exp()
        losses = [f"dynamics_{part}_loss" for part in ("token", "reward", "end")]
        if any(name in values for name in losses):
            values["dynamics_loss"] = torch.stack([values[name] for name in losses if name in values]).sum()
        return values

    def _imagine(
        self, state: TokenState, action: Tensor, latents: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict what follows from the actions, and write it to the caches; arguments as for `step`.

        Returns:
            the next frame (B, 3, H, W) in [0, 1], its tokens (B, K), and logits of the reward's bins and of the end.
        """
        if state.prefetched is None:
            self.prefetch(state)
        assert state.prefetched is not None
        assert state.dynamics is not None
        (dynamics_features, decoder_features), state.prefetched = state.prefetched, None
        network, quantizer, frame = self.dynamics.network, self.tokenizer.quantizer, state.frames[-1]
        token_logits, reward_logits, end_logits = network.predict_first_token(
            dynamics_features(), action, state.dynamics
        )
        chosen: list[Tensor] = []
        for k in range(self.tokenizer.tokens_per_frame):
            if k > 0:
                token_logits = network.predict_next_token(chosen[-1], state.dynamics)
            chosen.append(sample_categorical(token_logits) if latents is None else latents[:, k])
        network.end_block(chosen[-1], state.dynamics)
        tokens, real = torch.stack(chosen, dim=1), torch.ones_like(action, dtype=torch.bool)
        decoded = self.tokenizer.decode(
            frame.unsqueeze(1),
            action.unsqueeze(1),
            quantizer.lookup(tokens).unsqueeze(1),
            real.unsqueeze(1),
            state.decoder,
            decoder_features(),
        )
        return decoded[:, 0].float().clamp(0, 1).contiguous(), tokens, reward_logits, end_logits

    def _fill_caches(self, state: TokenState, past: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> None:
        """Write all transitions before the last frame to fresh caches.

        Args:
            state: whose caches are replaced.
            past: (B, T − 1, 3, H, W) all frames but the last.
            actions: (B, T − 1) int64.
            tokens: (B, T − context_frames, K) int64.
            mask: (B, T) bool.
        """
        state.dynamics = self._fill_dynamics(past, actions, tokens, mask[:, :-1])
        state.decoder = self.tokenizer.make_decoder_cache(len(past))
        # The frames are known: they are decoded only to fill the cache.
        if past.shape[1] > 0 and state.decoder is not None:
            codes = self.tokenizer.quantizer.lookup(tokens)
            self.tokenizer.decode(past, actions, codes, mask[:, :-1] & mask[:, 1:], state.decoder)

    def _fill_dynamics(self, past: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsCache:
        """The cache of the dynamics; see `DynamicsNetwork.prefill`."""
        return self.dynamics.network.prefill(past, actions, tokens, mask)

    def _restart_caches(self, state: TokenState) -> None:
        """Forget all but the last `context` frames and the transitions between them."""
        state.frames, state.mask = state.frames[-self.context :], state.mask[-self.context :]
        first = len(state.actions) + 1 - self.context
        state.actions, state.tokens = state.actions[first:], state.tokens[first:]
        self._refill_caches(state)

    def _refill_caches(self, state: TokenState) -> None:
        """Write a state's frames, actions and tokens to fresh caches.

        Raises:
            ValueError: if there is one frame only.
        """
        if not state.actions:
            raise ValueError("an episode of one frame cannot start anew: give segments of two frames or more")
        past = torch.stack(state.frames, 1)[:, :-1]
        actions, tokens = torch.stack(state.actions, 1), torch.stack(state.tokens, 1)
        self._fill_caches(state, past, actions, tokens, torch.stack(state.mask, 1))


def _replace_rows(old: list[Tensor], new: list[Tensor], rows: Tensor, batch: int) -> list[Tensor]:
    """Replace `rows` of `batch` histories by new ones, aligned at their ends, with zeros before the shorter ones."""
    result = []
    for t in range(-max(len(old), len(new)), 0):
        like = old[t] if -t <= len(old) else new[t]
        before = old[t] if -t <= len(old) else like.new_zeros(batch, *like.shape[1:])
        after = new[t] if -t <= len(new) else like.new_zeros(len(rows), *like.shape[1:])
        result.append(before.index_copy(0, rows, after))
    return result
