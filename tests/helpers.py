"""Small models and random segments for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.cnn import CNNConfig
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems import DeltaIris, Iris
from delta_iris.training.systems.token_system import TokenSchedule, TokenSystem
from delta_iris.world_models.delta_iris import CNNTokenizer, TransformerTokenizer
from delta_iris.world_models.iris import FrameDynamics, FrameTokenizer
from delta_iris.world_models.iris.autoencoder import AutoencoderConfig
from delta_iris.world_models.iris.gradient_quantizer import GradientCodebookConfig
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.dynamics import TokenDynamics
from delta_iris.world_models.tokens.quantizer import CodebookConfig
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from delta_iris.world_models.tokens.tokenizer import Tokenizer

ACTIONS, FRAMES, SIZE, CODES = 5, 9, (32, 32), 32
CONTEXT = 4
SMALL_CNN = CNNConfig(base_channels=4, channel_mults=(1, 2), downsample_after=(0, 1, 2))
CODEBOOK = CodebookConfig(size=CODES, dim=8)


def make_tokenizer(num_actions: int = ACTIONS, **changes: Any) -> TransformerTokenizer:
    """A Transformer tokenizer with arguments changed."""
    options: dict[str, Any] = {
        "codebook": replace(CODEBOOK, decay=0.8),
        "patch_size": 4,
        "dim": 16,
        "heads": 2,
        "encoder_layers": (1, 2, 1),
        "decoder_layers": (1, 1, 2),
        "frame_cnn": SMALL_CNN,
    }
    torch.manual_seed(0)
    return TransformerTokenizer(SIZE, num_actions, FRAMES, 4, **(options | changes))


def make_cnn_tokenizer(**changes: Any) -> CNNTokenizer:
    """A CNN tokenizer with arguments changed."""
    options: dict[str, Any] = {
        "codebook": CODEBOOK,
        "cnn": CNNConfig(base_channels=8, channel_mults=(1, 2), downsample_after=(0, 1), latent_channels=4),
        "frame_channels": 2,
    }
    torch.manual_seed(0)
    return CNNTokenizer(SIZE, ACTIONS, FRAMES, 4, **(options | changes))


def make_frame_tokenizer(num_actions: int = ACTIONS, tokens: int = 4, **changes: Any) -> FrameTokenizer:
    """IRIS's tokenizer with arguments changed."""
    options: dict[str, Any] = {
        "codebook": GradientCodebookConfig(CODES, 8),
        "autoencoder": AutoencoderConfig(channels=8, residual_blocks=1, attention_at=(4,)),
    }
    torch.manual_seed(0)
    return FrameTokenizer(SIZE, num_actions, FRAMES, tokens, **(options | changes))


def make_frame_dynamics(num_actions: int = ACTIONS, **changes: Any) -> FrameDynamics:
    """IRIS's dynamics with arguments changed, and a reward head that is not zero."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"transformer": TransformerConfig(dim=16, layers=2, heads=2)} | changes
    dynamics = FrameDynamics(SIZE, num_actions, FRAMES, 4, CODES, **options)
    randomize_rewards(dynamics)
    return dynamics


def make_dynamics(num_actions: int = ACTIONS, **changes: Any) -> TokenDynamics:
    """Token dynamics with arguments changed, and a reward head that is not zero."""
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "transformer": TransformerConfig(dim=16, layers=2, heads=2),
        "frame_cnn": SMALL_CNN,
    } | changes
    dynamics = TokenDynamics(SIZE, num_actions, FRAMES, 4, CODES, **options)
    randomize_rewards(dynamics)
    return dynamics


def randomize_rewards(dynamics: BaseDynamics) -> None:
    """The reward head starts at zero, which would hide what it depends on."""
    last = dynamics.network.reward_head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight)


def make_actor_critic(num_actions: int = ACTIONS, **changes: Any) -> ActorCritic:
    """An actor-critic with arguments changed, and heads that are not zero."""
    torch.manual_seed(2)
    cnn = replace(SMALL_CNN, latent_channels=2)
    options: dict[str, Any] = {"lstm_size": 16, "cnn": cnn, "burn_in": CONTEXT - 1, "horizon": 5}
    actor_critic = ActorCritic((3, *SIZE), num_actions, **(options | changes))
    for network in (actor_critic.network, actor_critic.target):
        for head in (network.actor, network.critic):
            nn.init.normal_(head.weight, std=0.3)
    return actor_critic


def make_matching_dynamics(tokenizer: Tokenizer, num_actions: int = ACTIONS) -> BaseDynamics:
    """Dynamics for the kind of a tokenizer's tokens."""
    return make_dynamics(num_actions) if tokenizer.context_frames else make_frame_dynamics(num_actions)


def make_world_model(tokenizer: Tokenizer | None = None, dynamics: BaseDynamics | None = None) -> TokenWorldModel:
    """A token world model."""
    tokenizer = tokenizer or make_tokenizer()
    return TokenWorldModel(tokenizer, dynamics or make_matching_dynamics(tokenizer), SIZE, CONTEXT)


WORLD_MODELS: dict[str, Callable[[], TokenWorldModel]] = {
    "transformer": make_world_model,
    "cnn": lambda: make_world_model(make_cnn_tokenizer()),
    "iris": lambda: make_world_model(make_frame_tokenizer()),
}


def make_system(
    tokenizer: Tokenizer | None = None,
    dynamics: BaseDynamics | None = None,
    actor_critic: ActorCritic | None = None,
    *,
    num_actions: int = ACTIONS,
    schedule: TokenSchedule | None = None,
    **options: Any,
) -> TokenSystem:
    """A system of given modules: Δ-IRIS, or IRIS if tokenizer or dynamics are IRIS's."""
    if tokenizer is None:
        of_frames = dynamics is not None and not dynamics.context_frames
        tokenizer = make_frame_tokenizer(num_actions) if of_frames else make_tokenizer(num_actions)
    dynamics = dynamics or make_matching_dynamics(tokenizer, num_actions)
    actor_critic = actor_critic or make_actor_critic(num_actions)
    system = DeltaIris if tokenizer.context_frames else Iris
    return system(
        SIZE,
        num_actions,
        lambda frame_size, num_actions, segment_length: tokenizer,
        lambda frame_size, num_actions, segment_length, tokens, codes: dynamics,
        lambda input_shape, num_actions: actor_critic,
        segment_length=FRAMES,
        schedule=schedule or make_schedule(),
        **options,
    )


def make_schedule(
    collection: CollectionSchedule | None = None, real_segments: PhaseSchedule | None = None, **changes: Any
) -> TokenSchedule:
    """The same schedule for all phases but the one on real segments, which is off unless it is given."""
    phase = PhaseSchedule(**({"steps": 5, "batch_size": 6} | changes))
    off = PhaseSchedule(steps=0)
    return TokenSchedule(collection or CollectionSchedule(), phase, phase, phase, real_segments or off)


def make_segment(batch: int = 3, frames: int = FRAMES, *, padded: bool = False, seed: int = 0) -> SegmentBatch:
    """Random segments; if `padded`, the first begins before its episode and the second extends past its end."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, frames, dtype=torch.bool)
    is_first = torch.zeros(batch, frames, dtype=torch.bool)
    if padded:
        mask[0, :3] = False
        is_first[0, 3] = True
        mask[1, -2:] = False
    return SegmentBatch(
        torch.randint(0, 256, (batch, frames, 3, *SIZE), generator=generator, dtype=torch.uint8),
        torch.randint(0, ACTIONS, (batch, frames), generator=generator),
        torch.randn(batch, frames, generator=generator),
        torch.randint(0, 2, (batch, frames), generator=generator),
        mask,
        is_first,
    )


def make_moving_ramp() -> SegmentBatch:
    """Smooth frames that move: random pixels cannot be compressed."""
    segment, ramp = make_segment(2), torch.linspace(0, 255, SIZE[1])
    for t in range(FRAMES):
        segment.frames[:, t] = ramp.roll(3 * t).to(torch.uint8)
    return segment


def scramble(segment: SegmentBatch, where: Tensor) -> SegmentBatch:
    """Change everything but the masks in the slots where (B, T) `where` is true."""
    other = make_segment(*segment.mask.shape, seed=99)
    frames, actions, rewards, terminated = (
        torch.where(where.view(*where.shape, *[1] * (mine.ndim - 2)), theirs, mine)
        for mine, theirs in zip(segment[:4], other[:4], strict=True)
    )
    return SegmentBatch(frames, actions, rewards, terminated, segment.mask, segment.is_first)
