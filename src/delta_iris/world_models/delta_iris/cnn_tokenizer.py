"""The lean tokenizer of the authors' later agent: a CNN whose only context is the last frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.errors import UserError
from delta_iris.nn.cnn import ConvDecoder, ConvEncoder, FrameEncoder
from delta_iris.world_models.delta_iris.motion_compensation import Motion, check_motions
from delta_iris.world_models.tokens.quantizer import VectorQuantizer
from delta_iris.world_models.tokens.tokenizer import LossWeights, Tokenizer

__all__ = ["CNNTokenizer", "cells"]

ACTION_CHANNELS = 4
# Copies of the last frame move by vectors of so many features, up to so many pixels (a cell of Crafter's is seven).
MOTION_DIM, REACH = 128, 8


def cells(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that cut a height × width map into `tokens` equal cells, as near to square as there are.

    Raises:
        UserError: where there are none.
    """
    fitting = [
        (rows, tokens // rows)
        for rows in range(1, tokens + 1)
        if tokens % rows == 0 and height % rows == 0 and width % (tokens // rows) == 0
    ]
    if not fitting:
        raise UserError(
            f"model.tokenizer.init_args.tokens_per_frame {tokens} cannot cut the CNN's {height}×{width} latent map "
            "into equal cells: choose a number whose factors divide its sides, or other `halvings`"
        )
    return min(fitting, key=lambda grid: abs(height // grid[0] - width // grid[1]))


class CNNTokenizer(Tokenizer):
    """Encodes (x_{t−1}, a_{t−1}, x_t) with one CNN; decodes x_{t−1}'s features, a_{t−1} and the codes with another.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        window: longest window, in frames.
        tokens_per_frame: K, tokens a transition: the latent map is cut into as many cells.
        codebook_size: number of codewords N.
        code_dim: dimension of a codeword.
        channels, multipliers, halvings: of the CNNs; see `ConvEncoder`.
        latent_channels: channels of the map that the tokens are made of.
        frame_channels: channels of the decoder's features of the last frame.
        motions: 0 for the authors' decoder, which paints every pixel; or the number of copies of the last frame, each
            moved by up to eight pixels, that a pixel may be taken from instead; see `Motion`.
        least_painted: with `motions`; see `Motion`.
        learning_rate, weight_decay, warmup_steps, final_fraction, decay_steps, gradient_clip: of the optimizer;
            see `make_optimizer`.
        loss_weights: weights of the terms of the loss, where not the defaults.
        settled_threshold: share of uniform usage under which codewords are revived once a world model has trained; the
            authors' is 0.1, as before it.

    Raises:
        UserError: where frames, halvings and tokens do not fit together, or an argument is out of its range.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        window: int,
        tokens_per_frame: int = 4,
        codebook_size: int = 1024,
        code_dim: int = 64,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        halvings: Sequence[int] = (1, 3, 4),
        latent_channels: int = 64,
        frame_channels: int = 8,
        motions: int = 0,
        least_painted: float = 0.05,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        final_fraction: float = 1.0,
        decay_steps: int = 0,
        gradient_clip: float = 10.0,
        loss_weights: LossWeights | None = None,
        settled_threshold: float = 0.001,
    ) -> None:
        super().__init__(
            VectorQuantizer(codebook_size, code_dim, settled_threshold=settled_threshold),
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
        check_motions(motions, least_painted)
        height, width = frame_size
        cnn = (channels, multipliers, halvings)
        self.encoder = ConvEncoder(frame_size, 7, *cnn, latent_channels)
        _, rows, columns = self.encoder.latent_shape
        self.grid = cells(tokens_per_frame, rows, columns)
        self.cell = (rows // self.grid[0], columns // self.grid[1])
        self.action_plane = nn.Embedding(num_actions, height * width)
        self.project = nn.Linear(latent_channels * math.prod(self.cell), code_dim)
        self.frame = FrameEncoder(frame_size, *cnn, frame_channels)
        self.action = nn.Embedding(num_actions, ACTION_CHANNELS * rows * columns)
        self.code = nn.Linear(code_dim, self.project.in_features)
        known = frame_channels + ACTION_CHANNELS + latent_channels
        self.motion = Motion(MOTION_DIM, motions, REACH, least_painted) if motions else None
        self.decoder = ConvDecoder(known, self.motion.channels if self.motion else 3, *cnn)
        if self.motion:
            layer = nn.Linear(known * rows * columns, MOTION_DIM)
            self.direction = nn.Sequential(nn.Flatten(), layer, nn.SiLU(), nn.LayerNorm(MOTION_DIM))

    def embed(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """See `Tokenizer.embed`; padding never matters here, for nothing is seen but the transition's own frames."""
        scaled, length = frames * 2 - 1, frames.shape[1] - 1
        plane = self.action_plane(actions[:, :-1]).view(len(frames), length, 1, *frames.shape[-2:])
        pictures = torch.cat([scaled[:, :-1], plane, scaled[:, 1:]], dim=2)
        latents = self.encoder(rearrange(pictures, "b t c h w -> (b t) c h w"))
        (rows, columns), (height, width) = self.grid, self.cell
        flat = rearrange(
            latents, "(b t) c (i h) (j w) -> b t (i j) (c h w)", t=length, i=rows, j=columns, h=height, w=width
        )
        return self.project(flat)

    def look(self, frames: Tensor) -> Tensor:
        """See `Tokenizer.look`: features (B · n, c · h · w)."""
        return self.frame(rearrange(frames, "b t c h w -> (b t) c h w"))

    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        valid: Tensor,
        cache: None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """See `Tokenizer.decode`; there is nothing to remember."""
        length = frames.shape[1]
        _, rows, columns = self.encoder.latent_shape
        size = {"h": rows, "w": columns}
        looked = rearrange(self.look(frames) if seen is None else seen, "n (c h w) -> n c h w", **size)
        acted = rearrange(self.action(actions), "b t (c h w) -> (b t) c h w", **size)
        (i, j), (h, w) = self.grid, self.cell
        told = rearrange(self.code(codes), "b t (i j) (c h w) -> (b t) c (i h) (j w)", i=i, j=j, h=h, w=w)
        known = torch.cat([looked, acted.to(looked.dtype), told], dim=1)
        # The CNNs work on pixels from −1 to 1. (The logits of shares are halved with them.)
        painted = rearrange((self.decoder(known) + 1) / 2, "(b t) c h w -> b t c h w", t=length)
        if self.motion is None:
            return painted
        return self.motion(painted, frames, rearrange(self.direction(known), "(b t) c -> b t c", t=length))

    def start_decoding(self, batch: int) -> None:
        """See `Tokenizer.start_decoding`."""
