"""Say which backbones and results were made by other code, packages, files or data than there are now. Free of torch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from densewalk.core.hashing import file_sha256, file_stamp
from densewalk.core.provenance import UNKNOWN, Provenance
from densewalk.results.records import FileRecord, ResultRecord, RunRecord


@dataclass(frozen=True)
class Stale:
    """A backbone (evaluation: None) or a result that would not be made in the same way today. path: what a workflow makes again."""

    run: str
    seed: int
    evaluation: str | None
    path: Path
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.run}, seed {self.seed}: {self.evaluation or 'the backbone'}: {'; '.join(self.reasons)}"


def code_reasons(record: RunRecord | ResultRecord, now: Provenance) -> list[str]:
    """How the code and the packages that made a record, or the weights that it is about, differ from those of now."""
    trained = (record.training.made if record.training else ()) if isinstance(record, RunRecord) else record.made
    makers: list[Provenance] = [record, *trained]
    return list(dict.fromkeys(reason for maker in makers for reason in _differences(maker, now)))


def _differences(then: Provenance, now: Provenance) -> Iterator[str]:
    if then.commit != now.commit:
        yield f"made by commit {then.code}, not {now.code}" if then.commit != UNKNOWN else "nobody knows which code made its first steps"
    elif then.dirty or now.dirty:
        yield f"made by commit {then.code}, now {now.code}: changes that are not committed cannot be compared"
    both = sorted(then.versions.keys() & now.versions.keys())
    yield from (f"{name} {then.versions[name]}, not {now.versions[name]}" for name in both if then.versions[name] != now.versions[name])


def file_reasons(record: RunRecord) -> list[str]:
    """Which of the files that a run has read hold something else now; files that are gone, as to free a disk, are none."""
    paths = [(Path(path), known) for path, known in record.files.items()]
    return [f"{path} has another content" for path, known in paths if path.is_file() and current_sha256(path, known) != known.sha256]


def current_sha256(path: Path, known: FileRecord | None) -> str:
    """The sha256 of a file, which is not read again while its size and times are those of the record."""
    stamp = file_stamp(path)
    return known.sha256 if known is not None and known.stamp == stamp else _sha256(path, stamp)


@cache
def _sha256(path: Path, _stamp: str) -> str:
    return file_sha256(path)


def by_other_code(runs: Sequence[RunRecord], results: Sequence[ResultRecord], now: Provenance) -> dict[str, list[str]]:
    """Reason -> what was made by other code or packages than there are now, for a page; files are not looked at."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for reason in code_reasons(run, now):
            found[reason].append(f"{run.spec.run}, seed {run.spec.seed}")
    for result in results:
        for reason in code_reasons(result, now):
            found[reason].append(f"{result.run}, seed {result.seed}: {result.evaluation}")
    return dict(found)
