"""What of a specification decides the outcome of its job: all but names and paths. Free of torch.

Two specifications with one identity train the same weights from the same contents, whatever runs, data and files are called. The
contents themselves are compared apart, by their sha256 (data/contents.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from densewalk.core.hashing import config_hash

LABELS = ("run", "evaluation", "labels")  # of a specification itself
OF_EVALUATION = ("dataset",)  # the data's name in the tables
OF_METHOD = ("track_files",)  # paths, whose contents are compared apart
OF_SOURCE = ("source", "sequence_list")  # paths
OF_CURATION = ("data", "backbone")  # names, which the specification beside it resolves
OF_CHECKPOINT = ("name", "file", "sha256", "url")  # names and places; the content is compared apart

Spec = Mapping[str, Any]


def identity(spec: Spec, init_hash: str | None = None) -> str:
    """Twelve digits that say whether two jobs have the same outcome.

    Args:
        spec: a specification as it is written. init_hash: of the run that it starts from, or that it evaluates, instead of its own.
    """
    return config_hash(what_decides(spec, init_hash))


def what_decides(spec: Spec, init_hash: str | None = None) -> dict[str, Any]:
    """The part of a specification that decides, with the same keys; data are a list, since their order counts."""
    found = {key: value for key, value in spec.items() if key not in LABELS}
    if found.get("code"):  # where the file lies does not count, but which of its functions
        found["arch"] = found["arch"].rpartition(":")[2]
    if "backbone" in found:
        found["backbone"] = _origin(found["backbone"], None)
        if "settings" in found:  # of a curation; a teacher has none
            found["settings"] = _without(found["settings"], OF_CURATION)
    if found.get("teachers"):
        found["teachers"] = [what_decides(teacher) for teacher in found["teachers"]]
    if "method" in found and found.get("settings"):
        found["settings"] = _without(found["settings"], OF_METHOD)
    if "init" in found:
        found["init"] = _origin(found["init"], init_hash)
    elif "run_hash" in found:
        found |= {"run_hash": init_hash or found["run_hash"], "settings": _without(found["settings"], OF_EVALUATION)}
    if found.get("data") is not None:
        found["data"] = [what_decides(one) if "backbone" in one else _without(one, OF_SOURCE) for one in found["data"].values()]
    return found


def _origin(origin: Spec, init_hash: str | None) -> dict[str, Any]:
    """Where weights come from: of a file only how it is read, of a run its identity."""
    if origin["kind"] == "run":
        return {"kind": "run", "hash": init_hash or origin["hash"]}
    return {key: value for key, value in origin.items() if key not in OF_CHECKPOINT and value is not None}


def _without(settings: Spec, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def unequal(a: Any, b: Any, *, ignored: tuple[str, ...] = (), key: str = "") -> Iterator[str]:
    """`key.of.the.value: before -> after` for every leaf of two nested dictionaries that is not the same."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            if name not in ignored:
                yield from unequal(a.get(name), b.get(name), ignored=ignored, key=f"{key}.{name}" if key else str(name))
    elif a != b:
        before, after = ("(none)" if value is None else value for value in (a, b))
        yield f"{key}: {before} -> {after}"
