"""Settings that all evaluations share."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Self

from pydantic import model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import PathText, Settings
from densewalk.evaluations.common.protocol_name import protocol_name
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work


@dataclass(frozen=True)
class FeatureRead:
    """Features of some images, as an evaluation reads them from the cache.

    key: equal for evaluations that read the same features of the same backbone. passes: how often one evaluation reads them.
    """

    key: str
    passes: int = 1


class EvaluationSettings(Settings):
    """One protocol. VERSION enters the hash: raising it reruns that column of every table."""

    TABLE: ClassVar[str]
    """The table that the numbers go to; several protocols may share one."""
    VERSION: ClassVar[int]
    """Raise it when a change of the code changes numbers."""
    TITLE: ClassVar[str]
    """Heading of the table on the page."""
    RECIPE: ClassVar[str] = ""
    """First part of the protocol's name."""
    METRICS: ClassVar[dict[str, Metric]]
    """The numbers of a result by name; the first one is drawn against the cost."""
    PICTURES: ClassVar[str] = "{name}, {run}"
    """Caption of the evaluation's images; {name} is an image's file name without its end, {run} the run that it shows."""
    RESOURCES: ClassVar[Resources] = Resources()
    """What a job asks a scheduler for."""
    NEEDS: ClassVar[frozenset[str]] = frozenset({"dense"})
    """What a network must be able to give (models/families/abilities.py): `densewalk check` refuses others. See `needs`."""
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = None
    """Metric name -> its name in published.csv; None where all names are the same."""

    LEARNS: ClassVar[bool] = False
    """It trains a head of its own, or fine-tunes the backbone."""
    PROCESSES: ClassVar[bool] = False
    """The processes of a job, one on each of its GPUs, share the work; otherwise one process works on one GPU."""

    root: PathText
    """Folder of the evaluation data, relative to the study's folder."""
    dataset: str
    """The data's name in the tables. Published values are shown only under the very same name."""

    @model_validator(mode="after")
    def parts_are_below_root(self) -> Self:
        """Refuse names of files and folders that lead out of `root`, or are hidden: `data_paths` would not see their changes."""
        for name, value in self:
            parts = PurePath(value).parts if isinstance(value, str) and name not in ("root", "dataset") else ()
            if any(part == "/" or part.startswith(".") for part in parts):
                raise ValueError(f"{name}: {value!r} does not lie below root, or is hidden; choose a `root` above it, or link it there")
        return self

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Folders and files that hold the evaluation's data: a result, and what a head has learnt, depend on them."""
        return (self.root,)

    @property
    def needs(self) -> frozenset[str]:
        """What a network must be able to give for these settings; NEEDS unless a setting decides."""
        return self.NEEDS

    @property
    def protocol(self) -> str:
        """The protocol's name in the tables: two numbers are comparable only if these are equal."""
        return protocol_name(self)

    @property
    def published_protocol(self) -> str | None:
        """The name of this protocol in published.csv, or None where any setting that matters differs from the published one."""
        return None

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The features that another evaluation of the same backbone could share, by split; none by default."""
        return {}

    def ladder_reads(self) -> dict[str, FeatureRead]:
        """The features that the steps of a ladder share (`densewalk explain`), by split; those of the cache by default."""
        return self.feature_reads()

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """Why each of the processes cannot pass its share of a batch in this many equal parts; None where it can."""
        return None if parts == 1 else f"{type(self).__name__} trains nothing on batches that could be passed in parts"

    def work(self, arch: Architecture) -> Work | None:
        """The work of one evaluation, for `densewalk plan`; None where nobody has said it."""
        return None
