"""The paper's tokenizer: Transformers over the whole segment, pooling in, upsampling out (paper §2.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from delta_iris.nn.cnn import CNNConfig, FrameEncoder
from delta_iris.nn.kv_cache import AttentionKind
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.world_models.delta_iris.decoder import Decoder, DecoderCache
from delta_iris.world_models.delta_iris.encoder import Encoder
from delta_iris.world_models.delta_iris.motion_compensation import check_motion_arguments
from delta_iris.world_models.delta_iris.patches import pooled_grids
from delta_iris.world_models.tokens.quantizer import CodebookConfig, VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import ReconstructionLossWeights, Tokenizer

__all__ = ["TransformerTokenizer"]


class TransformerTokenizer(Tokenizer):
    """The paper's discrete autoencoder, which by default takes Δ literally.

    `attention="causal"`, `difference=False`, `previous_patches=False` and `num_transforms=0` give the paper's form.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        max_frames: longest segment, in frames.
        tokens_per_frame: K, tokens a transition.
        codebook: the codebook.
        patch_size: side of a patch, in pixels.
        dim: width of both Transformers.
        heads: attention heads of both Transformers.
        encoder_layers: layers of each group, from the patches to the tokens, with 2×2 average pooling between groups.
        decoder_layers: layers of each group, from the tokens to the patches, with 2×2 upsampling between groups.
        frame_cnn: the CNN that gives the decoder one vector a frame.
        difference: whether the encoder also sees the change of each pixel since the last frame.
        previous_patches: whether the decoder's last group also sees the pixels of the last frame, patch by patch.
        num_transforms: copies of the last frame for motion compensation, each translated by at most a patch's side; 0
            for none. See `MotionCompensation`.
        min_synthesis_weight: see `MotionCompensation`.
        attention: `block_causal` (a token attends to its whole frame and to all earlier ones) or `causal` (to earlier
            tokens only, which hides part of an observed frame from the rest of it).
        optimizer: AdamW and its learning-rate schedule.
        loss_weights: weights of the loss terms.

    Raises:
        ValueError: if patches, pooling and tokens do not fit together, or an argument is out of range.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        max_frames: int,
        tokens_per_frame: int = 4,
        codebook: CodebookConfig = CodebookConfig(decay=0.8),  # noqa: B008  (frozen)
        patch_size: int = 8,
        dim: int = 512,
        heads: int = 8,
        encoder_layers: Sequence[int] = (3, 3, 3),
        decoder_layers: Sequence[int] = (3, 3, 3),
        frame_cnn: CNNConfig = CNNConfig(),  # noqa: B008
        difference: bool = True,
        previous_patches: bool = True,
        num_transforms: int = 4,
        min_synthesis_weight: float = 0.05,
        attention: AttentionKind = "block_causal",
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, warmup_steps=200),  # noqa: B008
        loss_weights: ReconstructionLossWeights = ReconstructionLossWeights(),  # noqa: B008
    ) -> None:
        super().__init__(tokens_per_frame, max_frames - 1, VectorQuantizer(codebook), optimizer, loss_weights)
        if len(encoder_layers) != len(decoder_layers):
            raise ValueError(
                f"encoder_layers has {len(encoder_layers)} groups and decoder_layers {len(decoder_layers)}: "
                "both must have the same number"
            )
        check_motion_arguments(num_transforms, min_synthesis_weight)
        if dim % (2 * heads):
            raise ValueError(
                f"dim {dim} is not a multiple of twice heads {heads}, which rotary embeddings need: change either"
            )
        grids = pooled_grids(frame_size, patch_size, tokens_per_frame, len(encoder_layers))
        self.encoder = Encoder(
            grids, encoder_layers, patch_size, num_actions, dim, heads, codebook.dim, difference, attention
        )
        frame_encoder = FrameEncoder(frame_size, frame_cnn)
        self.decoder = Decoder(
            grids,
            decoder_layers,
            self.max_transitions,
            frame_encoder,
            patch_size,
            num_actions,
            dim,
            heads,
            codebook.dim,
            previous_patches,
            num_transforms,
            min_synthesis_weight,
            attention,
        )

    def encode_latents(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """See `Tokenizer.encode_latents`."""
        return self.encoder(frames, actions, mask)

    def encode_frame(self, frames: Tensor) -> Tensor:
        """One vector a frame, (B, n, dim); see `Tokenizer.encode_frame`."""
        return self.decoder.encode_frame(frames)

    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        mask: Tensor,
        cache: DecoderCache | None = None,
        frame_features: Tensor | None = None,
    ) -> Tensor:
        """See `Tokenizer.decode`."""
        return self.decoder(frames, actions, codes, mask, cache, frame_features)

    def make_decoder_cache(self, batch: int) -> DecoderCache:
        """See `Tokenizer.make_decoder_cache`."""
        return self.decoder.make_cache(batch)
