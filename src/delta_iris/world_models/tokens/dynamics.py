"""Δ-IRIS's token dynamics as a LightningModule (paper §2.2)."""

from __future__ import annotations

from delta_iris.nn.cnn import CNNConfig, FrameEncoder
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.nn.two_hot import SymlogTwoHot
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.transition_network import TransitionNetwork

__all__ = ["TokenDynamics"]


class TokenDynamics(BaseDynamics):
    """Δ-IRIS's dynamics: each block holds a vector of the frame, the action, and the tokens of the transition.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        max_blocks: longest segment, in frames; each is a block of the Transformer.
        tokens_per_frame: K, tokens a transition.
        codebook_size: number of codewords N.
        transformer: the Transformer. Its dropout keeps it from memorizing segments; each part of a batch
            (`micro_batch_size`) draws its own.
        frame_cnn: the CNN that gives one vector a frame.
        num_reward_bins: bins of the reward's two-hot distribution, on symlog [−20, 20].
        symlog_mean: decode that distribution as the symexp of its mean in symlog space, as the paper does, instead of
            as its mean; see `SymlogTwoHot`.
        optimizer: AdamW and its learning-rate schedule.

    Raises:
        ValueError: if sizes do not fit together.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        max_blocks: int,
        tokens_per_frame: int,
        codebook_size: int,
        transformer: TransformerConfig = TransformerConfig(dim=640, layers=10, heads=10),  # noqa: B008  (frozen)
        frame_cnn: CNNConfig = CNNConfig(),  # noqa: B008
        num_reward_bins: int = 255,
        symlog_mean: bool = False,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    ) -> None:
        reward_codec = SymlogTwoHot(num_reward_bins, symlog_mean=symlog_mean)
        network = TransitionNetwork(
            FrameEncoder(frame_size, frame_cnn),
            num_actions,
            tokens_per_frame,
            codebook_size,
            max_blocks,
            transformer,
            reward_codec.initial_logits(),
        )
        super().__init__(network, reward_codec, optimizer)
