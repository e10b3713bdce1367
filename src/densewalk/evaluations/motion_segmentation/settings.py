"""Settings of motion segmentation."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import deviation
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.families.abilities import WITH_MOTION
from densewalk.models.work import Work, vit


class MotionSegmentationSettings(EvaluationSettings):
    """What moves is segmented in each frame, without any mask given, by the generator of a run of method cis.

    No published value is compared: those of the paper are of PWC-Net's flow and another network. The released code is
    https://github.com/antonilo/unsupervised_detection at commit 46cae6e.
    """

    TABLE: ClassVar[str] = "motion_segmentation"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Motion segmentation (DAVIS-2016)"
    RECIPE: ClassVar[str] = "motion segmentation"
    PICTURES: ClassVar[str] = "frames of {name}: the true object above, below what {run} takes for what moves"
    RESOURCES: ClassVar[Resources] = Resources(threads=4)
    NEEDS: ClassVar[frozenset[str]] = WITH_MOTION
    METRICS: ClassVar[dict[str, Metric]] = {
        "J": Metric("%", "intersection over union of the object, mean over frames, then over sequences"),
        "J_whole": Metric("% of the whole frame instead", "a floor", better=None),
        "J_flow": Metric("% of a threshold on the length of the flow instead", "a floor", better=None),
    }

    split: Annotated[str, Shown(lambda s: f"2016 {s.split}{s.subset}", "first")] = "val"
    """List of sequences: ImageSets/2016/{split}.txt or, as DAVIS-2016 itself has it, ImageSets/{resolution}/{split}.txt. All objects of a
    frame are one."""
    resolution: Annotated[str, SHOWN_BY_ANOTHER] = "480p"
    """Folder below JPEGImages and Annotations."""
    sequences: Annotated[list[str] | None, SHOWN_BY_ANOTHER] = Field(default=None, min_length=1)
    """Only these sequences of the list; all by default."""
    height: Annotated[int, Shown(lambda s: f"{s.width} x {s.height} px")] = Field(default=192, ge=16)
    """Height of the network's input in pixels, rounded down to a multiple of the patch size. That of the training is best."""
    width: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=384, ge=16)
    """Width of the network's input in pixels, rounded likewise."""
    flow: Annotated[Literal["DIS"], Shown("flow: {}")] = "DIS"
    """Optical flow to the next frame; of a sequence's last frame to the one before."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}", "last")] = "paper"
    """`released`: as the released code counts."""
    mean_over_frames: bool | None = deviation(
        effect="long sequences count more", source="its test script, a mean over all frames of all sequences"
    )
    """J is a mean over all frames of all sequences."""

    @property
    def subset(self) -> str:
        """The chosen sequences in words, behind the name of their list; empty for all."""
        return f" ({', '.join(self.sequences)})" if self.sequences else ""

    def work(self, arch: Architecture) -> Work | None:
        """Each frame once, of the official lists."""
        frames = sizes.DAVIS.get((2016, self.split))
        return None if frames is None or self.sequences else Work(frames * vit(arch, self.height, self.width))


SETTINGS = {"motion_segmentation": MotionSegmentationSettings}
