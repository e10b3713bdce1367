"""Public checkpoints by name inside a study."""

from typing import Any

from densewalk.models.catalog import public_checkpoint

NAMED_BY = {"runs": "init", "curations": "backbone"}  # sections whose members name a checkpoint -> the key


def with_public_checkpoints(study: dict[str, Any]) -> dict[str, Any]:
    """Add the public checkpoints that runs and curations name to the checkpoints of a study that is not yet checked."""
    known = study.get("checkpoints") or {}
    if not isinstance(known, dict):
        return study
    added: dict[str, Any] = {}
    sections = {
        section: _with_own_names(study[section], key, {*known, *study["runs"]}, added)
        for section, key in NAMED_BY.items()
        if isinstance(study.get(section), dict)
    }
    return {**study, **sections, "checkpoints": {**known, **added}} if added else study


def _with_own_names(section: dict[str, Any], key: str, taken: set[str], added: dict[str, Any]) -> dict[str, Any]:
    """Replace the public names in a section by the study's own, and put those checkpoints among `added`."""

    def own(wanted: Any) -> Any:
        if isinstance(wanted, str) and wanted not in taken and (found := public_checkpoint(wanted)) is not None:
            added[found[0]] = found[1]
            return found[0]
        return wanted

    renamed = dict(section)
    for name, content in section.items():
        if isinstance(content, dict):
            teachers = content.get("teachers")
            taught = {"teachers": [own(teacher) for teacher in teachers]} if isinstance(teachers, list) else {}
            renamed[name] = {**content, **({key: own(content[key])} if key in content else {}), **taught}
    return renamed


def as_named(study: dict[str, Any], line: str) -> str:
    """A message on the checkpoint that was added for a public name, with the key where the study has that name."""
    place, _, message = line.partition(": ")
    for section, key in NAMED_BY.items():
        members = study.get(section)
        for name, content in members.items() if isinstance(members, dict) else ():
            wanted = content.get(key) if isinstance(content, dict) else None
            found = public_checkpoint(wanted) if isinstance(wanted, str) else None
            if found is not None and place == f"checkpoints.{found[0]}.arch":
                return f"{section}.{name}.{key}: {message}"
    return line
