"""IRIS's tokenizer: a discrete autoencoder of single frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.nn.perceptual import PerceptualDistance
from delta_iris.world_models.iris.autoencoder import AutoencoderConfig, ConvDecoder, ConvEncoder
from delta_iris.world_models.iris.gradient_quantizer import GradientCodebookConfig, GradientQuantizer
from delta_iris.world_models.tokens.tokenizer import Reconstruction, Tokenizer

__all__ = ["FrameLossWeights", "FrameTokenizer", "count_halvings"]


@dataclass(frozen=True)
class FrameLossWeights:
    """Weights of the terms of IRIS's tokenizer loss. The authors' are 1, with `perceptual` in the place of `l2`.

    Args:
        l1: of the mean absolute error.
        l2: of the mean squared error.
        perceptual: of the perceptual distance (LPIPS), which needs `perceptual_weights`.
        codebook: of the squared distance that moves codewords to their latents.
        commitment: of the squared distance that moves latents to their codewords.
    """

    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 0.0
    codebook: float = 1.0
    commitment: float = 1.0


def count_halvings(frame_size: tuple[int, int], tokens_per_frame: int) -> int:
    """How often a frame's sides are halved until it has as many pixels as tokens.

    Args:
        frame_size: height and width of a frame, in pixels.
        tokens_per_frame: K.

    Raises:
        ValueError: if halving does not lead there.
    """
    reachable = []
    height, width = frame_size
    while height % 2 == width % 2 == 0:
        height, width = height // 2, width // 2
        reachable.append(height * width)
    if tokens_per_frame not in reachable:
        raise ValueError(
            f"tokens_per_frame {tokens_per_frame} cannot be reached by halving frames of {frame_size[0]}×"
            f"{frame_size[1]} pixels: choose one of {reachable}"
        )
    return reachable.index(tokens_per_frame) + 1


class FrameTokenizer(Tokenizer):
    """Encodes each frame alone as a map of K tokens, and decodes it from them. It knows no actions and no other frames.

    The actor-critic sees real frames as they are reconstructed, as it sees imagined ones.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions; not used.
        max_frames: longest segment, in frames.
        tokens_per_frame: K. It says how often the resolution is halved: 64 × 64 pixels become 8 × 8 = 64 tokens, or
            4 × 4 = 16.
        codebook: the codebook; the encoder's feature map has as many channels as a codeword.
        autoencoder: sizes of encoder and decoder.
        optimizer: AdamW, which is Adam without weight decay, and its learning-rate schedule.
        loss_weights: weights of the loss terms.
        perceptual_weights: file with the weights of VGG-16 and LPIPS; see `PerceptualDistance`. Only training reads it.

    Raises:
        ValueError: if frames and tokens do not fit together, or an argument is out of range.
    """

    context_frames: ClassVar[int] = 0

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        max_frames: int,
        tokens_per_frame: int = 64,
        codebook: GradientCodebookConfig = GradientCodebookConfig(),  # noqa: B008  (frozen)
        autoencoder: AutoencoderConfig = AutoencoderConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008
        loss_weights: FrameLossWeights = FrameLossWeights(),
        perceptual_weights: Path | None = None,
    ) -> None:
        halvings = count_halvings(frame_size, tokens_per_frame)
        super().__init__(tokens_per_frame, max_frames - 1, GradientQuantizer(codebook), optimizer, loss_weights)
        if loss_weights.perceptual and perceptual_weights is None:
            raise ValueError(
                f"loss_weights.perceptual is {loss_weights.perceptual}: it needs a file, perceptual_weights"
            )
        self.grid = (frame_size[0] >> halvings, frame_size[1] >> halvings)
        self.encoder = ConvEncoder(frame_size[0], halvings, codebook.dim, autoencoder)
        self.decoder = ConvDecoder(frame_size[0], halvings, codebook.dim, autoencoder)
        self.perceptual_weights = perceptual_weights
        self._perceptual: PerceptualDistance | None = None

    def encode_latents(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """See `Tokenizer.encode_latents`: (B, T, K, D). Neither actions nor mask matter."""
        latents = self.encoder(frames.flatten(0, 1))
        return latents.flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])

    def encode_frame(self, frames: Tensor) -> None:
        """See `Tokenizer.encode_frame`. There is nothing to encode."""

    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        mask: Tensor,
        cache: None = None,
        frame_features: Tensor | None = None,
    ) -> Tensor:
        """See `Tokenizer.decode`. All but the codes is ignored."""
        return self._decode(codes)

    def make_decoder_cache(self, batch: int) -> None:
        """See `Tokenizer.make_decoder_cache`. There is nothing to cache."""

    def perceive(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """See `Tokenizer.perceive`: the frames, decoded from their tokens."""
        return self._decode(self.quantizer.lookup(tokens)).float().clamp(0, 1)

    def loss_terms(self, segment: SegmentBatch, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """See `Tokenizer.loss_terms`."""
        terms = super().loss_terms(segment, reconstruction)
        del terms["max_error"]
        codes = self.quantizer.lookup(reconstruction.tokens)
        terms["codebook"] = (codes - reconstruction.latents.detach()).square().mean((2, 3))
        if self.loss_weights.perceptual:
            real, decoded = to_float(segment.frames).flatten(0, 1), reconstruction.frames.flatten(0, 1)
            distance = self._perceptual_distance()(decoded, real)
            terms["perceptual"] = distance.unflatten(0, segment.mask.shape)
        return terms

    def configure_optimizers(self) -> Any:
        """See `Tokenizer.configure_optimizers`. Reads `perceptual_weights`, because training is about to begin.

        Raises:
            UserError: if the file is missing or damaged.
        """
        if self.loss_weights.perceptual:
            self._perceptual_distance()
        return super().configure_optimizers()

    def _perceptual_distance(self) -> PerceptualDistance:
        if self._perceptual is None:
            assert self.perceptual_weights is not None
            self._perceptual = PerceptualDistance(self.perceptual_weights).to(self.device)
        return self._perceptual

    def _decode(self, codes: Tensor) -> Tensor:
        """Frames (B, n, 3, H, W) from codewords (B, n, K, D)."""
        maps = codes.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)
        return self.decoder(maps).unflatten(0, codes.shape[:2])
