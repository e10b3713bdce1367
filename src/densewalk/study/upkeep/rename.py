"""Move what a run, an evaluation or prepared data have left to their new name, so that nothing is made again.

densewalk rename config.yaml OLD NEW        # after the name was changed in config.yaml

Names are in no hash (results/identity.py): weights and numbers stay as they are. Each step leaves alone what is done, so that a rename
that was interrupted is simply repeated.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.files import read_json, write_json
from densewalk.study.config import Study
from densewalk.training.progress_files import holder

Change = Callable[[dict[str, Any]], None]


def rename(study: Study, old: str, new: str, results: Path) -> Iterator[str]:
    """Move files of `old` to `new`, and write the new name into the records; yield a line for each place.

    Raises:
        UserError: the study has no such name, or still has the old one; both have results; or a job or Snakemake is at work.
    """
    kinds: dict[str, Collection[str]] = {
        "run": study.runs,
        "evaluation": study.evaluations,
        "data": {**study.videos, **study.images, **study.curations},
    }
    kind = next((kind for kind, names in kinds.items() if new in names), None)
    if kind is None and new in [evaluation.settings.dataset for evaluation in study.evaluations.values()]:
        yield f"{new} is a data set's name in the tables: nothing is to be moved; snakemake -n shows what is left to do: tables and page"
        return
    if kind is None:
        raise UserError(f"{new} is no run, evaluation or data of the study", todo="change the name in the study first")
    if old in kinds[kind]:
        raise UserError(f"the study still has {old}", todo="change its name in the study first")
    moves = list({"run": _run_moves, "evaluation": _evaluation_moves, "data": _data_moves}[kind](results, old, new))
    _check(results, moves, old)
    done = list(_move(moves))
    change = {"run": _run_change, "evaluation": _evaluation_change, "data": _data_change}[kind](study.results, old, new)
    done += _rewrite(results, change)
    yield from done
    left = "by the name alone, tables and page are written again; snakemake -n shows whether other changes of the study make more due"
    yield f"{old} is {new} now; {left}" if done else f"nothing is called {old} any more: there was nothing to do"


# -- files -------------------------------------------------------------------------------------------------------------

Move = tuple[Path, Path]


def _run_moves(results: Path, old: str, new: str) -> Iterator[Move]:
    yield from ((folder / old, folder / new) for folder in (results, results / "logs"))
    yield from _state_moves(results, rf"{re.escape(old)}(-s\d+-)", new)


def _evaluation_moves(results: Path, old: str, new: str) -> Iterator[Move]:
    for folder in sorted([*results.glob("*/s*"), *results.glob("logs/*/s*")]):
        yield from ((folder / f"{old}{end}", folder / f"{new}{end}") for end in (".json", ".units.npz", "", ".log", ".tsv"))
    yield from _state_moves(results, rf"(\w+-s\d+-){re.escape(old)}(-)", new, first=1)


def _data_moves(results: Path, old: str, new: str) -> Iterator[Move]:
    for folder in (results / "data", results / "logs" / "data"):
        yield from ((folder / f"{old}{end}", folder / f"{new}{end}") for end in (".json", ".mp4", ".csv", ".png", ".log", ".tsv"))


def _state_moves(results: Path, pattern: str, new: str, first: int = 0) -> Iterator[Move]:
    """Folders of state whose names begin with a pattern; `new` comes after its first groups."""
    for folder in sorted(results.glob("state/*")):
        if found := re.match(pattern, folder.name):
            groups = found.groups()
            yield folder, folder.with_name("".join((*groups[:first], new, *groups[first:])) + folder.name[found.end() :])


def _check(results: Path, moves: list[Move], old: str) -> None:
    """Nothing may be overwritten, and nobody may be at work."""
    there = [(source, target) for source, target in moves if source.exists()]
    for source, target in there:
        if target.exists():
            raise UserError(f"{source} cannot be renamed: {target} is there, too", todo="keep one of them and remove the other")
    if not there and not any(target.exists() for _, target in moves):
        raise UserError(f"{results} holds nothing of {old}", todo="correct the name, or let snakemake make it")
    for source, _ in there:
        if source.parent.name == "state" and (who := holder(source)):
            raise UserError(f"{source} is being worked in by {who}", todo="wait for that job or cancel it")
    locks = Path(".snakemake") / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        raise UserError("Snakemake is at work in this folder", todo="wait for it; if it was killed: snakemake --unlock")


def _move(moves: list[Move]) -> Iterator[str]:
    for source, target in moves:
        if source.exists():
            os.rename(source, target)
            yield f"moved {source} to {target}"


# -- records -----------------------------------------------------------------------------------------------------------


def _rewrite(results: Path, change: Change) -> Iterator[str]:
    """Change the records of all runs, results, drawn features and receipts; one that already says so is not written."""
    for path in sorted([*results.glob("*/s*/*.json"), *results.glob("data/*.json")]):
        before, content = read_json(path), read_json(path)
        if not isinstance(content, dict):
            continue
        change(content)
        if content != before:
            status = path.stat()
            write_json(path, content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            yield f"changed {path}"


def _run_change(folder: str, old: str, new: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        _replace(content, "run", old, new)
        if content.get("init_kind") == "run":
            _replace(content, "init", old, new)
        for spec in _specs(content):
            _replace(spec, "run", old, new)
            for key in ("init", "backbone"):
                if isinstance(spec.get(key), dict) and spec[key].get("kind") == "run":
                    _replace(spec[key], "name", old, new)
        _rename_paths(content, f"{folder}/{old}/", f"{folder}/{new}/")

    return change


def _evaluation_change(_folder: str, old: str, new: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        _replace(content, "evaluation", old, new)
        for spec in _specs(content):
            _replace(spec, "evaluation", old, new)

    return change


def _data_change(folder: str, old: str, new: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        for receipt in (content, *_values(content.get("sources"))):
            if "kind" in receipt:
                _replace(receipt, "name", old, new)
                _replace(receipt, "path", f"{folder}/data/{old}.mp4", f"{folder}/data/{new}.mp4")
        for image in content.get("images", []) if isinstance(content.get("images"), list) else []:
            _replace(image, "source", old, new)
        for spec in (content, *_specs(content)):
            for key in ("data", "sources"):
                if isinstance(spec.get(key), dict) and old in spec[key]:
                    spec[key] = {new if name == old else name: value for name, value in spec[key].items()}
        for end in (".json", ".mp4"):
            _rename_paths(content, f"{folder}/data/{old}{end}", f"{folder}/data/{new}{end}")

    return change


def _specs(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The specification in a record, and those of the curations in it."""
    spec = content.get("spec")
    return [spec, *(one for one in _values(spec.get("data")) if "backbone" in one)] if isinstance(spec, dict) else []


def _values(mapping: Any) -> list[dict[str, Any]]:
    return [value for value in mapping.values() if isinstance(value, dict)] if isinstance(mapping, dict) else []


def _replace(content: dict[str, Any], key: str, old: str, new: str) -> None:
    if content.get(key) == old:
        content[key] = new


def _rename_paths(content: dict[str, Any], old: str, new: str) -> None:
    """Files that were read, by path."""
    if isinstance(content.get("files"), dict):
        content["files"] = {path.replace(old, new, 1) if path.startswith(old) else path: file for path, file in content["files"].items()}
