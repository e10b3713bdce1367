"""Vision transformers: the only door to timm.

    backbone = create("vit_small_patch16", seed=0)              # random weights
    backbone = load("backbone.safetensors")                     # anything this project, timm or a family of checkpoints.yaml wrote
    print(backbone.report)                                      # what was taken from the file, what was not
    tokens = backbone.tokens(images)                            # CLS, registers, patches after the final norm
    features = backbone.dense(images)                           # [batch, dim, height / patch, width / patch]

Architectures are named `vit_{size}_patch{8,14,16}[_reg4][_swiglu][_rope]`. Patch 14 means DINOv2's family: LayerScale and position
embeddings of 37 x 37 patches (518 px), but for MAE's `huge`; the others have 224 px embeddings. A file whose table of positions has
another size is taken as it is. `_rope` means DINOv3's family: LayerScale, and rotary positions in every attention instead of a
table. `small12` is MoCo-v3's and SLIP's small one with 12 heads, `giant` DINOv2's, `huge20` DINOv3's huge one with 20 heads. `nano`
and `micro` exist for tests and the demo. `timm/NAME` is the network that timm calls NAME, where it is one of these.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.models.architecture import Architecture
from densewalk.models.blocks import Through, through
from densewalk.models.positions import interpolate_positions
from densewalk.models.vit import build_vit
from densewalk.ops.cpu.attention import attention
from densewalk.ops.cpu.linear import linear


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors.

    taken: number of tensors. dropped: groups that are not the backbone's, with their numbers of tensors. changed: what was
    renamed, folded or taken in another size.
    """

    source: str
    network: str
    taken: int
    parameters: int
    dropped: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        network = f" of network {self.network}" if self.network else ""
        parts = [f"{self.source}: {self.taken} tensors{network} taken ({self.parameters:,} parameters)"]
        if self.dropped:
            parts.append("not taken: " + ", ".join(f"{name} ({count})" for name, count in self.dropped.items()))
        return "; ".join([*parts, *self.changed])


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
    """What the last block saw: its queries, keys and CLS attention, beside the final tokens.

    query, key: [batch, heads, tokens, dim / heads], tokens in the order CLS, registers, patches; as the layer gives them, which is
        before rotary positions.
    cls_attention: softmax(q_cls k^T / sqrt(dim / heads)) restricted to the patches (the rows sum to less than 1), k with its
        position.
    """

    tokens: Tokens
    query: Float[Tensor, "batch heads tokens head_dim"]
    key: Float[Tensor, "batch heads tokens head_dim"]
    cls_attention: Float[Tensor, "batch heads patches"]


class Backbone(nn.Module):
    """A vision transformer of timm's with dense outputs at any image size.

    Images are [batch, 3, height, width], normalised with ImageNet's mean and standard deviation (data/images.py), height and
    width multiples of the patch size. `state_dict()` of `vit` has timm's key names.
    """

    def __init__(self, arch: Architecture, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        # Any: the type stubs of torch make every submodule of a module `Tensor | Module`
        self.vit: Any = build_vit(arch, drop_path)
        self.report: LoadReport | None = None  # of the file that the weights are from
        # how blocks are run (blocks.py): neither changes what comes out
        self.gradient_checkpointing = False
        self.through: Through = through

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.arch.dim

    @property
    def source(self) -> str:
        """The file that the weights are from, for messages."""
        return self.report.source if self.report else f"{self.arch.name} with new weights"

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.arch.patch

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: CLS and registers."""
        return 1 + self.arch.registers

    # -- stages: embed -> run -> finish; a method that freezes or shares a part calls them one by one ----------------

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Float[Tensor, "batch tokens dim"], tuple[int, int]]:
        """Patches with positions behind CLS and registers, and the grid (rows, columns).

        Raises:
            ValueError: height or width is not a multiple of the patch size (the remainder would be cut off unseen).
        """
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"image of {height} x {width} px: both sides must be multiples of the patch size {self.patch}")
        x = self.vit.patch_embed.proj(images)
        grid = (x.shape[-2], x.shape[-1])
        x, cls = x.flatten(2).transpose(1, 2), self.vit.cls_token
        if not self.arch.rope:
            patch_position, cls_position = self.positions(grid)
            x, cls = x + patch_position, cls + cls_position
        prefix = [cls] if self.vit.reg_token is None else [cls, self.vit.reg_token]
        return self.vit.norm_pre(torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)), grid

    def positions(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "1 patches dim"], Float[Tensor, "1 1 dim"]]:
        """Position embeddings of the patches on `grid`, and of CLS (zero where the file folds it into the CLS token); not for rotary
        positions."""
        table = self.vit.pos_embed
        has_cls = not self.vit.no_embed_class
        cls = table[:, :1] if has_cls else torch.zeros_like(table[:, :1])
        return interpolate_positions(table[:, 1:] if has_cls else table, grid, self.arch.interpolation), cls

    def turns(self, grid: tuple[int, int]) -> Float[Tensor, "patches two_head_dim"] | None:
        """Sine and cosine of each patch's rotary angles; None where positions are in a table.

        Angles are 2 pi c / period, c the patch's row, then its column, scaled to -1 ... 1 between the image's borders.
        """
        return self.vit.rope.get_embed(shape=list(grid)) if self.arch.rope else None

    def run(
        self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Blocks `start` to `stop` (exclusive; negative counts from the end) on the tokens of `grid` (rows, columns)."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        return self.through(list(self.vit.blocks[start:stop]), x, self.turns(grid), recompute)

    def finish(self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]) -> Tokens:
        """The final LayerNorm, and the tokens by kind."""
        x = self.vit.norm(x)
        return Tokens(cls=x[:, 0], registers=x[:, 1 : self.prefix], patches=x[:, self.prefix :], grid=grid)

    # -- what callers want ------------------------------------------------------------------------------------------

    def tokens(self, images: Float[Tensor, "batch 3 height width"]) -> Tokens:
        """All tokens of the last layer."""
        x, grid = self.embed(images)
        return self.finish(self.run(x, grid), grid)

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The last layer's patch tokens as a map."""
        return self.tokens(images).dense()

    def intermediate(
        self, images: Float[Tensor, "batch 3 height width"], layers: list[int], *, norm: bool
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """Maps after the blocks with the given (ascending, 0-based) indices; `norm` applies the final LayerNorm to each."""
        x, grid = self.embed(images)
        maps, done = [], 0
        for layer in layers:
            x = self.run(x, grid, done, layer + 1)
            done = layer + 1
            patches = (self.vit.norm(x) if norm else x)[:, self.prefix :]
            maps.append(patches.transpose(1, 2).unflatten(2, grid))
        return maps

    def cls(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The CLS token alone: the last block runs for the CLS query only, which changes nothing but the cost."""
        return self.cls_and_keys(images)[0]

    def last_block(self, images: Float[Tensor, "batch 3 height width"]) -> LastBlock:
        """Final tokens with the last block's queries, keys and CLS attention."""
        x, grid = self.embed(images)
        x = self.run(x, grid, 0, -1)
        query, key, value = self._qkv(x)
        tokens = self._close(x, self._attended(query, key, value, grid))
        return LastBlock(
            tokens=Tokens(cls=tokens[:, 0], registers=tokens[:, 1 : self.prefix], patches=tokens[:, self.prefix :], grid=grid),
            query=query,
            key=key,
            cls_attention=self._cls_attention(query, self._turned(key, grid)),
        )

    def cls_and_keys(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """The CLS token and the last block's keys, without the patches' share of the last block."""
        x, grid = self.embed(images)
        x = self.run(x, grid, 0, -1)
        query, key, value = self._qkv(x, queries=1)
        return self._close(x[:, :1], self._attended(query, key, value, grid))[:, 0], key

    def patches_where(
        self, images: Float[Tensor, "batch 3 height width"], wanted: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "wanted_patches dim"]:
        """The last layer's tokens of some patches, image by image: the last block's projection and MLP run for these alone.

        Equals `tokens(images).patches[wanted]`, in stochastic depth's draws, too.
        """
        x, grid = self.embed(images)
        x = self.run(x, grid, 0, -1)
        kept = F.pad(wanted, (self.prefix, 0))
        attended = self._attended(*self._qkv(x), grid).transpose(1, 2).flatten(2)
        return self._close_some(x[kept], attended[kept], wanted)

    # -- the last block, opened -------------------------------------------------------------------------------------

    def _qkv(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the first `queries` tokens), keys and values of the last block: [batch, heads, tokens, head_dim]."""
        block = self.vit.blocks[-1]
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        if self.arch.rope:  # keys have none
            bias = torch.cat([block.attn.q_bias, block.attn.k_bias, block.attn.v_bias])
        x = block.norm1(x)
        query = linear(x[:, :queries], weight[: self.dim], bias[: self.dim])
        key, value = linear(x, weight[self.dim :], bias[self.dim :]).chunk(2, dim=-1)
        heads = self.arch.heads
        query, key, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        return query, key, value

    def _turned(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries or keys with their rotary positions, which CLS and registers have none of."""
        turns = self.turns(grid)
        if turns is None or x.shape[2] <= self.prefix:
            return x
        return torch.cat([x[:, :, : self.prefix], apply_rot_embed_cat(x[:, :, self.prefix :], turns, half=True).type_as(x)], dim=2)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """The values that each query gets: [batch, heads, queries, head_dim]."""
        return attention(self._turned(query, grid), self._turned(key, grid), value)

    def _scaled(self, branch: Literal[1, 2], y: Tensor) -> Tensor:
        """The output of the last block's attention or MLP times its LayerScale."""
        block = self.vit.blocks[-1]
        return y * getattr(block, f"gamma_{branch}") if self.arch.rope else getattr(block, f"ls{branch}")(y)

    def _close(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the last block behind its attention, and the final norm."""
        block = self.vit.blocks[-1]
        x = x + block.drop_path1(self._scaled(1, block.attn.proj(attended.transpose(1, 2).flatten(2))))
        x = x + block.drop_path2(self._scaled(2, block.mlp(block.norm2(x))))
        return self.vit.norm(x)

    def _close_some(self, x: Tensor, attended: Tensor, wanted: Tensor) -> Tensor:
        """`_close` for the tokens [wanted_patches, dim] of some patches; stochastic depth drops whole images."""
        block = self.vit.blocks[-1]
        images = wanted.nonzero()[:, 0]
        every_image = x.new_ones(len(wanted), 1)
        x = x + block.drop_path1(every_image)[images] * self._scaled(1, block.attn.proj(attended))
        x = x + block.drop_path2(every_image)[images] * self._scaled(2, block.mlp(block.norm2(x)))
        return self.vit.norm(x)

    def _cls_attention(self, query: Tensor, key: Tensor) -> Tensor:
        scores = query[:, :, :1] @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(dim=-1)[:, :, 0, self.prefix :]
