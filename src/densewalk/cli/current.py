"""Say which of the results that a command reads are no longer those of their study. Free of torch."""

from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path

from densewalk.cli.commands import STUDY_FILE
from densewalk.core.config_file import read_config
from densewalk.core.errors import UserError
from densewalk.core.progress import log
from densewalk.results.missing import not_current
from densewalk.results.plan import Plan, read_plan
from densewalk.results.records import place_of

MOST_ABOVE = 3  # folders above a folder of results in which its study is looked for


def warn_of_others(records: Iterable[Path]) -> None:
    """Log a line for each result that its study does not have, or would make otherwise today; the values stay.

    The study is the config.yaml above the folder of results that names this folder, or else the newest plan that the folder holds.
    Records in another place, or of a folder without either, are passed over.
    """
    places: dict[Path, list[tuple[str, int, str]]] = {}
    for path in records:
        if (place := place_of(path)) is not None:
            places.setdefault(path.absolute().parents[2], []).append(place)
    for results, keys in places.items():
        found = study_of(results)
        if found is None:
            continue
        plan, home, name = found
        with chdir(home):
            lines = list(not_current(plan, Path(plan.results), keys))
        for line in lines:
            log.warning("not a result of %s as it is now: %s", name, line)


def study_of(results: Path) -> tuple[Plan, Path, Path] | None:
    """The plan of a folder of results, the study's folder, and the file that it was read from; None if there is none."""
    above = list(results.parents)[:MOST_ABOVE]
    for folder in above:
        file = folder / STUDY_FILE
        try:
            if file.is_file() and _is_of(file, results):
                from densewalk.study.config import load_study

                with chdir(folder):
                    return load_study(file).plan(), folder, file
        except UserError as error:
            log.warning("%s cannot be read, so its results are not compared with it: %s", file, error)
            return None
    for file in sorted(results.glob("specs/plan-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)[:1]:
        plan = read_plan(file)
        for folder in above:
            if (folder / plan.results).resolve() == results.resolve():
                return plan, folder, file
    return None


def _is_of(file: Path, results: Path) -> bool:
    """True for a study whose folder of results this is."""
    content = read_config(file)
    return "runs" in content and (file.parent / str(content.get("results", "results"))).resolve() == results.resolve()
