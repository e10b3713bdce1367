"""How much each source of a study's training data holds, for what is asked before the jobs. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.amounts import Amount
from densewalk.data.benchmarks import sizes
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS
from densewalk.data.receipts import CuratedReceipt, ImagesReceipt, Receipt, SequencesReceipt, VideoReceipt, read_receipt
from densewalk.results.changes import NO_COPY, Changes
from densewalk.results.plan import run_key
from densewalk.study.config import Study
from densewalk.study.runs import TrainedRun

FEWER = 0.9  # share of the samples that are counted: with so few, too, a warm-up must be too long to be refused before the job counts them
MORE = 2  # times the samples that are counted: with so many, too, they must be fewer than a batch
StatedLength = Callable[[str], tuple[float, float] | None]  # data/video/stated.py, which needs PyAV


@dataclass(frozen=True)
class Assumed:
    """What is taken for data that are not there yet.

    utilization: share of a GPU's peak that is reached, None for `UTILIZATION`. stated_length: reads the length of a video that is there.
    """

    hours: float = 1.5
    fps: float = 30.0
    images: int = 100_000
    utilization: float | None = None
    stated_length: StatedLength | None = None


class Amounts:
    """The amount of each source: of its receipt, of a public data set, of its file or folder, or assumed.

    A receipt of another preparation than the study's is now says nothing: the workflow writes it again.

    changes: of the study in `results`; made where it is not given. guessed: names of the sources whose amount is assumed.
    """

    def __init__(self, study: Study, results: Path, assumed: Assumed, note: Callable[[str], None], changes: Changes | None = None) -> None:
        self.study, self.results, self.assumed, self.note = study, results, assumed, note
        self.changes = changes
        self.receipts: dict[str, Receipt | None] = {}
        self.guessed: set[str] = set()

    def receipt(self, name: str) -> Receipt | None:
        """A source's receipt, if it was prepared as the study says now."""
        path = self.results / "data" / f"{name}.json"
        if name not in self.receipts:
            self.receipts[name] = read_receipt(path) if path.is_file() and not self._outdated(name) else None
        return self.receipts[name]

    def _outdated(self, name: str) -> bool:
        """True if a receipt is of other settings or another content; of a copy that is only gone it is not."""
        if self.changes is None:
            self.changes = Changes(self.study.plan(), self.results)
        if name in self.study.videos:
            reasons = self.changes.of_video(name, self.study.videos[name])
        elif name in self.study.images:
            reasons = self.changes.of_images(name, self.study.images[name])
        else:
            spec = self.study.curation_spec(name)
            parent = (spec.backbone.name, spec.backbone.seed) if spec.backbone.kind == "run" else None
            file = str(self.results / run_key(*parent) / "backbone.safetensors") if parent else getattr(spec.backbone, "file", "")
            reasons = self.changes.of_curation(name, spec.hash, parent, file, [source.source for source in spec.data.values()])
        self.changes.contents.save()
        return any(reason != NO_COPY for reason in reasons)

    def of(self, name: str) -> list[Amount]:
        """A source's, or those that a curation chooses from."""
        receipt = self.receipt(name)
        if name in self.study.curations:
            if isinstance(receipt, CuratedReceipt):
                return [Amount("images", receipt.kept)]
            self.note(f"curation {name}: it has not chosen yet, all of its sources are counted")
            return [amount for source in self.study.curations[name].data for amount in self.of(source)]
        return [self._video(name, receipt) if name in self.study.videos else self._images(name, receipt)]

    def _video(self, name: str, receipt: Receipt | None) -> Amount:
        if isinstance(receipt, VideoReceipt):
            usable = sum(end - start for start, end in receipt.usable)
            return Amount("video", usable, receipt.fps, len(receipt.usable))
        settings = self.study.videos[name]
        read = self.assumed.stated_length
        stated = read(settings.source) if read else None
        seconds, fps = stated or (self.assumed.hours * 3600, self.assumed.fps)
        fps = settings.fps or fps
        if ranges := settings.usable_seconds:
            seconds = sum(end - start for start, end in ranges)
        length = f"{seconds / 3600:.2g} hours of {fps:g} frames a second"
        if stated is None:
            self.guessed.add(name)
        how = "its file states" if stated else "assumed (--hours, --fps) are"
        self.note(f"video {name}: not prepared yet, {how} {length}")
        return Amount("video", round(seconds * fps), fps)

    def _images(self, name: str, receipt: Receipt | None) -> Amount:
        settings = self.study.images[name]
        kind, fps = ("sequences" if settings.layout == "sequences" else "images"), settings.fps or 1.0
        if isinstance(receipt, SequencesReceipt):
            frames = receipt.files if receipt.chosen is None else receipt.sequences * (receipt.shortest + receipt.longest) // 2
            return Amount("sequences", frames, fps, receipt.sequences)
        if isinstance(receipt, ImagesReceipt):
            return Amount("images", receipt.files)
        count = sizes.images_below(settings.source)
        if count is None and Path(settings.source).is_dir():
            count = len(find_files(settings.source, EXTENSIONS)) or None
        if count is None:
            count = self.assumed.images
            self.guessed.add(name)
            self.note(f"images {name}: not checked yet, {count} are assumed (--images)")
        return Amount(kind, count, fps, sizes.YOUTUBE_VOS_SEQUENCES if kind == "sequences" else 1)  # type: ignore[arg-type]


def require_amounts(study: Study, results: Path, stated_length: StatedLength, changes: Changes | None = None) -> None:
    """Refuse a training that its data are too few for, as far as receipts, files and folders tell how many samples there are.

    Args:
        changes: see `Amounts`.

    Raises:
        UserError: the first such run: one batch is larger than the data set, or the warm-up is longer than the training.
    """
    amounts = Amounts(study, results, Assumed(stated_length=stated_length), lambda _: None, changes)
    for name, run in study.runs.items():
        if not isinstance(run, TrainedRun):
            continue
        settings = run.settings
        # to list a folder of millions of images takes minutes on some disks: only for a warm-up, of which no receipt will tell
        listed = settings.steps is not None and settings.warmup_steps(1)
        if not listed and any(source not in study.videos and amounts.receipt(source) is None for source in run.data):
            continue
        counted = _counted(study, run, amounts)
        if counted is None:
            continue
        if counted * MORE < settings.batch_size:
            found = f"batch_size {settings.batch_size} is larger than the data set (about {counted} samples in {', '.join(run.data)})"
            raise UserError(f"runs.{name}.settings: {found}", todo="lower batch_size, or give more data")
        few = int(counted * FEWER)
        if settings.steps is not None and few >= settings.batch_size and settings.warmup_obstacle(*settings.total_steps(few)):
            raise UserError(f"runs.{name}.settings: {settings.warmup_obstacle(*settings.total_steps(counted))}")


def _counted(study: Study, run: TrainedRun, amounts: Amounts) -> int | None:
    """About how many samples a run's data have; None where nothing tells."""
    counted = sum(run.settings.samples(amount) for source in run.data for amount in amounts.of(source))
    sources = {other for source in run.data for other in (study.curations[source].data if source in study.curations else [source])}
    chosen_later = any(source in study.curations and amounts.receipt(source) is None for source in run.data)
    return None if sources & amounts.guessed or chosen_later else counted
