"""The paper's tokenizer: Transformers over the whole trajectory, pooling in, upsampling out (paper §2.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from delta_iris.errors import UserError
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.world_models.delta_iris.decoder import Decoder, DecoderCache
from delta_iris.world_models.delta_iris.encoder import Encoder
from delta_iris.world_models.delta_iris.motion_compensation import check_motions
from delta_iris.world_models.delta_iris.patches import pooled_grids
from delta_iris.world_models.tokens.quantizer import VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import LossWeights, Tokenizer

__all__ = ["TransformerTokenizer"]


class TransformerTokenizer(Tokenizer):
    """The paper's discrete autoencoder, with the literal Δ by default.

    Three arguments give the paper's letter where they are false or 0: `difference` (the encoder sees what changed in
    each frame's pixels beside the frame itself), `previous_patches` (the decoder's last group sees the previous frame's
    own patches) and `motions` (a pixel need not be painted: it may be taken from the previous frame, or from one of so
    many copies of it, each moved as a whole by up to a patch's side; tokens then need not say what was seen already).

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        window: longest window, in frames.
        tokens_per_frame: K, tokens a transition.
        codebook_size: number of codewords N.
        code_dim: dimension of a codeword.
        codebook_decay: see `VectorQuantizer`. The paper's is 0.99; a codebook that slow lags behind the encoder: its
            error is 30 to 90 % of the latents' variance, not 3 to 16 %.
        patch_size: side of a patch, in pixels.
        dim: width of both Transformers.
        heads: attention heads of both.
        encoder_layers: layers of each group, from the patches to the tokens; 2×2 average pooling between groups.
        decoder_layers: layers of each group, from the tokens to the patches; 2×2 upsampling between groups.
        frame_channels: channels of the CNN that gives the decoder one vector a frame.
        frame_multipliers, frame_halvings: its blocks; see `FrameEncoder`.
        difference, previous_patches, motions: see above.
        least_painted: with `motions`; see `Motion`.
        learning_rate, weight_decay, warmup_steps, final_fraction, decay_steps, gradient_clip: of the optimizer;
            see `make_optimizer`.
        loss_weights: weights of the terms of the loss, where not the defaults.
        settled_threshold: share of uniform usage under which codewords are revived once a world model has trained; the
            authors' is 0.1, as before it.

    Raises:
        UserError: where patches, pooling and tokens do not fit together, or an argument is out of its range.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        window: int,
        tokens_per_frame: int = 4,
        codebook_size: int = 1024,
        code_dim: int = 64,
        codebook_decay: float = 0.8,
        patch_size: int = 8,
        dim: int = 512,
        heads: int = 8,
        encoder_layers: Sequence[int] = (3, 3, 3),
        decoder_layers: Sequence[int] = (3, 3, 3),
        frame_channels: int = 32,
        frame_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        frame_halvings: Sequence[int] = (1, 3, 4),
        difference: bool = True,
        previous_patches: bool = True,
        motions: int = 4,
        least_painted: float = 0.05,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 200,
        final_fraction: float = 1.0,
        decay_steps: int = 0,
        gradient_clip: float = 10.0,
        loss_weights: LossWeights | None = None,
        settled_threshold: float = 0.001,
    ) -> None:
        super().__init__(
            VectorQuantizer(codebook_size, code_dim, codebook_decay, settled_threshold=settled_threshold),
            tokens_per_frame,
            window - 1,
            learning_rate,
            weight_decay,
            warmup_steps,
            final_fraction,
            decay_steps,
            gradient_clip,
            loss_weights or {},
        )
        if len(encoder_layers) != len(decoder_layers):
            raise UserError(
                f"model.tokenizer.init_args.encoder_layers has {len(encoder_layers)} groups and decoder_layers "
                f"{len(decoder_layers)}: give both the same number"
            )
        if not 0 <= codebook_decay < 1:
            raise UserError(
                f"model.tokenizer.init_args.codebook_decay is {codebook_decay}: give a number from 0 to below 1, the "
                "share of a chosen codeword that stays"
            )
        check_motions(motions, least_painted)
        if dim % (2 * heads):
            raise UserError(
                f"model.tokenizer.init_args.dim {dim} is not a multiple of twice heads {heads}, as rotary time needs: "
                "change either"
            )
        grids = pooled_grids(frame_size, patch_size, tokens_per_frame, len(encoder_layers))
        self.encoder = Encoder(grids, patch_size, num_actions, dim, encoder_layers, heads, code_dim, difference)
        frame_encoder = FrameEncoder(frame_size, frame_channels, frame_multipliers, frame_halvings)
        self.decoder = Decoder(
            grids,
            patch_size,
            num_actions,
            window - 1,
            dim,
            decoder_layers,
            heads,
            code_dim,
            frame_encoder,
            previous_patches,
            motions,
            least_painted,
        )

    def embed(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """See `Tokenizer.embed`."""
        return self.encoder(frames, actions, valid)

    def look(self, frames: Tensor) -> Tensor:
        """See `Tokenizer.look`: a vector a frame, (B, n, dim)."""
        return self.decoder.look(frames)

    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        valid: Tensor,
        cache: DecoderCache | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """See `Tokenizer.decode`."""
        return self.decoder(frames, actions, codes, valid, cache, seen)

    def start_decoding(self, batch: int) -> DecoderCache:
        """See `Tokenizer.start_decoding`."""
        return self.decoder.make_cache(batch)
