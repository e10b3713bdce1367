"""Names and shapes of networks; here those of vision transformers.

Names are `vit_{size}_patch{8,14,16}[_reg4][_swiglu][_rope]`, or `timm/NAME` for the network that timm calls NAME.
Patch 14 means DINOv2's family, except for MAE's `huge`: LayerScale, and position embeddings of 37 x 37 patches (518 px); the others
have 224 px embeddings. `_rope` means DINOv3's family: LayerScale, and rotary positions in every attention instead of a table.
"""

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator

from densewalk.core.imagenet import IMAGENET, PixelStatistics
from densewalk.core.text.complaints import did_you_mean
from densewalk.models.families.abilities import MAPS, OF_OWN_CODE, WITH_CLS, WITH_KEYS, WITH_MOTION, WITHOUT_POSITION
from densewalk.models.families.own_code import FORMS, OWN, is_own_code

Interpolation = Literal["offset", "antialias", "size"]
# width, depth, heads
SIZES = {
    "nano": (48, 2, 6),  # nano and micro: for tests and the demo
    "micro": (96, 4, 6),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "small12": (384, 12, 12),  # MoCo-v3's and SLIP's
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "huge20": (1280, 32, 20),  # DINOv3's
    "giant": (1536, 40, 24),  # DINOv2's
}
PATCHES = (8, 14, 16)
HUGGING_FACE = "huggingface/"
HUGGING_FACE_FAMILIES = ("vit", "vit_mae", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip", "siglip")
# what the files of networks from Hugging Face's folders say of themselves
SHAPE = (
    *("dim", "depth", "heads", "patch", "image", "registers", "layer_scale", "swiglu"),
    *("hidden_width", "eps", "activation", "pre_norm", "class_token"),
)
FLAGS = ("_reg4", "_swiglu", "_rope")
ALLOWED = (
    "vit_{" + ",".join(SIZES) + "}_patch{8,14,16}, with _reg4 for four register tokens, _swiglu for gated MLPs, "
    "_rope for DINOv3's rotary positions; or timm/ and a full name of timm's; huggingface/ and a family; "
    f"or {OWN} and a function of your own, {FORMS}"
)
TIMM_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")  # that have plain vision transformers, or DINOv3's
_NAME = re.compile(rf"vit_({'|'.join(SIZES)})_patch({'|'.join(map(str, PATCHES))})" + "".join(f"({flag})?" for flag in FLAGS))


@runtime_checkable
class Shape(Protocol):
    """What is known of a network without its weights; every family's dataclass has these facts.

    name: what a study calls it. dim, stride: channels of the dense map, and pixels per position. pooled_dim: length of the pooled vector.
    multiple: of which images' sides are multiples. size: the only side that they may have; None for any. heads: of the attention; 0
    without. level_dims, level_strides: channels and strides of each level. abilities: names of families/abilities.py. trainable: True if
    the methods can train it, not only evaluations fine-tune it.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def stride(self) -> int: ...  # noqa: D102
    @property
    def pooled_dim(self) -> int: ...  # noqa: D102
    @property
    def multiple(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int | None: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def statistics(self) -> PixelStatistics: ...  # noqa: D102
    @property
    def level_dims(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def level_strides(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def abilities(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def trainable(self) -> bool: ...  # noqa: D102

    def metadata(self) -> dict[str, str]:
        """What a file's metadata must hold besides the name, so that loading it gives the same network."""


def statistics_metadata(statistics: PixelStatistics) -> dict[str, str]:
    """Mean and standard deviation for a file's metadata; nothing for ImageNet's."""
    return {} if statistics == IMAGENET else {name: json.dumps(values) for name, values in statistics._asdict().items()}


@dataclass(frozen=True)
class Architecture:
    """The shape of a vision transformer; `timm_models.named_architecture` makes it from a name."""

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
    periods: tuple[float, ...] | None = None  # of rotary positions, if not 100 ** (4 k / head_dim): Meta's are rounded to bfloat16
    statistics: PixelStatistics = IMAGENET
    # of networks whose name does not say it (huggingface/...)
    hidden_width: int | None = None  # of the MLPs, if not the usual one
    eps: float = 1e-6  # of LayerNorm in networks with a table of positions
    activation: Literal["gelu", "quick_gelu", "gelu_tanh"] = "gelu"
    pre_norm: bool = False  # a LayerNorm before the first block, and patches without bias (CLIP)
    class_token: bool = True  # without, the pooled vector is that of a learned query (SigLIP)
    # position taken out of the map (families/position_removal.py): singular vectors of a black image; a matrix of the file
    debias: int | None = None
    projected: bool = False
    motion: int | None = None  # width of a decoder of masks from image and flow (families/motion.py)

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer; DINOv2's gated ones have two thirds of 4 widths."""
        if self.hidden_width is not None:
            return self.hidden_width
        return -(-(8 * self.dim // 3) // 8) * 8 if self.swiglu and not self.rope else 4 * self.dim

    @property
    def stride(self) -> int:
        """The patch's side."""
        return self.patch

    @property
    def pooled_dim(self) -> int:
        """The width."""
        return self.dim

    @property
    def multiple(self) -> int:
        """The patch's side."""
        return self.patch

    @property
    def size(self) -> int | None:
        """None: any size, as positions are resampled."""
        return None

    @property
    def level_dims(self) -> tuple[int, ...]:
        """Each block's width."""
        return (self.dim,) * self.depth

    @property
    def level_strides(self) -> tuple[int, ...]:
        """The patch's side, for each block."""
        return (self.patch,) * self.depth

    @property
    def abilities(self) -> frozenset[str]:
        """All; without CLS token those that need none; where position is taken out of the map, what that leaves as it should be."""
        whole = WITH_CLS if self.class_token else WITH_KEYS
        if self.motion is not None:
            whole |= WITH_MOTION
        return whole & WITHOUT_POSITION if self.without_position else whole

    def metadata(self) -> dict[str, str]:
        """Rule for positions, and what differs from the name's usual network."""
        periods = {} if self.periods is None else {"periods": json.dumps(self.periods)}
        debias = {} if self.debias is None else {"debias": str(self.debias)}
        facts = {name: getattr(self, name) for name in SHAPE} | ({"rope": True} if self.rope else {})
        shape = {"shape": json.dumps(facts)} if self.name.startswith(HUGGING_FACE) else {}
        return {"interpolation": self.interpolation, **periods, **debias, **shape, **statistics_metadata(self.statistics)}

    @property
    def trainable(self) -> bool:
        """True for images with ImageNet's statistics, which the methods' augmentations end in, and a CLS token."""
        usual = self.statistics == IMAGENET and self.class_token and not self.name.startswith(HUGGING_FACE)
        return usual and not self.without_position

    @property
    def without_position(self) -> bool:
        """True if the map is not the last layer's, but has position taken out."""
        return self.debias is not None or self.projected


def architecture_named(name: str) -> Architecture | None:
    """The architecture of a name of this project's; None of any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    size, patch = match[1], int(match[2])
    registers, swiglu, rope = (match[i] is not None for i in (3, 4, 5))
    dinov2 = patch == 14 and size != "huge" and not rope
    return Architecture(
        name,
        *SIZES[size],
        patch=patch,
        image=518 if dinov2 else 224,
        registers=4 if registers else 0,
        layer_scale=dinov2 or rope,
        interpolation="antialias" if registers else "offset",
        swiglu=size == "giant" or swiglu,
        rope=rope,
    )


def shape_of(name: str) -> Architecture | None:
    """The shape of a network by its name alone, timm's by the size in it; None where that does not tell."""
    if known := architecture_named(name):
        return known
    parts = name.removeprefix("timm/").split(".")[0].split("_")
    size = next((part for part in parts if part in SIZES), None)
    patch = next((part for part in parts if part.startswith("patch")), None)
    return architecture_named(f"vit_{size}_{patch}")


def known_architecture(name: str) -> str:
    """The name, for a field of a study.

    Raises:
        ValueError: there is no architecture of this name; the message suggests the nearest ones.
    """
    names: list[str] = []
    if name.startswith(OWN):
        if is_own_code(name.removeprefix(OWN)):
            return name
    elif name.startswith(HUGGING_FACE):
        names = [f"{HUGGING_FACE}{family}" for family in HUGGING_FACE_FAMILIES]
        if name in names:
            return name
    elif name.startswith("timm/"):
        known, own = timm_names(), name.removeprefix("timm/")
        if own not in known and known:
            known = timm_names(every=True)
        # some models' tags are made by a loop, not written down: nothing is known of them
        tags_unknown = own.partition(".")[0] in known and not any(n.startswith(own.partition(".")[0] + ".") for n in known)
        if not known or own in known or tags_unknown:
            return name
        names = [f"timm/{other}" for other in known]
    else:
        if architecture_named(name) is not None:
            return name
        flags = ["".join(chosen) for chosen in product(*(("", flag) for flag in FLAGS))]
        names = [f"vit_{size}_patch{patch}{flag}" for size, patch, flag in product(SIZES, PATCHES, flags)]
    size = next((part for part in name.removeprefix("vit").strip("_-").split("_") if part in SIZES), None)
    near = did_you_mean(name, names, most=2) or (f", did you mean vit_{size}_patch16?" if size else "")
    raise ValueError(f"unknown architecture '{name}'{near}; allowed: {ALLOWED}")


def abilities_of(name: str) -> frozenset[str]:
    """What the network of a known architecture's name can give (families/abilities.py), by its name alone."""
    if name.startswith(OWN):
        return OF_OWN_CODE
    if name == f"{HUGGING_FACE}siglip":
        return WITH_KEYS
    return WITH_CLS if is_vit(name) or name.startswith(HUGGING_FACE) else MAPS


def is_vit(name: str) -> bool:
    """True for a known architecture's name that is a plain vision transformer's, the only kind that methods train."""
    own = name.removeprefix("timm/")
    return not name.startswith(("timm/", HUGGING_FACE, OWN)) or own.partition(".")[0] in timm_names()


@lru_cache
def timm_names(*, every: bool = False) -> frozenset[str]:
    """Names of timm's vision transformers, or of every network, with and without the tag of weights, read from its source.

    Importing timm would take seconds.
    """
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        return frozenset()
    folder = Path(package.origin).parent / "models"
    found = sorted(folder.glob("*.py")) if every else [folder / f"{name}.py" for name in TIMM_MODULES]
    files = [path for path in found if path.is_file()]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    functions = re.findall(r"^def (\w+)\(pretrained", text, re.MULTILINE)
    tagged = re.findall(r"""^ +['"]([\w.-]+)['"] *:""", text, re.MULTILINE)
    return frozenset(functions + tagged)


ArchitectureName = Annotated[str, AfterValidator(known_architecture)]
