"""The lean tokenizer of the authors' later agent: a CNN whose only context is the last frame."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.nn.cnn import CNNConfig, CNNDecoder, CNNEncoder, FrameEncoder
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.world_models.delta_iris.motion_compensation import MotionCompensation, check_motion_arguments
from delta_iris.world_models.tokens.quantizer import CodebookConfig, VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import ReconstructionLossWeights, Tokenizer

__all__ = ["CNNTokenizer", "token_grid"]

ACTION_CHANNELS = 4
MOTION_DIM = 128
MAX_DISPLACEMENT = 8
"""In pixels; a cell of Crafter's world is seven wide."""


def token_grid(tokens_per_frame: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that cut a map into `tokens_per_frame` equal cells, as near to square as possible.

    Args:
        tokens_per_frame: number of cells.
        height: of the map.
        width: of the map.

    Raises:
        ValueError: if no such cut exists.
    """
    fitting = [
        (rows, tokens_per_frame // rows)
        for rows in range(1, tokens_per_frame + 1)
        if tokens_per_frame % rows == 0 and height % rows == 0 and width % (tokens_per_frame // rows) == 0
    ]
    if not fitting:
        raise ValueError(
            f"tokens_per_frame {tokens_per_frame} cannot cut the CNN's {height}×{width} latent map into equal cells: "
            "choose a number whose factors divide its sides, or another cnn.downsample_after"
        )
    return min(fitting, key=lambda grid: abs(height // grid[0] - width // grid[1]))


class CNNTokenizer(Tokenizer):
    """Encodes (x_{t−1}, a_{t−1}, x_t) with one CNN; decodes features of x_{t−1}, a_{t−1} and the codes with another.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        max_frames: longest segment, in frames.
        tokens_per_frame: K, tokens a transition; the latent map is cut into that many cells.
        codebook: the codebook.
        cnn: the CNNs; `latent_channels` are those of the map that the tokens are made of.
        frame_channels: channels of the decoder's features of the last frame.
        num_transforms: copies of the last frame for motion compensation, each translated by at most eight pixels; 0 for
            the authors' decoder, which synthesizes every pixel. See `MotionCompensation`.
        min_synthesis_weight: see `MotionCompensation`.
        optimizer: AdamW and its learning-rate schedule.
        loss_weights: weights of the loss terms.

    Raises:
        ValueError: if frames, CNN and tokens do not fit together, or an argument is out of range.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        max_frames: int,
        tokens_per_frame: int = 4,
        codebook: CodebookConfig = CodebookConfig(),  # noqa: B008  (frozen)
        cnn: CNNConfig = CNNConfig(base_channels=64, latent_channels=64),  # noqa: B008
        frame_channels: int = 8,
        num_transforms: int = 0,
        min_synthesis_weight: float = 0.05,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        loss_weights: ReconstructionLossWeights = ReconstructionLossWeights(),  # noqa: B008
    ) -> None:
        super().__init__(tokens_per_frame, max_frames - 1, VectorQuantizer(codebook), optimizer, loss_weights)
        check_motion_arguments(num_transforms, min_synthesis_weight)
        height, width = frame_size
        self.encoder = CNNEncoder(frame_size, 7, cnn)
        _, rows, columns = self.encoder.latent_shape
        self.grid = token_grid(tokens_per_frame, rows, columns)
        self.cell = (rows // self.grid[0], columns // self.grid[1])
        self.action_plane = nn.Embedding(num_actions, height * width)
        self.project = nn.Linear(cnn.latent_channels * math.prod(self.cell), codebook.dim)
        self.frame = FrameEncoder(frame_size, replace(cnn, latent_channels=frame_channels))
        self.action = nn.Embedding(num_actions, ACTION_CHANNELS * rows * columns)
        self.code = nn.Linear(codebook.dim, self.project.in_features)
        input_channels = frame_channels + ACTION_CHANNELS + cnn.latent_channels
        self.motion = (
            MotionCompensation(MOTION_DIM, num_transforms, MAX_DISPLACEMENT, min_synthesis_weight)
            if num_transforms
            else None
        )
        self.decoder = CNNDecoder(input_channels, self.motion.channels if self.motion else 3, cnn)
        if self.motion:
            layer = nn.Linear(input_channels * rows * columns, MOTION_DIM)
            self.motion_vector = nn.Sequential(nn.Flatten(), layer, nn.SiLU(), nn.LayerNorm(MOTION_DIM))

    def encode_latents(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """See `Tokenizer.encode_latents`. A latent depends on its transition's two frames, so no mask is needed."""
        scaled, length = frames * 2 - 1, frames.shape[1] - 1
        plane = self.action_plane(actions[:, :-1]).view(len(frames), length, 1, *frames.shape[-2:])
        pairs = torch.cat([scaled[:, :-1], plane, scaled[:, 1:]], dim=2)
        latents = self.encoder(rearrange(pairs, "b t c h w -> (b t) c h w"))
        (rows, columns), (height, width) = self.grid, self.cell
        cells = rearrange(
            latents, "(b t) c (i h) (j w) -> b t (i j) (c h w)", b=len(frames), i=rows, j=columns, h=height, w=width
        )
        return self.project(cells)

    def encode_frame(self, frames: Tensor) -> Tensor:
        """Features (B · n, c · h · w); see `Tokenizer.encode_frame`."""
        return self.frame(rearrange(frames, "b t c h w -> (b t) c h w"))

    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        mask: Tensor,
        cache: None = None,
        frame_features: Tensor | None = None,
    ) -> Tensor:
        """See `Tokenizer.decode`. There is nothing to cache."""
        length = frames.shape[1]
        _, rows, columns = self.encoder.latent_shape
        size = {"h": rows, "w": columns}
        if frame_features is None:
            frame_features = self.encode_frame(frames)
        frame_map = rearrange(frame_features, "n (c h w) -> n c h w", **size)
        action_map = rearrange(self.action(actions), "b t (c h w) -> (b t) c h w", **size)
        (i, j), (h, w) = self.grid, self.cell
        code_map = rearrange(self.code(codes), "b t (i j) (c h w) -> (b t) c (i h) (j w)", i=i, j=j, h=h, w=w)
        decoder_input = torch.cat([frame_map, action_map.to(frame_map.dtype), code_map], dim=1)
        # The CNNs work on pixels from −1 to 1. Motion compensation's mixing logits are halved with them.
        outputs = rearrange((self.decoder(decoder_input) + 1) / 2, "(b t) c h w -> b t c h w", t=length)
        if self.motion is None:
            return outputs
        vectors = rearrange(self.motion_vector(decoder_input), "(b t) c -> b t c", t=length)
        return self.motion(outputs, frames, vectors)

    def make_decoder_cache(self, batch: int) -> None:
        """See `Tokenizer.make_decoder_cache`."""
