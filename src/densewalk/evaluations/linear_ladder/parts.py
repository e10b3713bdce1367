"""The parts in which two protocols of linear segmentation differ, each of which can be taken from either. Free of torch.

    mixture = Mixture(toolbox, own, frozenset({"batch_norm", "optimizer"}))     # those of `linear_segmentation`, the rest of the toolbox
    values(toolbox, own)                                                        # part -> its value in both, for the parts that differ

`toolbox`: `ade20k_linear` or `segmentation_linear`. `own`: `linear_segmentation`. A mixture is no protocol of the tables: it stands between
two of them in a ladder (study/ladder/protocols.py), and is trained and scored by `run.py`.
"""

from dataclasses import dataclass
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.segmentation.recipes import LinearSettings
from densewalk.evaluations.segmentation.settings import LayoutData

VERSION = 1  # raise it when a change of the code changes numbers
STREAM = ("crops", "amount")  # the features that heads learn from: those of equal values are trained side by side
TEST = ("scored_images", "scoring", "absent_classes")  # what is not learned
TOGETHER = {
    "crops": "size, scales, borders and colors are one pipeline",
    "amount": "the number of steps is that of their images",
    "optimizer": "learning rate and weight decay mean something with their optimizer only",
}
LAYOUTS = ("ade20k", "voc", "cityscapes")  # read by both protocols


@dataclass(frozen=True)
class Mixture:
    """A linear probe some of whose parts are those of `own`, the others those of `toolbox`."""

    toolbox: LinearSettings
    own: LinearSegmentationSettings
    own_parts: frozenset[str]

    def is_own(self, part: str) -> bool:
        """Whether a part is that of `linear_segmentation`."""
        return part in self.own_parts

    def chosen(self, parts: tuple[str, ...]) -> tuple[bool, ...]:
        """`is_own` of each part."""
        return tuple(self.is_own(part) for part in parts)

    @property
    def head(self) -> tuple[bool, ...]:
        """What tells trained heads apart: all but how they are tested."""
        return self.chosen(tuple(part for part in values(self.toolbox, self.own) if part not in TEST))

    @property
    def hash(self) -> str:
        """Of all that determines its score on one backbone, seed and data."""
        kinds = [type(self.toolbox).__name__, self.toolbox.VERSION, self.own.VERSION]
        dumps = [settings.model_dump(mode="json") for settings in (self.toolbox, self.own)]
        return config_hash(["linear_ladder", VERSION, kinds, dumps, sorted(self.own_parts)])


def layout_of(toolbox: LinearSettings) -> str:
    """The layout of the toolbox's data."""
    return toolbox.layout if isinstance(toolbox, LayoutData) else "ade20k"


def values(toolbox: LinearSettings, own: LinearSegmentationSettings) -> dict[str, tuple[str, str]]:
    """Part -> its value in `toolbox` and in `own`, in the order in which a probe comes to them; only those that differ."""
    a, b = toolbox.resolved(), own.resolved()
    masks = f"{b.mask_size} x {b.mask_size}"
    low, high = (f"{factor:g}" for factor in a.scale_range)
    warmed = f"{a.warmup} steps of warm-up, " if a.warmup else ""
    order = ", always in the list's order" if b.fixed_order else ""
    found = {
        "crops": (
            f"{a.crop} px of images with a short side of {a.short_side} px x {low} to {high}, colors distorted",
            f"{b.crop_scale[0]:g} to {b.crop_scale[1]:g} of the image, squeezed to {b.input_size} px",
        ),
        "amount": (f"{a.iterations} steps of {a.batch_size} images", f"{b.epochs} epochs of batches of {b.batch_size}{order}"),
        "outputs": (f"{len(a.rule.values)} classes", f"{b.label_values} labels"),
        "batch_norm": ("yes" if a.batch_norm else "no", "no"),
        "start": ("normal, 0.01", "uniform, 1 / sqrt(dim)"),
        "loss_size": ("every pixel of the crop", masks),
        "loss_mean": ("over all pixels", "over labelled pixels"),
        "optimizer": (
            f"AdamW, {a.learning_rate:g}, weight decay {a.weight_decay:g}",
            f"SGD, {b.learning_rate:g}, momentum {b.momentum:g}, weight decay {b.weight_decay:g}",
        ),
        "schedule": (f"{warmed}{a.schedule} to 0", f"a tenth from epoch {b.drop_epoch} of {b.epochs}"),
        "scored_images": (f"short side {a.short_side} px, as a whole", f"squeezed to {b.input_size} px"),
        "scoring": ("every pixel", masks if b.scoring == "reduced" else "every pixel"),
        "absent_classes": ("left out", "count 0" if b.count_absent_classes else "left out"),
    }
    return {part: both for part, both in found.items() if both[0] != both[1] and not (part == "outputs" and same_outputs(a, b))}


def same_outputs(toolbox: LinearSettings, own: LinearSegmentationSettings) -> bool:
    """Whether the classes of one are the labels of the other."""
    return toolbox.rule.values == tuple(range(own.label_values))


def require_mixable(names: tuple[str, str], toolbox: LinearSettings, own: LinearSegmentationSettings) -> None:
    """Refuse settings that have no counterpart in the other protocol: they are to be turned before, in a ladder of one protocol.

    Args:
        names: of the toolbox's and of the own evaluation.

    Raises:
        UserError: names the first of them, or data that differ.
    """
    a, b = toolbox.resolved(), own.resolved()
    where = (layout_of(a), a.root, a.dataset), (b.layout, b.root, b.dataset)
    for what, one, other in zip(("layout", "root", "dataset"), *where, strict=True):
        if one != other:
            raise UserError(f"{names[0]} and {names[1]} are of other data: {what} {one!r} and {other!r}", allowed="the same data")
    if b.layout not in LAYOUTS:
        raise UserError(f"layout {b.layout} divides images otherwise in {names[0]}", allowed=", ".join(LAYOUTS))
    plain = {"layers": 1, "final_norm": True, "slide": False, "multi_scale": False, "long_side": None, "crop_patches": None}
    whole = {"features": "all", "refine": None, "train_images": None}
    kinds: list[tuple[str, EvaluationSettings, dict[str, Any]]] = [(names[0], a, plain), (names[1], b, whole)]
    for name, settings, expected in kinds:
        for field, value in expected.items():
            if (found := getattr(settings, field)) != value:
                raise UserError(
                    f"{field} {found!r} of {name} has no counterpart in the other protocol",
                    allowed=f"{field} {value!r}",
                    todo=f"add an evaluation like {name} with {field} {value!r}, and explain {name} against it, and it against the other",
                )
    if (largest := max(a.rule.values)) >= b.label_values:
        raise UserError(f"{names[0]} has the class {largest}, which {names[1]} has not", allowed=f"below {b.label_values}")
