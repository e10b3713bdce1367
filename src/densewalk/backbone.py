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

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import LayerScale, Mlp, RotaryEmbeddingDinoV3, SwiGLU, SwiGLUPacked, apply_rot_embed_cat
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from densewalk import dinov3
from densewalk.attention import attention, self_attention
from densewalk.blocks import Through, residual, through
from densewalk.errors import UserError
from densewalk.products import Linear, hasten, linear, linear_behind, suits
from densewalk.settings.checkpoints import IMAGENET_MEAN, IMAGENET_STD

Interpolation = Literal["offset", "antialias", "size"]

# width, depth, heads
SIZES = {
    "nano": (48, 2, 6),
    "micro": (96, 4, 6),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "small12": (384, 12, 12),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "huge20": (1280, 32, 20),
    "giant": (1536, 40, 24),
}
# parts beside a backbone's own in a file: classifiers, projection heads (NeCo, Leopart, DINOv2, Franca), prototypes (Leopart), what
# stands for masked patches (DINOv2, iBOT) and decoders (MAE)
HEADS = {"head", "projection_head", "prototypes", "dino_head", "ibot_head", "rasa_head", "mask_token", "masked_embed"}
HEADS |= {f"decoder_{part}" for part in ("embed", "blocks", "norm", "pred", "pos_embed")}
_NAME = re.compile(r"vit_(?P<size>[a-z]+\d*)_patch(?P<patch>8|14|16)(?P<reg>_reg4)?(?P<swiglu>_swiglu)?(?P<rope>_rope)?")


@dataclass(frozen=True)
class Architecture:
    """The shape of a network; `Architecture.named` knows the public ones."""

    name: str
    dim: int
    depth: int
    heads: int
    patch: int
    image: int = 224
    registers: int = 0
    layer_scale: bool = False
    interpolation: Interpolation = "offset"
    swiglu: bool = False
    rope: bool = False
    periods: tuple[float, ...] | None = None
    """Of the rotary positions, where they are not 100 ** (4 k / head_dim): Meta's files hold them rounded to bfloat16."""

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer; DINOv2's gated ones have two thirds, rounded up to a multiple of 8."""
        return -(-(8 * self.dim // 3) // 8) * 8 if self.swiglu and not self.rope else 4 * self.dim

    def without_registers(self) -> "Architecture":
        """The same less its register tokens, under its name in this project.

        Raises:
            UserError: it has none, having been named by timm.
        """
        less = replace(self, registers=0)
        for size in (size for size, shape in SIZES.items() if shape == (self.dim, self.depth, self.heads)):
            gated = "_swiglu" if self.swiglu and size != "giant" else ""
            own = Architecture.named(f"vit_{size}_patch{self.patch}{gated}{'_rope' if self.rope else ''}")
            # what a file says by itself may be another than usual
            same = replace(less, name=own.name, image=own.image, interpolation=own.interpolation, periods=None)
            if own == same:
                return replace(less, name=own.name)
        raise UserError(f"{self.name} has no name without its registers here", todo="keep the registers")

    @staticmethod
    def named(name: str) -> "Architecture":
        """The architecture called `name`.

        Raises:
            UserError: the name is not `vit_{size}_patch{8,14,16}[_reg4][_swiglu][_rope]` with a known size, nor `timm/` and a
                vision transformer of timm's of these kinds.
        """
        if name.startswith("timm/"):
            return _timm_architecture(name.removeprefix("timm/"))
        match = _NAME.fullmatch(name)
        if match is None or match["size"] not in SIZES:
            raise UserError(
                f"unknown architecture '{name}'",
                allowed="vit_{" + ",".join(SIZES) + "}_patch{8,14,16}, with _reg4 for four register tokens, _swiglu for gated MLPs, "
                "_rope for DINOv3's rotary positions; or timm/ and a full name of timm's",
            )
        dim, depth, heads = SIZES[match["size"]]
        rope = match["rope"] is not None
        dinov2 = match["patch"] == "14" and match["size"] != "huge" and not rope
        return Architecture(
            name=name,
            dim=dim,
            depth=depth,
            heads=heads,
            patch=int(match["patch"]),
            image=518 if dinov2 else 224,
            registers=4 if match["reg"] else 0,
            layer_scale=dinov2 or rope,
            interpolation="antialias" if match["reg"] else "offset",
            swiglu=match["size"] == "giant" or match["swiglu"] is not None,
            rope=rope,
        )


def _timm_architecture(name: str) -> Architecture:
    """The shape of a network that timm knows; it is built without memory to be looked at.

    Raises:
        UserError: timm does not know it, or it computes something else than the networks here.
    """
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0)
    except RuntimeError as error:
        raise UserError(f"timm knows no model '{name}'", todo="see timm.list_models('vit*', pretrained=True)") from error
    rope = isinstance(model, Eva) and isinstance(model.rope, RotaryEmbeddingDinoV3)
    if not isinstance(model, VisionTransformer) and not rope:
        raise UserError(f"timm's {name} is a {type(model).__name__}", allowed="plain vision transformers (VisionTransformer), DINOv3's")
    block: Any = model.blocks[0]
    arch = Architecture(
        name=f"timm/{name}",
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        image=model.patch_embed.img_size[0],
        registers=model.num_prefix_tokens - 1 if rope else model.num_reg_tokens,
        layer_scale=rope or not isinstance(block.ls1, nn.Identity),
        interpolation="antialias",
        swiglu=isinstance(block.mlp, SwiGLU if rope else timm.layers.GluMlp),
        rope=rope,
    )
    with torch.device("meta"):
        own = Backbone(arch).vit
    problems = [text for text, same in _likeness(model, own).items() if not same]
    if problems:
        raise UserError(f"timm's {name} differs from the networks here in its {', '.join(problems)}", allowed="plain vision transformers")
    return arch


def _likeness(model: Any, own: Any) -> dict[str, bool]:
    """In what two vision transformers may differ, and whether they are alike there."""
    config, shapes = model.pretrained_cfg, {k: v.shape for k, v in model.state_dict().items()}
    # DINOv3's biases are zero, and timm has each network with and without them
    optional = dinov3.BIASES if getattr(model.blocks[0].attn, "q_bias", None) is None else ()
    return {
        "parameters": shapes == {k: v.shape for k, v in own.state_dict().items() if not k.endswith(optional)},
        "activation": type(model.blocks[0].mlp.act) is type(own.blocks[0].mlp.act),
        "normalisation layers": norm_of(model.blocks[0].norm1) == norm_of(own.blocks[0].norm1),
        "rotary positions": turns_of(model) == turns_of(own),
        "blocks": type(model.blocks[0]) is timms_block(own.blocks[0]),
        "normalisation of pixels": (tuple(config["mean"]), tuple(config["std"])) == (IMAGENET_MEAN, IMAGENET_STD),
    }


def timms_block(block: Any) -> type:
    """The class of timm's that a block here computes the same as."""
    return Block if isinstance(block, LeanBlock) else type(block)


def norm_of(layer: Any) -> tuple[type, float]:
    """What a normalisation layer computes."""
    return type(layer), layer.eps


def turns_of(model: Any) -> tuple[Any, ...]:
    """What decides a network's rotary positions; nothing for one with a table."""
    rope = getattr(model, "rope", None)
    return (
        ()
        if rope is None
        else (rope.temperature, rope.min_period, rope.max_period, rope.normalize_coords, rope.rotate_half, rope.grid_offset)
    )


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


class LeanMlp(Mlp):
    """timm's MLP without keeping the activation's output for the backward pass, which makes it again from its input.

    It is a quarter of all that a block keeps, for the cost of one GELU; values and gradients are the same to the last bit.
    """

    def forward(self, x: Tensor, norm: nn.Module | None = None, scale: nn.Module | None = None) -> Tensor:
        """What timm's gives behind a norm, times a LayerScale."""
        x = self.fc1(x) if norm is None else behind(norm, x, self.fc1)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses by itself what to keep
            return self._activate(x, scale)
        weight, bias = folded(self.fc2, scale)
        if isinstance(self.fc2, Linear) and suits(x, weight):
            return linear_behind(self.act, x, weight, bias)
        # stops as soon as the activation is there: the second layer is not computed again
        return checkpoint(self._activate, x, scale, use_reentrant=False, preserve_rng_state=False)

    def _activate(self, x: Tensor, scale: nn.Module | None) -> Tensor:
        return scaled(self.fc2, self.act(x), scale)


class LeanBlock(Block):
    """timm's block with less to do and to keep: no pass over all tokens for LayerScale, no work for images that are dropped."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """What timm's gives, in stochastic depth's draws, too."""
        x = residual(x, self.drop_path1, self.attend)
        return residual(x, self.drop_path2, self.transform)

    def attend(self, x: Tensor) -> Tensor:
        """The branch of the attention."""
        layer: Any = self.attn
        qkv = behind(self.norm1, x, layer.qkv).unflatten(2, (3, layer.num_heads, -1))
        return scaled(layer.proj, self_attention(qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2), self.ls1)

    def transform(self, x: Tensor) -> Tensor:
        """The branch of the MLP."""
        return self.mlp(x, self.norm2, self.ls2) if isinstance(self.mlp, LeanMlp) else self.ls2(self.mlp(self.norm2(x)))


def behind(norm: nn.Module, x: Tensor, layer: Any) -> Tensor:
    """`layer(norm(x))`; where our own product is taken, the norm's output is not kept for the backward pass but made again."""
    if isinstance(layer, Linear) and torch.is_grad_enabled() and suits(x, layer.weight):
        return linear_behind(norm, x, layer.weight, layer.bias)
    return layer(norm(x))


def scaled(layer: Any, x: Tensor, scale: nn.Module | None) -> Tensor:
    """`scale(layer(x))`; a LayerScale is multiplied into the weights, which are fewer than the outputs of a batch."""
    return linear(x, *folded(layer, scale)) if isinstance(scale, LayerScale) else layer(x)


def folded(layer: Any, scale: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, times a LayerScale behind it."""
    if not isinstance(scale, LayerScale):
        return layer.weight, layer.bias
    return layer.weight * scale.gamma[:, None], layer.bias * scale.gamma


def _plain(arch: Architecture, drop_path: float) -> VisionTransformer:
    """The network with a table of positions."""
    return VisionTransformer(
        img_size=arch.image,
        patch_size=arch.patch,
        embed_dim=arch.dim,
        depth=arch.depth,
        num_heads=arch.heads,
        num_classes=0,
        global_pool="token",
        init_values=1e-5 if arch.layer_scale else None,
        reg_tokens=arch.registers,
        no_embed_class=arch.registers > 0,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
        # the first layer of a gated MLP makes both the gate and the gated; a half keeps timm's rounding down right
        mlp_ratio=((2 if arch.swiglu else 1) * arch.hidden + 0.5) / arch.dim,
        mlp_layer=SwiGLUPacked if arch.swiglu else LeanMlp,  # type: ignore[arg-type]
        block_fn=LeanBlock,
        act_layer=nn.SiLU if arch.swiglu else None,
    )


def _rotary(arch: Architecture, drop_path: float) -> Eva:
    """DINOv3's network. Its release moves, squeezes and stretches the coordinates at random in training; this does not."""
    vit = Eva(
        img_size=arch.image,
        patch_size=arch.patch,
        embed_dim=arch.dim,
        depth=arch.depth,
        num_heads=arch.heads,
        num_classes=0,
        global_pool="token",
        init_values=1e-5,
        num_reg_tokens=arch.registers,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
        swiglu_mlp=arch.swiglu,
        swiglu_align_to=8 if arch.swiglu else 0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100.0,
        rope_rotate_half=True,
        norm_layer=partial(timm.layers.LayerNorm, eps=1e-5),
    )
    if arch.periods is not None:
        vit.rope.periods.copy_(torch.tensor(arch.periods))  # type: ignore[union-attr, operator]
    return vit


class Backbone(nn.Module):
    """A vision transformer of timm's with dense outputs at any image size.

    Images are [batch, 3, height, width], normalised with ImageNet's mean and standard deviation (images.py), height and
    width multiples of the patch size. `state_dict()` of `vit` has timm's key names.
    """

    def __init__(self, arch: Architecture, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        # Any: the type stubs of torch make every submodule of a module `Tensor | Module`
        self.vit: Any = hasten((_rotary if arch.rope else _plain)(arch, drop_path))
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


def interpolate_positions(
    table: Float[Tensor, "1 old_patches dim"], grid: tuple[int, int], mode: Interpolation
) -> Float[Tensor, "1 new_patches dim"]:
    """Resample a square table of position embeddings to another grid, bicubically, the way the weights' family does.

    offset: by the scale factor (grid + 0.1) / side, no antialias (DINO, iBOT, DINOv2 without registers).
    antialias: by size, with antialias (DINOv2 with registers, timm).
    size: by size, without antialias (MAE, ViTDet, mmsegmentation).
    The families differ by 1 to 5 % of the embedding, so the choice is part of a checkpoint's description.
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


# -- making and loading ----------------------------------------------------------------------------------------------


def create(arch: str | Architecture, *, seed: int, drop_path: float = 0.0) -> Backbone:
    """A backbone with random weights that depend on `arch` and `seed` only; the global random state is left as it was."""
    architecture = Architecture.named(arch) if isinstance(arch, str) else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(architecture, drop_path=drop_path)


def load(
    path: str | Path,
    arch: str | Architecture | None = None,
    *,
    drop_path: float = 0.0,
    key: str | None = None,
    interpolation: Interpolation | None = None,
) -> Backbone:
    """A backbone from a file of this project, of timm, or in any layout of checkpoints.yaml; every key must fit.

    A table of positions of another size than the architecture's is taken as it is; `interpolate_positions` resamples it when
    images are seen.

    Args:
        arch: needed unless the file is one of this project's exports, which know theirs.
        key: for training checkpoints with several networks: a part of the name of the wanted one, e.g. `teacher`.
        interpolation: the rule for positions, where it is not the architecture's own nor said by the file.

    Raises:
        UserError: unreadable file, missing, extra or misshapen keys; the message lists them.
    """
    path = Path(path)
    weights, metadata, report = read_weights(path, key)
    architecture = _file_architecture(path, metadata, arch)
    if (rule := interpolation or metadata.get("interpolation")) is not None:
        if rule not in get_args(Interpolation):
            raise UserError(f"{path}: positions by the rule '{rule}'", allowed=", ".join(get_args(Interpolation)))
        architecture = replace(architecture, interpolation=rule)  # type: ignore[arg-type]
    if dinov3.is_dinov3(weights) != architecture.rope:
        raise _other_positions(path, architecture)
    changed = _changes(weights)
    if architecture.rope:
        architecture = replace(architecture, periods=dinov3.periods(weights, metadata, architecture.dim // architecture.heads, str(path)))
        weights = dinov3.to_timm(weights, str(path))
    weights = to_timm(weights)
    if (side := _table_side(weights, architecture)) is not None and side * architecture.patch != architecture.image:
        usual = architecture.image // architecture.patch
        changed.append(f"positions of {side} x {side} patches taken as they are, not {usual} x {usual}")
        architecture = replace(architecture, image=side * architecture.patch)
    positions = (
        "are rotary, for any size" if architecture.rope else f"are resampled to other sizes by the rule `{architecture.interpolation}`"
    )
    changed.append(f"positions {positions}")
    backbone = Backbone(architecture, drop_path=drop_path)
    load_strictly(backbone.vit, weights, source=str(path))
    backbone.report = replace(report, taken=len(weights), parameters=sum(w.numel() for w in weights.values()), changed=changed)
    return backbone


def _file_architecture(path: Path, metadata: Mapping[str, str], arch: str | Architecture | None) -> Architecture:
    """The architecture that the file or the caller names; the two must not contradict each other."""
    named = metadata.get("arch")
    if arch is None and named is None:
        raise UserError(f"{path} does not say its architecture", todo="give `arch` for this checkpoint")
    if isinstance(arch, str) and named is not None and named != Architecture.named(arch).name:
        raise UserError(f"{path} holds a {named}, not a {arch}", todo=f"set arch: {named}")
    chosen = arch if arch is not None else named
    assert chosen is not None
    return Architecture.named(chosen) if isinstance(chosen, str) else chosen


def _other_positions(path: Path, arch: Architecture) -> UserError:
    """What to say of a file whose network has another kind of positions than the architecture."""
    if arch.rope:
        return UserError(f"{path} is none of DINOv3's, whose positions are rotary", todo="take `_rope` off `arch`")
    return UserError(f"{path} has the rotary positions of DINOv3, {arch.name} has none", todo="set arch: vit_{size}_patch16_reg4_rope")


def _table_side(weights: Mapping[str, Tensor], arch: Architecture) -> int | None:
    """Patches along a side of the file's table of positions; None where there is no square one."""
    table = weights.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    patches = table.shape[1] - (0 if arch.registers else 1)
    return math.isqrt(patches) if patches > 0 and math.isqrt(patches) ** 2 == patches else None


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """`load_state_dict` that explains what does not fit.

    Raises:
        UserError: any key is missing, left over, or of another shape.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & weights.keys()
        if own[k].shape != weights[k].shape
    ]
    problems = [
        f"{label}: {_some(keys)}"
        for label, keys in (("missing", missing), ("not expected", extra), ("wrong shape", sorted(shapes)))
        if keys
    ]
    if problems:
        raise UserError(f"{source} does not fit the network; " + "; ".join(problems), todo="check `arch` and which file this is")
    module.load_state_dict(weights)


def _some(keys: list[str], most: int = 6) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def read_weights(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str], LoadReport]:
    """The flat state dict of a file's backbone, the metadata of a safetensors file, and a report; nothing in it is executed.

    Raises:
        UserError: no such file, not a safetensors file nor a plain dictionary of tensors, or not clear which network.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", todo="download it or correct the path")
    try:
        if _is_safetensors(path):
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
            content: Any = load_file(path)
        else:
            metadata = {}
            with torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # torch's own advice is to switch the safety off
        why = f"it holds a {foreign[1]}, which is not known to be harmless" if foreign else (str(error) or "it is cut off").splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be read safely: {why}", todo="use a file of tensors only") from error
    return _one_network(content, path, key, metadata)


def _is_safetensors(path: Path) -> bool:
    """By name or by content, since files that are got by hand are saved under any name: eight bytes of length, then JSON."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


# harmless objects beside the weights in training checkpoints
INERT = (
    "argparse.Namespace",
    "builtins.getattr",  # which mmengine's history needs
    "mmengine.logging.history_buffer.HistoryBuffer",
    "pathlib.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)


class _Inert:
    """Stands for each of them: their own code is neither imported nor run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


def _one_network(
    content: Any, path: Path, key: str | None, metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str], LoadReport]:
    """The state dict of one backbone inside a checkpoint, without wrappers' prefixes and without projection heads.

    Wherever a `cls_token` is, there is a network, and what stands before it is its name: `teacher.backbone` in DINO's and
    Time-Tuning's files, `state_dict.model` in Lightning's (NeCo, Leopart), nothing in a file of weights alone.

    Raises:
        UserError: several networks and no `key` to choose by, or none that `key` fits.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    try:
        flat = dinov3.from_transformers(dict(_leaves(content)))
    except UserError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    networks = sorted({k.removesuffix("cls_token") for k in flat if k.split(".")[-1] == "cls_token"})
    chosen = [n for n in networks if key is None or f".{key}." in f".{n}"]
    names = ", ".join(n.removesuffix(".") or "one without a name (leave `key` out)" for n in networks) or "none"
    if key is not None and not chosen:
        raise UserError(f"checkpoint {path} has no network '{key}'", allowed=names)
    if len(chosen) > 1:
        raise UserError(f"checkpoint {path} holds several networks: {names}", todo="say with `key` which one, e.g. the part `teacher`")
    prefix = chosen[0] if chosen else ""
    own = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    weights = {k: v for k, v in own.items() if k.split(".")[0] not in HEADS}
    others = [k for k in flat if not k.startswith(prefix)]
    dropped = Counter(_group(k, networks) for k in others) + Counter(k.split(".")[0] for k in own if k not in weights)
    report = LoadReport(str(path), prefix.removesuffix("."), len(weights), 0, dict(sorted(dropped.items())))
    return weights, metadata, report


def _group(key: str, networks: list[str]) -> str:
    """The network that a tensor is of, or the first two parts of its name."""
    named = [n for n in networks if n and key.startswith(n)]
    return named[0].removesuffix(".") if named else ".".join(key.split(".")[:2])


def _leaves(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries under dotted names.

    Raises:
        UserError: more than 32 dictionaries in one another, or one in itself.
    """
    if depth > 32:
        raise UserError("dictionaries in dictionaries without an end", todo="use a file of tensors only")
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.", depth + 1)


# what -> how its keys become timm's, one substitution after the other
RENAMED = {
    "chunks of blocks renumbered": [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")],
    "gated MLPs renamed": [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")],
    "OpenMMLab's names changed to timm's": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"^ln1\.", "norm."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    ],
}
FOLDED = "CLS's position folded into the CLS token, as timm does where there are registers"


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to timm's keys; timm's own pass through unchanged.

    DINO's, iBOT's, MAE's and MoCo-v3's keys are timm's. DINOv2's are, but for training files that number blocks as
    `blocks.<chunk>.<i>`, gated MLPs, and registers: there CLS's own position is folded into the CLS token.
    """
    substitutions = [pair for pairs in RENAMED.values() for pair in pairs]
    result = {_substitute(k, substitutions): v for k, v in weights.items() if k != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        if _has_cls_position(result["pos_embed"]):
            result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
            result["pos_embed"] = result["pos_embed"][:, 1:]
    return result


def _changes(weights: Mapping[str, Tensor]) -> list[str]:
    """In words, what `to_timm` does to them."""
    found = [what for what, pairs in RENAMED.items() if any(re.search(pattern, k) for pattern, _ in pairs for k in weights)]
    return found + dinov3.changes(weights) + ([FOLDED] if "register_tokens" in weights else [])


def _substitute(key: str, substitutions: list[tuple[str, str]]) -> str:
    for pattern, replacement in substitutions:
        key = re.sub(pattern, replacement, key)
    return key


def _has_cls_position(table: Tensor) -> bool:
    """Whether one entry stands before those of a square of patches."""
    return math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1
