"""The paper's tokenizer: Transformers over the whole trajectory, pooling in, upsampling out (paper §2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.errors import UserError
from delta_iris.nn.acceleration import region
from delta_iris.nn.cache import KVCache
from delta_iris.nn.conv import FrameEncoder
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, init_weights, rotation
from delta_iris.tokenizer.module import LossWeights, Tokenizer
from delta_iris.tokenizer.motion import Motion
from delta_iris.tokenizer.quantizer import VectorQuantizer

__all__ = ["DecoderCache", "TransformerTokenizer", "pooled_grids"]

Grid = tuple[int, int]


def pooled_grids(frame_size: Grid, patch_size: int, tokens_per_frame: int, groups: int) -> list[Grid]:
    """Patch grids from the finest to the one of `tokens_per_frame`, halved once between groups of layers.

    Raises:
        UserError: where 2×2 pooling cannot lead from the patches to the tokens, or the number of layer groups is
            not one more than the number of poolings.
    """
    height, width = frame_size
    if height % patch_size or width % patch_size:
        raise UserError(
            f"model.tokenizer.init_args.patch_size {patch_size} does not divide data.frame_size {height}×{width}: "
            f"choose one of {[p for p in range(1, min(frame_size) + 1) if height % p == width % p == 0]}"
        )
    grids = [(height // patch_size, width // patch_size)]
    while math.prod(grids[-1]) > tokens_per_frame and all(side % 2 == 0 for side in grids[-1]):
        grids.append((grids[-1][0] // 2, grids[-1][1] // 2))
    if math.prod(grids[-1]) != tokens_per_frame:
        reachable = [math.prod(grids[0]) // 4**i for i in range(len(grids) + 1)]
        reachable = [n for i, n in enumerate(reachable) if all(side % 2**i == 0 for side in grids[0])]
        raise UserError(
            f"model.tokenizer.init_args.tokens_per_frame {tokens_per_frame} cannot be reached by 2×2 pooling from a "
            f"{grids[0][0]}×{grids[0][1]} grid of patches: choose one of {reachable}, or another patch_size"
        )
    if groups != len(grids):
        raise UserError(
            f"model.tokenizer.init_args.encoder_layers and decoder_layers need {len(grids)} entries each, one a group "
            f"of layers: {' → '.join(f'{h}×{w}' for h, w in grids)} takes {len(grids) - 1} poolings; got {groups}"
        )
    return grids


def _to_patches(frames: Tensor, size: int) -> Tensor:
    """(B, T, C, H, W) → (B, T, patches, C · size²)."""
    batch, time, channels, height, width = frames.shape
    cells = frames.reshape(batch, time, channels, height // size, size, width // size, size)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, time, -1, channels * size**2)


def _from_patches(patches: Tensor, grid: Grid, size: int) -> Tensor:
    """The inverse of `_to_patches`."""
    batch, time = patches.shape[:2]
    cells = patches.reshape(batch, time, *grid, -1, size, size).permute(0, 1, 4, 2, 5, 3, 6)
    return cells.reshape(batch, time, -1, grid[0] * size, grid[1] * size)


def _scaled(frames: Tensor) -> Tensor:
    """Pixels from [0, 1] to [−2, 2], about unit variance."""
    return (frames - 0.5) * 4


def _patch_embedding(patch_size: int, dim: int, channels: int = 3) -> nn.Linear:
    """Linear layer that gives pixels of unit variance the scale of all embeddings."""
    layer = nn.Linear(channels * patch_size**2, dim)
    nn.init.normal_(layer.weight, std=EMBEDDING_STD / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)
    return layer


def _positions(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * EMBEDDING_STD)


class _Encoder(nn.Module):
    """Block t is [a_{t−1}, patches of x_t beside x_t − x_{t−1}]; a token sees its whole block and all earlier ones.

    Pixels are where Δ is exact. The difference of what two frames are summed up as is a fiftieth of either: to make
    that the tokens magnifies every step of training, and they change faster than a decoder can learn them.

    Time is rotary: it is in what attends to what, and nowhere in the summaries, or part of the codebook would be spent
    on numbering the frames of a window.
    """

    def __init__(
        self,
        grids: list[Grid],
        patch_size: int,
        num_actions: int,
        dim: int,
        layers: Sequence[int],
        heads: int,
        code_dim: int,
        difference: bool,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size, self.difference = grids, patch_size, difference
        self.no_action = num_actions
        self.patch = _patch_embedding(patch_size, dim, channels=6 if difference else 3)
        self.action = nn.Embedding(num_actions + 1, dim)
        init_weights(self.action)
        self.within = _positions(1 + math.prod(grids[0]), dim)
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.project = nn.Linear(dim, code_dim)
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.project.bias)

    def forward(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        length = frames.shape[1]
        # The first real frame of a window has no action before it, whatever the padding in front of it holds.
        known = F.pad(valid[:, :-1], (1, 0))
        previous = torch.where(known, F.pad(actions[:, :-1], (1, 0)), self.no_action)
        x, time = self._blocks(frames, known, self.action(previous)), torch.arange(length, device=frames.device)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._pool(x, self.grids[index - 1])
            block = x.shape[2]
            rotary = rotation(time.repeat_interleave(block, output_size=length * block), group.dim // group.heads)
            x = group(x.flatten(1, 2), group.window_mask(valid, block), rotary).unflatten(1, (length, block))
        return self._summarize(x)

    @region()
    def _blocks(self, frames: Tensor, known: Tensor, actions: Tensor) -> Tensor:
        seen = _scaled(frames)
        if self.difference:
            # Nothing where the frame before is padding, or there is none.
            changes = torch.where(known[:, 1:, None, None, None], seen[:, 1:] - seen[:, :-1], 0.0)
            seen = torch.cat([seen, F.pad(changes, (0, 0, 0, 0, 0, 0, 1, 0))], dim=2)
        patches = self.patch(_to_patches(seen, self.patch_size))
        return torch.cat([actions.unsqueeze(2), patches], dim=2) + self.within

    @region()
    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """Average patch tokens over 2×2 cells of `grid`; the action token passes."""
        cells = x[:, :, 1:].unflatten(2, (grid[0] // 2, 2, grid[1] // 2, 2))
        return torch.cat([x[:, :, :1], cells.mean((3, 5)).flatten(2, 3)], dim=2)

    @region()
    def _summarize(self, x: Tensor) -> Tensor:
        summary = x[:, 1:, 1:]
        return self.project(F.layer_norm(summary, summary.shape[-1:]))


@dataclass
class DecoderCache:
    """What decoding remembers of the transitions so far: a key-value cache a group of layers, which are real (B, T),
    and how many there are."""

    groups: list[KVCache]
    valid: Tensor
    position: int = 0


class _Decoder(nn.Module):
    """Block i is [f(x_i), a_i, tokens of the transition to x_{i+1}]; its outputs are the patches of x_{i+1}.

    With `motions`, each pixel is a mixture of what is painted there, of x_i and of copies of x_i that the output at a_i
    moves.
    """

    def __init__(
        self,
        grids: list[Grid],
        patch_size: int,
        num_actions: int,
        max_transitions: int,
        dim: int,
        layers: Sequence[int],
        heads: int,
        code_dim: int,
        frame_encoder: FrameEncoder,
        previous_patches: bool,
        motions: int,
        least_painted: float,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size = grids[::-1], patch_size
        self.max_transitions = max_transitions
        norm = nn.LayerNorm(dim)
        nn.init.constant_(norm.weight, EMBEDDING_STD)
        self.frame = nn.Sequential(frame_encoder, nn.Linear(frame_encoder.num_features, dim), norm)
        self.action = nn.Embedding(num_actions, dim)
        # Codewords have unit length.
        self.code = nn.Linear(code_dim, dim)
        for module in (self.action, self.code):
            init_weights(module)
        self.within = _positions(2 + math.prod(self.grids[0]), dim)
        self.time = _positions(max_transitions, 1, dim)
        # Each copy of an upsampled token gets its own position.
        self.copies = nn.ParameterList(_positions(math.prod(grid), dim) for grid in self.grids[1:])
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.previous = _patch_embedding(patch_size, dim) if previous_patches else None
        self.norm = nn.LayerNorm(dim)
        self.motion = Motion(dim, motions, patch_size, least_painted) if motions else None
        self.paint = nn.Linear(dim, (self.motion.channels if self.motion else 3) * patch_size**2)
        nn.init.normal_(self.paint.weight, std=0.02)
        nn.init.zeros_(self.paint.bias)

    def make_cache(self, batch: int) -> DecoderCache:
        valid = torch.zeros(batch, self.max_transitions, dtype=torch.bool, device=self.within.device)
        groups = [
            group.make_cache(valid, 2 + math.prod(grid), "block")
            for group, grid in zip(self.groups, self.grids, strict=True)
            if isinstance(group, Transformer)
        ]
        return DecoderCache(groups, valid)

    def look(self, frames: Tensor) -> Tensor:
        return self.frame(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        valid: Tensor,
        cache: DecoderCache | None,
        seen: Tensor | None,
    ) -> Tensor:
        length = frames.shape[1]
        if cache is None:
            time = self.time[:length]
        else:
            steps = slice(cache.position, cache.position + length)
            cache.valid[:, steps], time = valid, self.time[steps]
            cache.position += length
        x = self._blocks(self.look(frames) if seen is None else seen, self.action(actions), codes, time)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._upsample(x, index)
            if index == len(self.groups) - 1 and self.previous is not None:
                x = self._look_back(x, frames, self.previous)
            block, flat = x.shape[2], x.flatten(1, 2)
            flat = group.step(flat, cache.groups[index]) if cache else group(flat, group.window_mask(valid, block))
            x = flat.unflatten(1, (length, block))
        return self._paint(x, frames)

    @region()
    def _blocks(self, vectors: Tensor, actions: Tensor, codes: Tensor, time: Tensor) -> Tensor:
        return torch.cat([vectors.unsqueeze(2), actions.unsqueeze(2), self.code(codes)], dim=2) + self.within + time

    @region()
    def _upsample(self, x: Tensor, index: int) -> Tensor:
        """Make each token of the grid before `index` 2×2; the frame vector and the action pass."""
        rows, columns = self.grids[index - 1]
        coarse = x[:, :, 2:].unflatten(2, (rows, 1, columns, 1))
        finer = coarse.expand(-1, -1, -1, 2, -1, 2, -1).flatten(2, 5) + self.copies[index - 1]
        return torch.cat([x[:, :, :2], finer], dim=2)

    @region()
    def _look_back(self, x: Tensor, frames: Tensor, embed: nn.Module) -> Tensor:
        seen = embed(_to_patches(_scaled(frames), self.patch_size))
        return torch.cat([x[:, :, :2], x[:, :, 2:] + seen], dim=2)

    @region()
    def _paint(self, x: Tensor, frames: Tensor) -> Tensor:
        outputs = self.norm(x)
        painted = _from_patches(self.paint(outputs[:, :, 2:]), self.grids[-1], self.patch_size)
        return painted if self.motion is None else self.motion(painted, frames, outputs[:, :, 1])


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
        if dim % (2 * heads):
            raise UserError(
                f"model.tokenizer.init_args.dim {dim} is not a multiple of twice heads {heads}, as rotary time needs: "
                "change either"
            )
        grids = pooled_grids(frame_size, patch_size, tokens_per_frame, len(encoder_layers))
        self.encoder = _Encoder(grids, patch_size, num_actions, dim, encoder_layers, heads, code_dim, difference)
        frame_encoder = FrameEncoder(frame_size, frame_channels, frame_multipliers, frame_halvings)
        self.decoder = _Decoder(
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
