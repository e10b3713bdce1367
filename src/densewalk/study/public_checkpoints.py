"""Public checkpoints by name inside a study."""

from typing import Any

from densewalk.models.catalog import public_checkpoint


def with_public_checkpoints(study: dict[str, Any]) -> dict[str, Any]:
    """A study that is not yet checked, where the public checkpoints that its runs and curations name stand among its checkpoints."""
    known = study.get("checkpoints") or {}
    if not isinstance(known, dict):
        return study
    added: dict[str, Any] = {}
    named = {
        part: _with_own_names(study[part], key, {*known, *study["runs"]}, added)
        for part, key in NAMING.items()
        if isinstance(study.get(part), dict)
    }
    return {**study, **named, "checkpoints": {**known, **added}} if added else study


NAMING = {"runs": "init", "curations": "backbone"}
"""Parts of a study whose members name a checkpoint, and under which key."""


def _with_own_names(part: dict[str, Any], key: str, taken: set[str], added: dict[str, Any]) -> dict[str, Any]:
    """A part whose public checkpoints have their names in the study, and are put among `added`."""
    renamed = dict(part)
    for name, content in part.items():
        wanted = content.get(key) if isinstance(content, dict) else None
        if isinstance(wanted, str) and wanted not in taken and (found := public_checkpoint(wanted)) is not None:
            added[found[0]] = found[1]
            renamed[name] = {**content, key: found[0]}
    return renamed
