"""Settings that evaluations by label propagation share."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from densewalk.core.settings import switch
from densewalk.evaluations.common.presets import NamedPresets
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

Resize = Literal["opencv", "bicubic"]
Upsample = Literal["stretched", "bilinear", "nearest"]


@dataclass(frozen=True)
class PixelRules:
    """How frames become patches and patches pixels; the defaults are DINO's. See `PropagationPresets`."""

    short_patches: int | None = None
    resize: Resize = "opencv"
    circle: bool = False
    upsample: Upsample = "stretched"


class LabelPropagationSettings(EvaluationSettings):
    """Labels of the first frame are propagated along frozen features (DINO's protocol)."""

    short_side: Annotated[int, Shown("short side {} px")] = Field(default=480, ge=32)
    """Shorter side of the network's input in pixels."""
    multiple: int = Field(default=64, ge=1)
    """The longer side keeps the aspect ratio and is rounded down to a multiple of this (854 x 480: 832 x 480). Then each side
    goes to the nearest multiple of the patch size, which changes nothing for patches of 8 and 16 (patch 14: 826 x 476)."""
    top_k: Annotated[int, Shown(lambda s: f"top {s.top_k} within {s.reach}")] = Field(default=5, ge=1)
    """Most similar patches that a patch takes its label from."""
    radius: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=12, ge=0)
    """How far a label may move, in patches to each side (of any size); 0, as in the released code, or null for no limit."""
    context: Annotated[int, Shown("first and last {} frames")] = Field(default=7, ge=1)
    """Earlier frames to propagate from, besides the first."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over the kept patches' cosine similarities."""
    sequences: Annotated[list[str] | None, SHOWN_BY_ANOTHER] = Field(default=None, min_length=1)
    """Only these sequences of the list; all by default."""

    @field_validator("radius")
    @classmethod
    def _no_window(cls, radius: int | None) -> int | None:
        """0 and null are one protocol: one hash and one name."""
        return radius or None

    @property
    def pixel_rules(self) -> PixelRules:
        """How frames become patches and patches pixels."""
        return PixelRules()

    @property
    def frames(self) -> int | None:
        """Frames of the data; None where they are not published."""
        return None

    def work(self, arch: Architecture) -> Work | None:
        """Each frame once, and each of its patches with those within the radius in the first frame and the context."""
        if self.frames is None or self.sequences:
            return None
        height = (self.pixel_rules.short_patches or 0) * arch.patch or self.short_side
        width = height * 16 // 9 // self.multiple * self.multiple
        rows, columns = height // arch.patch, width // arch.patch
        reach = max(rows, columns) if self.radius is None else 2 * self.radius + 1
        window = min(rows, reach) * min(columns, reach)
        propagated = 2.0 * rows * columns * window * (1 + self.context) * arch.dim
        return Work(self.frames * (vit(arch, height, width) + propagated))

    @property
    def subset(self) -> str:
        """The chosen sequences in words, behind the name of their list; empty for all."""
        return f" ({', '.join(self.sequences)})" if self.sequences else ""

    @property
    def reach(self) -> str:
        """The radius in words."""
        return f"{self.radius} patches" if self.radius else "any distance"


DINOV3_SIZES = {"dinov3_s": 30, "dinov3_m": 60, "dinov3_l": 90}
"""Patches of the shorter side: 420, 840 and 1,260 px with patches of 14, 480, 960 and 1,440 px with patches of 16."""


def is_dino(preset: str) -> bool:
    """For `Field(exclude_if=is_dino)`: settings without another preset keep their hash."""
    return preset == "dino"


class PropagationPresets(NamedPresets, LabelPropagationSettings):
    """Label propagation by DINO's protocol, or by DINOv3's (https://arxiv.org/abs/2508.10104, section 6.1.5 and its notebook)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "dino": {},
        **{name: {"temperature": 0.2, "keep_small_objects": False} for name in DINOV3_SIZES},
    }

    preset: Annotated[Literal["dino", "dinov3_s", "dinov3_m", "dinov3_l"], Shown(lambda s: s.preset_name)] = Field(
        default="dino", exclude_if=is_dino
    )
    """Whose protocol. `dinov3_s`, `dinov3_m`, `dinov3_l`: DINOv3's at a shorter side of 30, 60 or 90 patches, in which the aspect ratio is
    kept up to a patch, and with a temperature of 0.2. Its model card reports `dinov3_m`."""
    short_side: Annotated[int, Shown(lambda s: s.side_name)] = Field(default=480, ge=32)
    """Shorter side of the network's input in pixels, unless `short_patches` says it."""
    short_patches: int | None = switch(
        by="preset", dino=None, **DINOV3_SIZES, source="paper, section 6.1.5", effect="size of the network's input", omit_null=True
    )
    """Shorter side of the network's input in patches, both sides being rounded up to whole ones; `multiple` then counts for nothing."""
    resize: Resize | None = switch(
        by="preset",
        dino="opencv",
        **dict.fromkeys(DINOV3_SIZES, "bicubic"),
        source="notebook of DINOv3",
        effect="interpolation of frames",
        omit_null=True,
    )
    """`opencv`: bilinear without antialias. `bicubic`: with antialias."""
    window: Literal["square", "circle"] | None = switch(
        by="preset",
        dino="square",
        **dict.fromkeys(DINOV3_SIZES, "circle"),
        source="notebook of DINOv3",
        effect="patches in the corners of the window",
        omit_null=True,
    )
    """Form of the window of `radius` patches."""
    upsample: Upsample | None = switch(
        by="preset",
        dino="stretched",
        **dict.fromkeys(DINOV3_SIZES, "bilinear"),
        source="paper, section 6.1.5",
        effect="how pixels get their label",
        omit_null=True,
    )
    """`stretched`: soft labels are interpolated bilinearly to the network's input, each channel is stretched to 0..1, and the label of the
    largest is taken to the frame's size. `bilinear`: interpolated to the frame's size, the largest wins (DINOv3's paper). `nearest`: copied
    to the frame's size, each channel stretched to 0..1, the largest wins (DINOv3's notebook)."""

    @property
    def pixel_rules(self) -> PixelRules:
        """How frames become patches and patches pixels."""
        own = self.resolved()
        assert own.resize is not None
        assert own.upsample is not None
        return PixelRules(own.short_patches, own.resize, own.window == "circle", own.upsample)

    @property
    def preset_name(self) -> str:
        """The preset in words, with what differs from it; empty for DINO's."""
        return "" if self.preset == "dino" else "frames and labels as DINOv3"

    @property
    def side_name(self) -> str:
        """The shorter side in words."""
        patches = self.pixel_rules.short_patches
        return f"short side {self.short_side} px" if patches is None else f"short side {patches} patches"
