"""Settings of geometric correspondence."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Seed, switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.presets import NamedPresets
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

THRESHOLDS = (0.01, 0.02, 0.05)
"""Distances in meters below which a match is right."""


class GeometricCorrespondenceSettings(NamedPresets):
    """Places of an object in one view are matched to their most similar places in another view; the error is a distance in 3D (NAVI).

    Nothing is trained. Sources: Probe3D (https://arxiv.org/abs/2404.08636) and its code, probe3d at commit a1f1464; DINOv3
    (https://arxiv.org/abs/2508.10104, appendix D), whose code for this task is not released.
    """

    TABLE: ClassVar[str] = "geometric_correspondence"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Geometric correspondence (recall in 3D)"
    RECIPE: ClassVar[str] = "nearest neighbors on the object, recall in 3D"
    PICTURES: ClassVar[str] = "places of the left view that {run} matches to the right one: within 2 cm (blue) and farther off (orange)"
    RESOURCES: ClassVar[Resources] = Resources(gpu=1, threads=4, runtime=240)
    METRICS: ClassVar[dict[str, Metric]] = {
        "recall": Metric("% of the matches", "mean of the recalls at 1, 2 and 5 cm"),
        **{f"recall@{100 * t:g}cm": Metric("% of the matches", f"less than {100 * t:g} cm off") for t in THRESHOLDS},
        "recall_position": Metric("% of all places", "a floor: matched to the same place of the cut-out square", better=None),
        "recall_chance": Metric("% of all places", "a floor: matched to a random place of the object", better=None),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "probe3d": {},
        "dinov3": {"patches": 32, "weight": "similarity", "final_norm": True},
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "a view's partner is drawn in the order in which the file system lists objects and images, and every fourth view is taken in "
            "that order: other machines score other pairs",
            "objects and images are sorted, and each object's draws depend on its name and `pair_seed` alone",
            "probe3d, evals/datasets/navi.py",
        ),
        Difference(
            "a view whose rotation differs from itself by rounding may be its own partner",
            "never",
            "probe3d, evals/datasets/navi.py",
        ),
        Difference(
            "images are saved as JPEG again after they were made smaller",
            "`resize: nearest` makes them smaller in memory",
            "probe3d, data_processing/resize_navi.py",
        ),
    )

    preset: Literal["probe3d", "dinov3"] = "probe3d"
    """Whose protocol. `dinov3` reports `recall`, with views of 32 x 32 patches and the most similar matches."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}", "last")] = "paper"
    """`released`: with the known slips of probe3d's code."""
    size: Annotated[int, Shown(lambda s: s.size_name)] = Field(default=512, ge=32)
    """Side in pixels of the square that the network sees; zeros around it fill the last patches."""
    patches: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=2)
    """Side of the square in patches, instead of `size`: 32 are 448 px with patches of 14 and 512 px with patches of 16. Hierarchical
    networks have no patches: theirs is `size`."""
    final_norm: Annotated[bool, Shown(lambda s: "" if s.final_norm else "without final norm")] = False
    """Apply the network's final norm to the last block."""
    cell: Annotated[int, Shown("places every {} px")] = Field(default=4, ge=1)
    """Pixels from one compared place to the next: features are interpolated (bicubic) to a map of size / cell."""
    weight: Annotated[Literal["ratio", "similarity"], Shown(lambda s: f"{s.matches} best by {s.weight}")] = "ratio"
    """What makes a match one of the best. `ratio`: 1 - d1 / d2, d1 and d2 the cosine distances of the two nearest places; `similarity`:
    1 - d1, as DINOv3's text has it."""
    matches: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=1000, ge=1)
    """Matches of a pair that are scored, the best ones; all if the object has fewer places."""
    every: Annotated[int, Shown(lambda s: "all views" if s.every == 1 else f"1 of {s.every} views")] = Field(default=4, ge=1)
    """Only every so many views, over all objects in order, are matched to their partners."""
    max_angle: Annotated[float, Shown("up to {:g} degrees")] = Field(default=120, gt=0, le=180)
    """A view's partner is drawn from the views of the object that are turned by up to so many degrees against it."""
    pair_seed: Seed = 8
    """Of the draws."""
    resize: Literal["bicubic", "nearest"] | None = switch(
        paper="bicubic",
        released="nearest",
        effect="edges of stairs instead of a smooth image",
        source="probe3d, data_processing/resize_navi.py and evals/datasets/{navi,utils}.py",
    )
    """`bicubic`: the square around the object is cut from the image and resized once, with antialias. `nearest`: the image is made smaller
    to a short side of 1,024 px (bilinear), then to `size` by nearest pixels; the square around the object, without its last row and
    column, is cut out and made larger by nearest pixels; depth maps are treated alike, all steps by nearest pixels."""
    point: Literal["center", "corner"] | None = switch(
        paper="center",
        released="corner",
        effect="the 3D point lies up to half a cell from where the features are",
        source="probe3d, evaluate_navi_correspondence.py: F.interpolate(mode='nearest')",
    )
    """Whose 3D point a place has: that of the pixel in the middle of its cell, or of the cell's first pixel."""
    crop_padding: bool | None = switch(
        paper=True,
        released=False,
        effect="the map of the padded square is squeezed onto the square: 1 % for patches of 14 at 512 px",
        source="probe3d, evals/models/utils.py (center_padding) and evals/utils/correspondence.py",
    )
    """Leave out what the square was padded with to whole patches, instead of taking its map for that of the square."""

    def side(self, patch: int | None) -> int:
        """Side in pixels of the square for a network of this patch size; None: it has no patches."""
        return self.size if self.patches is None or patch is None else self.patches * patch

    @property
    def size_name(self) -> str:
        """The square's side in words."""
        return f"{self.size} px" if self.patches is None else f"{self.patches}x{self.patches} patches"

    @property
    def needs(self) -> frozenset[str]:
        """The map that all evaluations take, or the last block before the final norm."""
        return frozenset({"dense" if self.final_norm else "levels"})

    def work(self, arch: Architecture) -> Work | None:
        """Every view that is in a pair, at most two for each pair; comparing places is not counted."""
        views = min(sizes.NAVI_VIEWS, 2 * -(-sizes.NAVI_VIEWS // self.every))
        side = -(-self.side(arch.patch) // arch.patch) * arch.patch
        return Work(views * vit(arch, side)) if self.dataset == "NAVI" else None

    @property
    def published_protocol(self) -> str | None:
        """None: which pairs the published values have drawn is not known, nor by which weight DINOv3's code chooses."""
        return None


SETTINGS = {"geometric_correspondence": GeometricCorrespondenceSettings}
