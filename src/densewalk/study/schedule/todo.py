"""A summary of the jobs that would run: by rule, reason and run. Free of torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from densewalk.core.progress import columns

MOST = 6  # names of a row


@dataclass(frozen=True)
class JobToDo:
    """A job that would run. why: in the words of results/changes.py, if it is outdated. of: the run, or what else it makes."""

    rule: str
    why: str
    of: str
    seed: int | None = None


def summary(jobs: Sequence[JobToDo]) -> str:
    """A table with a row for each rule and reason, in the order in which they are first met; no line if there is nothing to do."""
    if not jobs:
        return ""
    rows: dict[tuple[str, str], dict[str, list[int]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for job in jobs:
        row = (job.rule, job.why)
        counts[row] = counts.get(row, 0) + 1
        seeds = rows.setdefault(row, {}).setdefault(job.of, [])
        if job.seed is not None and job.seed not in seeds:
            seeds.append(job.seed)
    cells = [(str(counts[rule, why]), rule, why, _names(of)) for (rule, why), of in rows.items()]
    return f"to do: {len(jobs)} jobs\n{columns(('jobs', 'rule', 'why', 'of'), cells)}"


def _names(of: dict[str, list[int]]) -> str:
    """`dora (0, 1), dino (0)`, the first few."""
    names = [f"{name} ({_listed(sorted(seeds))})" if seeds else name for name, seeds in islice(of.items(), MOST)]
    return ", ".join([*names, *([f"and {len(of) - MOST} more"] if len(of) > MOST else [])])


def _listed(seeds: Iterable[int]) -> str:
    """Seeds, the first few."""
    seeds = list(seeds)
    return ", ".join([*map(str, seeds[:MOST]), *([f"and {len(seeds) - MOST} more"] if len(seeds) > MOST else [])])
