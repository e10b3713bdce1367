"""Say which outputs of a plan would be made otherwise today: the one place that decides. Free of torch.

The workflow makes again what is said here, `densewalk status` and the page call it outdated. Settings, seeds, contents of files and what
a run is built on decide; names, paths and times do not, nor does the code that made an output (`densewalk stale`).
"""

from collections.abc import Sequence
from pathlib import Path

from densewalk.core.files import atomic_write, read_json
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.data.benchmarks.paths import read_list
from densewalk.data.contents import Contents, contents_of, of_sequences
from densewalk.data.fingerprint import fingerprint
from densewalk.data.receipts import CuratedReceipt, ImagesReceipt, SequencesReceipt, VideoReceipt, read_receipt
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.results.identity import identity
from densewalk.results.plan import Plan, PlannedBackbone, result_key, run_key
from densewalk.results.records import InputContents, ResultRecord, RunRecord, read_result, read_run
from densewalk.visualization.record import drawing_hash, read_features

OUTDATED = "made by another configuration than the study's is now; Snakemake makes it again by itself"
NO_COPY = "the copy is not there"
Reasons = tuple[str, ...]


class Changes:
    """What has changed since the outputs of a plan were made. Everything is looked at once.

    A record that is damaged, or of another version of densewalk, is a UserError: nothing is made again on a suspicion.

    results: the folder that the plan's `results` is, from where we are.
    """

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan, self.results = plan, results
        self.contents = Contents(results / "specs" / "contents.json")
        self._runs: dict[tuple[str, int], RunRecord | None] = {}
        self._results: dict[str, ResultRecord | None] = {}
        self._reasons: dict[tuple[str, int], Reasons] = {}

    # -- backbones -------------------------------------------------------------------------------------------------------

    def is_made(self, run: str, seed: int) -> bool:
        """True if a backbone and its record are there."""
        folder = self.results / run_key(run, seed)
        return all((folder / name).is_file() for name in ("backbone.safetensors", "run.json"))

    def of_run(self, run: str, seed: int) -> Reasons:
        """Why a backbone that is there is outdated; nothing if it is not, or is not there."""
        if (run, seed) not in self._reasons:
            self._reasons[run, seed] = self._of_run(run, seed)
        return self._reasons[run, seed]

    def _of_run(self, run: str, seed: int) -> Reasons:
        planned = self.plan.backbones.get(run_key(run, seed))
        if planned is None or not self.is_made(run, seed):
            return ()
        record = self.run_record(run, seed)
        assert record is not None
        found = [] if self._is_same(record, planned) else [OUTDATED]
        if planned.parent and self.is_made(*planned.parent) and self.of_run(*planned.parent):
            found.append(f"{planned.parent[0]}, seed {planned.parent[1]}, which it is built on, is outdated")
        if generated := [source for source in planned.sources if self.is_generated_again(source)]:
            found.append(f"{generated[0]} is generated with other settings")
        return (*found, *self._changed_contents(record, planned))

    def run_record(self, run: str, seed: int) -> RunRecord | None:
        """The record of a backbone; None if it is not there."""
        if (run, seed) not in self._runs:
            path = self.results / run_key(run, seed) / "run.json"
            self._runs[run, seed] = read_run(path) if path.is_file() else None
        return self._runs[run, seed]

    def result_record(self, run: str, seed: int, evaluation: str) -> ResultRecord | None:
        """The record of a result; None if it is not there."""
        key = result_key(run, seed, evaluation)
        if key not in self._results:
            path = self.results / f"{key}.json"
            self._results[key] = read_result(path) if path.is_file() else None
        return self._results[key]

    def fits(self, record: RunRecord, planned: PlannedBackbone) -> bool:
        """True if a record, whatever its run is called, is of what is planned: same specification, same contents."""
        return self._is_same(record, planned) and not self._changed_contents(record, planned)

    def _is_same(self, record: RunRecord, planned: PlannedBackbone) -> bool:
        """True if the specifications agree. Hashes of earlier versions had names in them: these are made again from the specification."""
        if record.config_hash == planned.hash:
            return True
        init_hash = None
        if planned.parent is not None:
            parent, wanted = self.run_record(*planned.parent), self.plan.backbones[run_key(*planned.parent)]
            if parent is not None and parent.config_hash == getattr(record.spec.init, "hash", None):
                init_hash = wanted.hash if self._is_same(parent, wanted) else None
        return identity(record.spec.model_dump(mode="json"), init_hash) == planned.hash

    def _changed_contents(self, record: RunRecord, planned: PlannedBackbone) -> list[str]:
        then, found = self._contents_then(record, planned), []
        if then is None:
            return [f"the receipts in {self.results / 'data'} were made again since, and its record does not say from what it was made"]
        init = None if planned.parent is None else str(self.results / run_key(*planned.parent) / "backbone.safetensors")
        path = init or planned.init
        if path is not None and then.init is not None and self.contents.of(path) not in (None, then.init):
            found.append(f"{path} has another content")
        # not strict in these three: records of earlier versions lack `curated`, `teachers` or `files`, and then nothing is said of them
        compared = [path for path, a in zip(planned.curated, then.curated, strict=False) if self.contents.of(path) not in (None, a)]
        found += [f"{path}, with which its data were chosen, has another content" for path in compared]
        taught = zip(planned.teachers, then.teachers, strict=False)
        found += [f"{path}, from which it learned, has another content" for path, a in taught if self.contents.of(path) not in (None, a)]
        named = zip(planned.files, then.files, strict=False)
        found += [f"{path}, which its settings name, has another content" for path, a in named if self.contents.of(path) not in (None, a)]
        now = self._contents_now(planned)
        # not strict: a record of an earlier version may know no contents, and then nothing is said of them
        changed = [source for source, a, b in zip(planned.sources, then.data, now, strict=False) if b is not None and a != b]
        if any(self.contents.look_again(source) for source in changed):
            now = self._contents_now(planned)
            changed = [source for source, a, b in zip(planned.sources, then.data, now, strict=False) if b is not None and a != b]
        return [*found, *(f"{source} has another content" for source in dict.fromkeys(changed))]

    def _contents_now(self, planned: PlannedBackbone) -> list[str | None]:
        """The contents of the sources; of one that was removed after its preparation, what its receipt says."""
        now: list[str | None] = []
        for number, source in enumerate(planned.sources):
            content = self.contents.of(source)
            if content is not None and source in planned.lists:
                content = of_sequences(content, names_in(planned.lists[source]))
            if content is None and len(planned.receipts) == len(planned.sources):
                receipt = self._receipt(planned.receipts[number])
                content = receipt.source_sha256 if isinstance(receipt, VideoReceipt) else None
            now.append(content)
        return now

    def _receipt(self, name: str) -> VideoReceipt | ImagesReceipt | SequencesReceipt | CuratedReceipt | None:
        path = self.results / "data" / f"{name}.json"
        return read_receipt(path) if path.is_file() else None

    def _contents_then(self, record: RunRecord, planned: PlannedBackbone) -> InputContents | None:
        """What a run was made from. Records of earlier versions say it by the receipts' own sha256; None if these are others now."""
        if record.contents is not None:
            return record.contents
        by_path = {path: file.sha256 for path, file in record.files.items()}
        init = getattr(record.spec.init, "file", None) or planned.init or ""
        data: list[str] = []
        for name in planned.receipts:
            sha256, receipt = by_path.get(f"{self.plan.results}/data/{name}.json"), self._receipt(name)
            if sha256 is None or receipt is None:
                return InputContents(init=by_path.get(init), data=[])
            if file_sha256(self.results / "data" / f"{name}.json") != sha256:
                return None
            if isinstance(receipt, VideoReceipt):
                data += contents_of(receipt)
            elif isinstance(receipt, CuratedReceipt) or receipt.path not in record.data:
                return InputContents(init=by_path.get(init), data=[])
            else:
                data.append(of_sequences(record.data[receipt.path], getattr(receipt, "chosen", None)))
        return InputContents(init=by_path.get(init), data=data)

    # -- results ---------------------------------------------------------------------------------------------------------

    def of_result(self, run: str, seed: int, evaluation: str) -> Reasons:
        """Why a result that is there is outdated; nothing if it is not, or is not there."""
        key = result_key(run, seed, evaluation)
        record = self.result_record(run, seed, evaluation)
        if record is None:
            return ()
        found = [] if self._is_same_result(record, key) else [OUTDATED]
        if self.of_run(run, seed):
            found.append("its backbone is outdated")
        backbone = self.results / run_key(run, seed) / "backbone.safetensors"
        if record.backbone_sha256 is not None and self.contents.of(backbone) not in (None, record.backbone_sha256):
            found.append(f"{backbone} is another one now")
        return (*found, *self._generated_since(record, evaluation, self.results / f"{key}.json"))

    def _is_same_result(self, record: ResultRecord, key: str) -> bool:
        wanted = self.plan.hashes[key]
        if record.config_hash == wanted:
            return True
        made, planned = self.run_record(record.run, record.seed), self.plan.backbones.get(run_key(record.run, record.seed))
        if not record.spec or made is None or planned is None or made.config_hash != record.run_hash:
            return False
        return self._is_same(made, planned) and identity(record.spec, planned.hash) == wanted

    def _generated_since(self, record: ResultRecord, evaluation: str, path: Path) -> list[str]:
        """The generated data of an evaluation are others than those of a result."""
        paths = [p for p in self.plan.data.get(evaluation, []) if self._is_generated(p)]
        if not paths or self.plan.generated is None:
            return []
        if any(self.is_generated_again(p) for p in paths):
            return [f"{paths[0]} is generated with other settings"]
        receipt = Path(self.plan.generated.root) / "receipt.json"
        if not receipt.is_file() or receipt.stat().st_mtime_ns <= path.stat().st_mtime_ns or record.data is None:
            return []
        return [f"{paths[0]} was generated again"] if fingerprint(self.plan.data[evaluation]) != record.data else []

    def of_features(self, run: str, seed: int) -> Reasons:
        """Why the images of a backbone's features are outdated."""
        path, planned = self.results / run_key(run, seed) / "features.json", self.plan.backbones.get(run_key(run, seed))
        if not path.is_file() or planned is None or self.plan.pictures is None:
            return ()
        record = read_features(path)
        found = ["its backbone is outdated"] if self.of_run(run, seed) else []
        if record.config_hash not in (None, drawing_hash(planned.hash, self.plan.pictures)):
            found.append("drawn with other settings")
        known = set(self.plan.pictures.sources or ())
        if unknown := sorted({image.source for image in record.images} - known):
            found.append(f"{unknown[0]} is no longer shown")
        backbone = self.results / run_key(run, seed) / "backbone.safetensors"
        if record.backbone_sha256 is not None and self.contents.of(backbone) not in (None, record.backbone_sha256):
            found.append(f"{backbone} is another one now")
        return tuple(found)

    def of_table(self, name: str) -> Reasons:
        """Why a table, or the page (`report`), is outdated although its records are not: it was written for another plan."""
        mark = written_for(self.results, name)
        return () if mark.is_file() and mark.read_text().strip() == self.plan.hash_of_table(name) else ("written for another plan",)

    # -- data ------------------------------------------------------------------------------------------------------------

    def _is_generated(self, path: str) -> bool:
        return self.plan.generated is not None and Path(path).is_relative_to(self.plan.generated.root)

    def is_generated_again(self, path: str) -> bool:
        """True if a path lies in the generated folder, which was made with other settings."""
        return self._is_generated(path) and bool(self.of_generated())

    def of_generated(self) -> Reasons:
        """Why the generated data are outdated."""
        generated = self.plan.generated
        path = Path(generated.root) / "receipt.json" if generated else None
        if generated is None or path is None or not path.is_file():
            return ()
        same = config_hash(read_json(path).get("settings")) == generated.hash
        return () if same else ("generated with other settings",)

    def of_video(self, name: str, settings: VideoSettings) -> Reasons:
        """Why a training copy is outdated: its settings or the original's content; where that lies decides nothing."""
        receipt = self._receipt(name)
        if receipt is None:
            return ()
        if not isinstance(receipt, VideoReceipt):
            return (f"{self.results}/data/{name}.json is a receipt of something else",)
        found = [] if (self.results / "data" / f"{name}.mp4").is_file() else [NO_COPY]
        if receipt.settings.model_dump(exclude={"source"}) != settings.model_dump(exclude={"source"}):
            found.append("made with other settings")
        if self.is_generated_again(settings.source):
            found.append(f"{settings.source} is generated with other settings")
        if self.contents.of(settings.source) not in (None, receipt.source_sha256):
            found.append(f"{settings.source} has another content")
        return tuple(found)

    def of_images(self, name: str, settings: ImagesSettings) -> Reasons:
        """Why a folder's receipt is outdated: it is of another folder, or a folder in it has changed since."""
        receipt = self._receipt(name)
        if receipt is None:
            return ()
        kind = {"pictures": "images", "sequences": "sequences"}[settings.layout]
        if receipt.kind != kind or getattr(receipt, "fps", None) != settings.fps or getattr(receipt, "path", None) != settings.source:
            return ("of another folder, or with other settings",)
        chosen = names_in(settings.sequence_list) if settings.sequence_list else None
        if isinstance(receipt, SequencesReceipt) and chosen is not None and tuple(chosen) != receipt.chosen:
            return (f"{settings.sequence_list} has another content",)
        if self.is_generated_again(settings.source):
            return (f"{settings.source} is generated with other settings",)
        made = (self.results / "data" / f"{name}.json").stat().st_mtime
        return (f"{settings.source} has changed since",) if self.contents.changed_since(settings.source, made) else ()

    def of_curation(self, name: str, spec_hash: str, parent: tuple[str, int] | None, backbone: str, sources: Sequence[str]) -> Reasons:
        """Why a curation's choice is outdated.

        Args:
            parent: run and seed that compare images, if a run does. backbone: path of the weights that do. sources: paths, in order.
        """
        receipt = self._receipt(name)
        if receipt is None:
            return ()
        if not isinstance(receipt, CuratedReceipt):
            return (f"{self.results}/data/{name}.json is a receipt of something else",)
        found = [OUTDATED] if receipt.config_hash not in (None, spec_hash) else []
        if parent is not None and self.is_made(*parent) and self.of_run(*parent):
            found.append(f"{parent[0]}, seed {parent[1]}, which compares the images, is outdated")
        if generated := [source for source in sources if self.is_generated_again(source)]:
            found.append(f"{generated[0]} is generated with other settings")
        if receipt.backbone_sha256 is not None and self.contents.of(backbone) not in (None, receipt.backbone_sha256):
            found.append(f"{backbone} has another content")
        then = receipt.contents or ()  # receipts of earlier versions have none: not strict below
        changed = [s for s, a in zip(sources, then, strict=False) if self.contents.of(s) not in (None, a)]
        changed = [s for s, a in zip(sources, then, strict=False) if s in changed and self.contents.look_again(s) not in (None, a)]
        return (*found, *(f"{source} has another content" for source in changed))


def written_for(results: Path, name: str) -> Path:
    """The file that says for which plan a table, or the page (`report`), was written."""
    return results / "specs" / f"written-{name}.txt"


def mark_written(plan: Plan, results: Path, name: str) -> None:
    """Say that a table, or the page (`report`), is written for this plan."""
    with atomic_write(written_for(results, name)) as temporary:
        temporary.write_text(f"{plan.hash_of_table(name)}\n")


def names_in(path: str) -> list[str] | None:
    """The names in a list of sequences; None if it is not there."""
    return read_list(path, todo="correct `sequence_list` or download it") if Path(path).is_file() else None
