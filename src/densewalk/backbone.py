"""Vision transformers: the only door to timm.

    backbone = create("vit_small_patch16", seed=0)              # random weights
    backbone = load("backbone.safetensors")                     # anything this project, timm, DINO or DINOv2 wrote
    tokens = backbone.tokens(images)                            # CLS, registers, patches after the final norm
    features = backbone.dense(images)                           # [batch, dim, height / patch, width / patch]

Architectures are named `vit_{size}_patch{8,14,16}[_reg4]`. Patch 14 means DINOv2's family: LayerScale and position
embeddings of 37 x 37 patches (518 px); the others have 224 px embeddings. `nano` and `micro` exist for tests and the demo.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from densewalk.blocks import Through, through
from densewalk.errors import UserError

Interpolation = Literal["offset", "antialias", "size"]

# width, depth, heads
SIZES = {
    "nano": (48, 2, 6),
    "micro": (96, 4, 6),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
# parts beside a backbone's own in a file: classifiers, projection heads (NeCo, Leopart) and prototypes (Leopart)
HEADS = {"head", "projection_head", "prototypes"}
_NAME = re.compile(r"vit_(?P<size>[a-z]+)_patch(?P<patch>8|14|16)(?P<reg>_reg4)?")


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

    @staticmethod
    def named(name: str) -> "Architecture":
        """The architecture called `name`.

        Raises:
            UserError: the name is not `vit_{size}_patch{8,14,16}[_reg4]` with a known size.
        """
        match = _NAME.fullmatch(name)
        if match is None or match["size"] not in SIZES:
            raise UserError(
                f"unknown architecture '{name}'",
                allowed="vit_{" + ",".join(SIZES) + "}_patch{8,14,16}, with _reg4 for four register tokens",
            )
        dim, depth, heads = SIZES[match["size"]]
        dinov2 = match["patch"] == "14"
        return Architecture(
            name=name,
            dim=dim,
            depth=depth,
            heads=heads,
            patch=int(match["patch"]),
            image=518 if dinov2 else 224,
            registers=4 if match["reg"] else 0,
            layer_scale=dinov2,
            interpolation="antialias" if match["reg"] else "offset",
        )


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

    query, key: [batch, heads, tokens, dim / heads], tokens in the order CLS, registers, patches.
    cls_attention: softmax(q_cls k^T / sqrt(dim / heads)) restricted to the patches (the rows sum to less than 1).
    """

    tokens: Tokens
    query: Float[Tensor, "batch heads tokens head_dim"]
    key: Float[Tensor, "batch heads tokens head_dim"]
    cls_attention: Float[Tensor, "batch heads patches"]


class LeanMlp(Mlp):
    """timm's MLP without keeping the activation's output for the backward pass, which makes it again from its input.

    It is a quarter of all that a block keeps, for the cost of one GELU; values and gradients are the same to the last bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What timm's gives."""
        x = self.fc1(x)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a compiler chooses by itself what to keep
            # stops as soon as the activation is there: the second layer is not computed again
            return checkpoint(self._activate, x, use_reentrant=False, preserve_rng_state=False)
        return self._activate(x)

    def _activate(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(x))


class Backbone(nn.Module):
    """A timm VisionTransformer with dense outputs at any image size.

    Images are [batch, 3, height, width], normalised with ImageNet's mean and standard deviation (images.py), height and
    width multiples of the patch size. `state_dict()` of `vit` has timm's key names.
    """

    def __init__(self, arch: Architecture, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        # Any: the type stubs of torch make every submodule of a module `Tensor | Module`
        self.vit: Any = VisionTransformer(
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
            mlp_layer=LeanMlp,
        )
        # how blocks are run (blocks.py): neither changes what comes out
        self.gradient_checkpointing = False
        self.through: Through = through

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.arch.dim

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
        x = x.flatten(2).transpose(1, 2)
        patch_position, cls_position = self.positions(grid)
        cls = (self.vit.cls_token + cls_position).expand(len(x), -1, -1)
        prefix = [cls] if self.vit.reg_token is None else [cls, self.vit.reg_token.expand(len(x), -1, -1)]
        return self.vit.norm_pre(torch.cat([*prefix, x + patch_position], dim=1)), grid

    def positions(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "1 patches dim"], Float[Tensor, "1 1 dim"]]:
        """Position embeddings of the patches on `grid`, and of CLS (zero where the file folds it into the CLS token)."""
        table = self.vit.pos_embed
        has_cls = not self.vit.no_embed_class
        cls = table[:, :1] if has_cls else torch.zeros_like(table[:, :1])
        return interpolate_positions(table[:, 1:] if has_cls else table, grid, self.arch.interpolation), cls

    def run(self, x: Float[Tensor, "batch tokens dim"], start: int = 0, stop: int | None = None) -> Float[Tensor, "batch tokens dim"]:
        """Blocks `start` to `stop` (exclusive; negative counts from the end)."""
        return self.through(list(self.vit.blocks[start:stop]), x, self.gradient_checkpointing and torch.is_grad_enabled())

    def finish(self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]) -> Tokens:
        """The final LayerNorm, and the tokens by kind."""
        x = self.vit.norm(x)
        return Tokens(cls=x[:, 0], registers=x[:, 1 : self.prefix], patches=x[:, self.prefix :], grid=grid)

    # -- what callers want ------------------------------------------------------------------------------------------

    def tokens(self, images: Float[Tensor, "batch 3 height width"]) -> Tokens:
        """All tokens of the last layer."""
        x, grid = self.embed(images)
        return self.finish(self.run(x), grid)

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
            x = self.run(x, done, layer + 1)
            done = layer + 1
            patches = (self.vit.norm(x) if norm else x)[:, self.prefix :]
            maps.append(patches.transpose(1, 2).unflatten(2, grid))
        return maps

    def cls(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The CLS token alone: the last block runs for the CLS query only, which changes nothing but the cost."""
        x, _ = self.embed(images)
        x = self.run(x, 0, -1)
        query, key, value = self._qkv(x, queries=1)
        return self._close(x[:, :1], F.scaled_dot_product_attention(query, key, value))[:, 0]

    def last_block(self, images: Float[Tensor, "batch 3 height width"]) -> LastBlock:
        """Final tokens with the last block's queries, keys and CLS attention."""
        x, grid = self.embed(images)
        x = self.run(x, 0, -1)
        query, key, value = self._qkv(x)
        tokens = self._close(x, F.scaled_dot_product_attention(query, key, value))
        return LastBlock(
            tokens=Tokens(cls=tokens[:, 0], registers=tokens[:, 1 : self.prefix], patches=tokens[:, self.prefix :], grid=grid),
            query=query,
            key=key,
            cls_attention=self._cls_attention(query, key),
        )

    def cls_and_keys(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """The CLS token and the last block's keys, without the patches' share of the last block."""
        x, _ = self.embed(images)
        x = self.run(x, 0, -1)
        query, key, value = self._qkv(x, queries=1)
        return self._close(x[:, :1], F.scaled_dot_product_attention(query, key, value))[:, 0], key

    def patches_where(
        self, images: Float[Tensor, "batch 3 height width"], wanted: Bool[Tensor, "batch patches"]
    ) -> Float[Tensor, "wanted_patches dim"]:
        """The last layer's tokens of some patches, image by image: the last block's projection and MLP run for these alone.

        Equals `tokens(images).patches[wanted]`, in stochastic depth's draws, too.
        """
        x, _ = self.embed(images)
        x = self.run(x, 0, -1)
        query, key, value = self._qkv(x)
        kept = F.pad(wanted, (self.prefix, 0))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self._close_some(x[kept], attended[kept], wanted)

    # -- the last block, opened -------------------------------------------------------------------------------------

    def _qkv(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the first `queries` tokens), keys and values of the last block: [batch, heads, tokens, head_dim]."""
        block = self.vit.blocks[-1]
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        x = block.norm1(x)
        query = F.linear(x[:, :queries], weight[: self.dim], bias[: self.dim])
        key, value = F.linear(x, weight[self.dim :], bias[self.dim :]).chunk(2, dim=-1)
        heads = self.arch.heads
        query, key, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        return query, key, value

    def _close(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the last block behind its attention, and the final norm."""
        block = self.vit.blocks[-1]
        y = block.attn.proj(attended.transpose(1, 2).flatten(2))
        x = x + block.drop_path1(block.ls1(y))
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return self.vit.norm(x)

    def _close_some(self, x: Tensor, attended: Tensor, wanted: Tensor) -> Tensor:
        """`_close` for the tokens [wanted_patches, dim] of some patches; stochastic depth drops whole images."""
        block = self.vit.blocks[-1]
        images = wanted.nonzero()[:, 0]
        every_image = x.new_ones(len(wanted), 1)
        x = x + block.drop_path1(every_image)[images] * block.ls1(block.attn.proj(attended))
        x = x + block.drop_path2(every_image)[images] * block.ls2(block.mlp(block.norm2(x)))
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


def load(path: str | Path, arch: str | Architecture | None = None, *, drop_path: float = 0.0, key: str | None = None) -> Backbone:
    """A backbone from a file of this project, timm, DINO, DINOv2, NeCo, Leopart or Time-Tuning; every key must fit.

    Args:
        arch: needed unless the file is one of this project's exports, which know theirs.
        key: for training checkpoints with several networks: a part of the name of the wanted one, e.g. `teacher`.

    Raises:
        UserError: unreadable file, missing, extra or misshapen keys; the message lists them.
    """
    path = Path(path)
    weights, metadata = read_weights(path, key)
    named = metadata.get("arch")
    if arch is None and named is None:
        raise UserError(f"{path} does not say its architecture", todo="give `arch` for this checkpoint")
    if arch is None or (isinstance(arch, str) and named is not None and named != arch):
        if arch is not None:
            raise UserError(f"{path} holds a {named}, not a {arch}", todo=f"set arch: {named}")
        arch = named
    assert arch is not None
    architecture = Architecture.named(arch) if isinstance(arch, str) else arch
    if "interpolation" in metadata:
        architecture = replace(architecture, interpolation=metadata["interpolation"])  # type: ignore[arg-type]
    backbone = Backbone(architecture, drop_path=drop_path)
    load_strictly(backbone.vit, to_timm(weights, architecture), source=str(path))
    return backbone


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


def read_weights(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The flat state dict of a file's backbone, and the metadata of a safetensors file; nothing in it is executed.

    Raises:
        UserError: no such file, not a safetensors file nor a plain dictionary of tensors, or not clear which network.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", todo="download it or correct the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
            return _one_network(load_file(path), path, key), metadata
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint {path} cannot be read safely: {error}", todo="use a file of tensors only") from error
    return _one_network(content, path, key), {}


def _one_network(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """The state dict of one backbone inside a checkpoint, without wrappers' prefixes and without projection heads.

    Wherever a `cls_token` is, there is a network, and what stands before it is its name: `teacher.backbone` in DINO's and
    Time-Tuning's files, `state_dict.model` in Lightning's (NeCo, Leopart), nothing in a file of weights alone.

    Raises:
        UserError: several networks and no `key` to choose by, or none that `key` fits.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors")
    flat = dict(_leaves(content))
    networks = sorted({k.removesuffix("cls_token") for k in flat if k.split(".")[-1] == "cls_token"})
    chosen = [n for n in networks if key is None or f".{key}." in f".{n}"]
    names = ", ".join(n.removesuffix(".") or "one without a name (leave `key` out)" for n in networks) or "none"
    if key is not None and not chosen:
        raise UserError(f"checkpoint {path} has no network '{key}'", allowed=names)
    if len(chosen) > 1:
        raise UserError(f"checkpoint {path} holds several networks: {names}", todo="say with `key` which one, e.g. the part `teacher`")
    prefix = chosen[0] if chosen else ""
    weights = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    return {k: v for k, v in weights.items() if k.split(".")[0] not in HEADS}


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries under dotted names."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")


def to_timm(weights: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Rename an official DINO or DINOv2 state dict to timm's keys; timm's own pass through unchanged.

    DINO's keys are timm's. DINOv2's are, but for a `mask_token` that no forward pass of ours uses, training files that
    number blocks as `blocks.<chunk>.<i>`, and registers: there CLS's own position is folded into the CLS token.
    """
    result = {_without_chunk(k): v for k, v in weights.items() if k != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        table = result["pos_embed"]
        if table.shape[1] == (arch.image // arch.patch) ** 2 + 1:
            result["cls_token"] = result["cls_token"] + table[:, :1]
            result["pos_embed"] = table[:, 1:]
    return result


def _without_chunk(key: str) -> str:
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)
