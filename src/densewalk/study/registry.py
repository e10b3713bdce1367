"""The methods and evaluations that a study may name."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.knn.settings import KnnSettings
from densewalk.evaluations.linear.settings import LinearSettings
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.overcluster.settings import OverclusterSettings
from densewalk.evaluations.segmentation.recipes import Ade20kLinearSettings, Ade20kUpernetSettings
from densewalk.evaluations.segmentation.settings import SegmentationLinearSettings, SegmentationUpernetSettings
from densewalk.evaluations.tracking.settings import TrackingSettings
from densewalk.evaluations.unsupervised_segmentation.settings import UnsupervisedSegmentationSettings
from densewalk.evaluations.video_segmentation.settings import VideoSegmentationSettings
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.neco.settings import NecoSettings
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.study.runs import BaseEvaluation, Baseline, TrainedRun
from densewalk.training.settings import TrainingSettings


class DoraRun(TrainedRun):
    """DoRA, https://arxiv.org/abs/2310.08584."""

    method: Literal["dora"]
    settings: DoraSettings


class DinoRun(TrainedRun):
    """DINO on frames or images, https://arxiv.org/abs/2104.14294."""

    method: Literal["dino"]
    settings: DinoSettings


class NecoRun(TrainedRun):
    """NeCo, https://arxiv.org/abs/2408.11054."""

    method: Literal["neco"]
    settings: NecoSettings


class TimeTuningRun(TrainedRun):
    """Time-Tuning, https://arxiv.org/abs/2308.11796."""

    method: Literal["timetuning"]
    settings: TimeTuningSettings


Run = Annotated[Baseline | DoraRun | DinoRun | NecoRun | TimeTuningRun, Field(discriminator="method")]


class Ade20kLinear(BaseEvaluation):
    """Semantic segmentation with a frozen backbone and a linear head, through mmsegmentation."""

    protocol: Literal["ade20k_linear"]
    settings: Ade20kLinearSettings


class Ade20kUpernet(BaseEvaluation):
    """Semantic segmentation, fine-tuned with UPerNet, through mmsegmentation."""

    protocol: Literal["ade20k_upernet"]
    settings: Ade20kUpernetSettings


class SegmentationLinear(BaseEvaluation):
    """The same on other data than ADE20K: VOC, Cityscapes, COCO-Stuff, or folders of images and masks."""

    protocol: Literal["segmentation_linear"]
    settings: SegmentationLinearSettings


class SegmentationUpernet(BaseEvaluation):
    """UPerNet on other data than ADE20K."""

    protocol: Literal["segmentation_upernet"]
    settings: SegmentationUpernetSettings


class Coco(BaseEvaluation):
    """Detection and instance segmentation, fine-tuned, through mmdetection."""

    protocol: Literal["coco"]
    settings: CocoSettings


class Davis(BaseEvaluation):
    """Semi-supervised video object segmentation by label propagation with frozen features."""

    protocol: Literal["davis"]
    settings: DavisSettings


class Incontext(BaseEvaluation):
    """Semantic segmentation by nearest-neighbour retrieval with frozen features."""

    protocol: Literal["incontext"]
    settings: IncontextSettings


class VideoSegmentation(BaseEvaluation):
    """Unsupervised video object segmentation by clusters of frozen features."""

    protocol: Literal["video_segmentation"]
    settings: VideoSegmentationSettings


class Knn(BaseEvaluation):
    """Image classification by the votes of nearest neighbours with frozen features."""

    protocol: Literal["knn"]
    settings: KnnSettings


class Linear(BaseEvaluation):
    """Image classification with linear classifiers on frozen features."""

    protocol: Literal["linear"]
    settings: LinearSettings


class Discovery(BaseEvaluation):
    """One object's box in each image without training, from the last block's keys (LOST) or attention."""

    protocol: Literal["discovery"]
    settings: DiscoverySettings


class Tracking(BaseEvaluation):
    """Box tracking by label propagation with frozen features; our own protocol."""

    protocol: Literal["tracking"]
    settings: TrackingSettings


class LinearSegmentation(BaseEvaluation):
    """Semantic segmentation by a linear head on frozen features, with reduced masks."""

    protocol: Literal["linear_segmentation"]
    settings: LinearSegmentationSettings


class Overcluster(BaseEvaluation):
    """Semantic segmentation by clusters of frozen features."""

    protocol: Literal["overcluster"]
    settings: OverclusterSettings


class UnsupervisedSegmentation(BaseEvaluation):
    """Semantic segmentation without labels: attention's foreground, communities of its clusters."""

    protocol: Literal["unsupervised_segmentation"]
    settings: UnsupervisedSegmentationSettings


Evaluation = Annotated[
    Ade20kLinear
    | Ade20kUpernet
    | SegmentationLinear
    | SegmentationUpernet
    | Coco
    | Davis
    | Incontext
    | LinearSegmentation
    | Overcluster
    | UnsupervisedSegmentation
    | VideoSegmentation
    | Knn
    | Linear
    | Discovery
    | Tracking,
    Field(discriminator="protocol"),
]


def _settings_by(tag: str, union: Any) -> dict[str, Any]:
    """Value of `tag` -> settings model, for the members of a discriminated union that have settings."""
    members = get_args(get_args(union)[0])
    return {
        get_args(m.model_fields[tag].annotation)[0]: m.model_fields["settings"].annotation for m in members if "settings" in m.model_fields
    }


def methods() -> dict[str, type[TrainingSettings]]:
    """Method -> its settings."""
    return _settings_by("method", Run)


def evaluations() -> dict[str, type[EvaluationSettings]]:
    """Protocol -> its settings."""
    return _settings_by("protocol", Evaluation)


# in the order in which the evaluations are declared, several of which may share a table
TABLES = tuple(dict.fromkeys(settings.TASK for settings in _settings_by("protocol", Evaluation).values()))


def _known_table(name: str) -> str:
    if name not in TABLES:
        raise ValueError(f"no such table: '{name}'; allowed: {', '.join(TABLES)}")
    return name


Table = Annotated[str, AfterValidator(_known_table), Field(json_schema_extra={"enum": [*TABLES]})]


def parse_training(method: str, settings: dict[str, Any]) -> TrainingSettings:
    """The settings of a run's specification."""
    return _settings_by("method", Run)[method].model_validate(settings)


def parse_evaluation(protocol: str, settings: dict[str, Any]) -> EvaluationSettings:
    """The settings of an evaluation's specification."""
    return _settings_by("protocol", Evaluation)[protocol].model_validate(settings)
