"""Say which runs of a study run the user's own code."""

from densewalk.models.families.own_code import OWN, find_code, require_function
from densewalk.study.config import Study


def own_code_lines(study: Study) -> list[str]:
    """A line for each function of the user's own that the study's jobs import and call, with its file, seen from the study's folder.

    Raises:
        UserError: there is no such file, or no such name in it.
    """
    names = [study.arch_of(run) for run in study.runs] + [
        study.checkpoints[c.backbone].arch for c in study.curations.values() if c.backbone in study.checkpoints
    ]
    lines = []
    for name in dict.fromkeys(name for name in names if name.startswith(OWN)):
        code = find_code(name)
        require_function(code)
        runs = ", ".join(run for run in study.runs if study.arch_of(run) == name) or "curations"
        lines.append(f"{runs}: its jobs run your own code, {code.function} of {code.file} (sha256 {code.sha256[:12]})")
    return lines
