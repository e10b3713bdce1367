"""Vision transformers of timm with dense outputs at any image size.

backbone = create("vit_small_patch16", seed=0)              # random weights; names: architecture.py
backbone = load("backbone.safetensors")                     # a file of this project, of timm or of a family in checkpoints.yaml
print(backbone.report)                                      # what was taken from the file, what was not
tokens = backbone.tokens(images)                            # CLS, registers, patches after the final norm
features = backbone.dense(images)                           # [batch, dim, height / patch, width / patch]
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.models.architecture import Architecture, Interpolation
from densewalk.models.blocks import BlockRunner, attend, finish_block, query_key_value, rotate, run_blocks
from densewalk.models.families.motion import PREFIX, MotionDecoder, masks_of, standardize_flow
from densewalk.models.families.position_removal import MATRIX, PositionBases
from densewalk.models.families.vit import build_vit
from densewalk.models.interface import Network


@dataclass(frozen=True)
class Tokens:
    """The network's output after the final LayerNorm."""

    cls: Float[Tensor, "batch dim"]
    registers: Float[Tensor, "batch registers dim"]
    patches: Float[Tensor, "batch patches dim"]
    grid: tuple[int, int]

    def dense(self) -> Float[Tensor, "batch dim height width"]:
        """The patch tokens as a map."""
        return self.patches.transpose(1, 2).unflatten(2, self.grid)


@dataclass(frozen=True)
class LastBlock:
    """The final tokens, and queries, keys and CLS attention of the last block.

    query, key: before rotary positions.
    cls_attention: softmax(q_cls k^T / sqrt(head_dim)) of the patches (rows sum to less than 1), after rotary positions.
    """

    tokens: Tokens
    query: Float[Tensor, "batch heads tokens head_dim"]
    key: Float[Tensor, "batch heads tokens head_dim"]
    cls_attention: Float[Tensor, "batch heads patches"]


class Backbone(Network):
    """A vision transformer: the family that methods train.

    Images are [batch, 3, height, width], height and width multiples of the patch size. `state_dict()` of `vit` has timm's key names.
    """

    arch: Architecture

    def __init__(self, arch: Architecture, *, drop_path: float = 0.0) -> None:
        super().__init__(arch)
        self.prefix = int(arch.class_token) + arch.registers  # tokens before the patches: CLS and registers
        # Any: the type stubs of torch make every submodule of a module `Tensor | Module`
        self.vit: Any = build_vit(arch, drop_path)
        # position taken out of `dense` (families/position_removal.py)
        self.projection: Tensor | None
        self.register_buffer("projection", None, persistent=False)
        self.bases = None if arch.debias is None else PositionBases(arch.debias, arch.statistics)
        self.motion = None if arch.motion is None else MotionDecoder(arch.dim, arch.motion)
        # how blocks are run (blocks.py): neither changes the result
        self.gradient_checkpointing = False
        self.run_blocks: BlockRunner = run_blocks

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.arch.patch

    # -- stages: embed -> run -> finish; a method that freezes or shares a part calls them one by one ----------------

    def embed(
        self,
        images: Float[Tensor, "batch 3 height width"],
        masked: tuple[Bool[Tensor, "batch patches"], Float[Tensor, "1 dim"]] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], tuple[int, int]]:
        """CLS, registers and patches with their positions, and the grid (rows, columns).

        masked: patches that are replaced by a vector, before they get their positions.
        """
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"image of {height} x {width} px: both sides must be multiples of the patch size {self.patch}")
        x = self.vit.patch_embed.proj(images)
        grid = (x.shape[-2], x.shape[-1])
        x, cls = x.flatten(2).transpose(1, 2), self.vit.cls_token
        if masked is not None:
            mask, token = masked
            x = torch.where(mask[..., None], token.to(x.dtype), x)
        if not self.arch.rope:
            patch_position, cls_position = self.positions(grid)
            x, cls = x + patch_position, None if cls is None else cls + cls_position
        prefix = [token for token in (cls, self.vit.reg_token) if token is not None]
        return self.vit.norm_pre(torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)), grid

    def positions(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "1 patches dim"], Float[Tensor, "1 1 dim"]]:
        """Position embeddings of patches and CLS (zero if the CLS token contains it)."""
        table = self.vit.pos_embed
        has_cls = self.arch.class_token and not self.vit.no_embed_class
        cls = table[:, :1] if has_cls else torch.zeros_like(table[:, :1])
        return interpolate_positions(table[:, 1:] if has_cls else table, grid, self.arch.interpolation), cls

    def rotary_positions(self, grid: tuple[int, int]) -> Float[Tensor, "patches two_head_dim"] | None:
        """Sine and cosine of each patch's rotary angles; None for networks with a table.

        Angles are 2 pi c / period, c the patch's row, then its column, scaled to -1 ... 1 between the image's borders.
        """
        return self.vit.rope.get_embed(shape=list(grid)) if self.arch.rope else None

    def run(
        self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Blocks `start` to `stop` (exclusive; negative counts from the end)."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        return self.run_blocks(list(self.vit.blocks[start:stop]), x, self.rotary_positions(grid), recompute)

    def finish(self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]) -> Tokens:
        """The final LayerNorm, and the tokens by kind."""
        x = self.vit.norm(x)
        cls = x[:, 0] if self.arch.class_token else self.vit.attn_pool(x)
        return Tokens(cls=cls, registers=x[:, int(self.arch.class_token) : self.prefix], patches=x[:, self.prefix :], grid=grid)

    def weights(self) -> dict[str, Tensor]:
        """The state dict with timm's key names, the matrix of a map that is projected, and a decoder of masks."""
        decoder = {} if self.motion is None else {f"{PREFIX}{name}": x for name, x in self.motion.state_dict().items()}
        return self.vit.state_dict() | ({} if self.projection is None else {MATRIX: self.projection}) | decoder

    def set_motion_decoder(self, width: int | None) -> None:
        """Give it a new decoder of masks with random weights, or take away the one that it has (None)."""
        self.arch = replace(self.arch, motion=width)
        self.abilities = self.arch.abilities
        self.motion = None if width is None else MotionDecoder(self.dim, width)

    # -- outputs ----------------------------------------------------------------------------------------------------

    def tokens(self, images: Float[Tensor, "batch 3 height width"]) -> Tokens:
        """All tokens of the last layer."""
        x, grid = self.embed(images)
        return self.finish(self.run(x, grid), grid)

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The last layer's patch tokens as a map, without what is taken out of it."""
        return self.take_out_position(self.tokens(images).dense(), images)

    def take_out_position(
        self, maps: Float[Tensor, "batch dim rows columns"], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """The map itself, unless `method: debias` or `method: rasa` made this network."""
        if self.projection is not None:
            maps = torch.einsum("ed,bdhw->behw", self.projection, maps)
        return maps if self.bases is None else self.bases.take_out(maps, images, lambda black: self.tokens(black).dense())

    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The CLS token; without one the vector of the learned query."""
        return self.cls(images) if self.arch.class_token else self.tokens(images).cls

    def levels(
        self, images: Float[Tensor, "batch 3 height width"], numbers: Sequence[int], *, norm: bool
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Maps after the given (ascending, 0-based) blocks; `norm` applies the final LayerNorm."""
        return [patches for patches, _ in self._levels(images, numbers, norm=norm)]

    def levels_with_cls(
        self, images: Float[Tensor, "batch 3 height width"], numbers: Sequence[int], *, norm: bool
    ) -> list[tuple[Float[Tensor, "batch dim rows columns"], Float[Tensor, "batch dim"]]]:
        """The same, and the CLS token after each of the blocks."""
        return list(self._levels(images, numbers, norm=norm))

    def _levels(self, images: Tensor, numbers: Sequence[int], *, norm: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Patches as a map and first token after each of the blocks."""
        x, grid = self.embed(images)
        done = 0
        for layer in numbers:
            x = self.run(x, grid, done, layer + 1)
            done = layer + 1
            tokens = self.vit.norm(x) if norm else x
            yield tokens[:, self.prefix :].transpose(1, 2).unflatten(2, grid), tokens[:, 0]

    def block_tokens(self, images: Float[Tensor, "batch 3 height width"], blocks: int) -> Float[Tensor, "batch tokens dim"]:
        """CLS after each of the last `blocks` blocks, then the last block's mean patch token; all after the final norm."""
        x, grid = self.embed(images)
        x = self.run(x, grid, 0, -blocks)
        found = []
        for number in range(-blocks, 0):
            x = self.run(x, grid, self.arch.depth + number, self.arch.depth + number + 1)
            found.append(self.vit.norm(x[:, 0]))
        return torch.stack([*found, self.vit.norm(x[:, self.prefix :]).mean(1)], dim=1)

    # -- outputs of the last block's parts ---------------------------------------------------------------------------

    def cls(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The CLS token alone, at less cost: the last block runs for the CLS query only."""
        return self.cls_and_keys(images)[0]

    def cls_and_keys(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """The CLS token and the last block's keys, without the patches' share of the last block."""
        block, x, rope, _ = self._before_last_block(images)
        query, key, value = query_key_value(block, x, queries=1)
        x = finish_block(block, x[:, :1], block.attn.proj(attend(block, query, key, value, rope)))
        return self.vit.norm(x)[:, 0], key

    def keys(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """The last block's keys of all patches, heads side by side, before rotary positions."""
        _, key = self.cls_and_keys(images)
        return key[:, :, self.prefix :].transpose(1, 2).flatten(2)

    def projections(
        self, images: Float[Tensor, "batch 3 height width"], kind: Literal["queries", "keys", "values"]
    ) -> Float[Tensor, "batch patches dim"]:
        """The last block's queries, keys or values of all patches, heads side by side, before rotary positions."""
        block, x, _, _ = self._before_last_block(images)
        found = query_key_value(block, x)[("queries", "keys", "values").index(kind)]
        return found[:, :, self.prefix :].transpose(1, 2).flatten(2)

    def motion_masks(
        self, images: Float[Tensor, "batch 3 height width"], flow: Float[Tensor, "batch 2 height width"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """softmax(logits / 10) of the first of two sides, by the decoder of features and standardized flow."""
        assert self.motion is not None
        return masks_of(self.motion(self.dense(images), standardize_flow(flow)))

    def dense_and_attention(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim rows columns"], Float[Tensor, "batch heads rows columns"]]:
        """`dense`, and the last block's CLS attention of each head."""
        last = self.last_block(images)
        return self.take_out_position(last.tokens.dense(), images), last.cls_attention.unflatten(2, last.tokens.grid)

    def last_block(self, images: Float[Tensor, "batch 3 height width"]) -> LastBlock:
        """Final tokens with the last block's queries, keys and CLS attention."""
        block, x, rope, grid = self._before_last_block(images)
        query, key, value = query_key_value(block, x)
        tokens = self.finish(finish_block(block, x, block.attn.proj(attend(block, query, key, value, rope))), grid)
        scores = query[:, :, :1] @ rotate(block, key, rope).transpose(-2, -1) * query.shape[-1] ** -0.5
        return LastBlock(tokens, query, key, cls_attention=scores.softmax(dim=-1)[:, :, 0, self.prefix :])

    def patches_where(
        self, images: Float[Tensor, "batch 3 height width"], wanted: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "wanted_patches dim"]:
        """`tokens(images).patches[wanted]`, also in stochastic depth's draws, at less cost."""
        block, x, rope, _ = self._before_last_block(images)
        tokens = F.pad(wanted, (self.prefix, 0))
        y = block.attn.proj(attend(block, *query_key_value(block, x), rope)[tokens])
        return self.vit.norm(finish_block(block, x[tokens], y, wanted))

    # -- fine-tuning -------------------------------------------------------------------------------------------------

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Keep only the blocks' inputs for the backward pass, or all."""
        self.gradient_checkpointing = on

    def layer_of(self, parameter: str) -> tuple[int, int]:
        """0: what makes tokens (patch, position, CLS and register embeddings); i + 1: block i; depth + 1: the final norm."""
        depth = self.arch.depth
        block = re.match(r"vit\.blocks\.(\d+)\.", parameter)
        if block:
            return int(block[1]) + 1, depth + 2
        return (depth + 1 if parameter.startswith("vit.norm.") else 0), depth + 2

    def parameters_behind(self, level: int, *, norm: bool) -> list[nn.Parameter]:
        """Those of the blocks after this one, and of the final norm unless it is applied."""
        later = list(self.vit.blocks[level + 1 :].parameters())
        return later if norm else [*later, *self.vit.norm.parameters()]

    def _before_last_block(self, images: Tensor) -> tuple[Any, Tensor, Tensor | None, tuple[int, int]]:
        """The last block, its input, the rotary positions and the grid."""
        x, grid = self.embed(images)
        return self.vit.blocks[-1], self.run(x, grid, 0, -1), self.rotary_positions(grid), grid


def interpolate_positions(
    table: Float[Tensor, "1 old_patches dim"], grid: tuple[int, int], mode: Interpolation
) -> Float[Tensor, "1 new_patches dim"]:
    """Resample a square table of positions bicubically; the families' ways differ by 1 to 5 %.

    offset: by the scale factor (grid + 0.1) / side, no antialias (DINO, iBOT, DINOv2 without registers).
    antialias: by size, with antialias (DINOv2 with registers, timm).
    size: by size, without antialias (MAE, ViTDet, mmsegmentation).
    """
    side = math.isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(f"position table of {table.shape[1]} patches is not square")
    if grid == (side, side):
        return table
    image = table.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    if mode == "offset":
        scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=mode == "antialias")
    if image.shape[-2:] != grid:
        raise AssertionError(f"interpolated {side} x {side} positions to {tuple(image.shape[-2:])} instead of {grid}")
    return image.flatten(2).transpose(1, 2).to(table.dtype)
