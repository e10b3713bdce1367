"""Variants of a run for an ablation."""

import re
from typing import Any

OF_THE_RUN = ("data", "labels", "teachers")  # what a variant says about the run, beside its settings; no method has settings of these names


def expand_sweeps(runs: dict[str, Any]) -> dict[str, Any]:
    """Put the variants of each run's `sweep` behind it, in a study that is not yet checked.

    A sweep of another form than the models allow stays where it is: they say what is wrong with it.

    Raises:
        ValueError: a variant has the name of another run.
    """
    expanded: dict[str, Any] = {}
    for name, run in runs.items():
        variants = _variants(run)
        taken = sorted(v for v in variants if f"{name}_{v}" in runs or f"{name}_{v}" in expanded)
        if taken or name in expanded:
            clash = f"{name}_{taken[0]}" if taken else name
            raise ValueError(f"runs.{name}: '{clash}' is the name of both a run and a variant of a sweep; rename one of them")
        expanded[name] = {k: v for k, v in run.items() if k != "sweep"} if variants else run
        for variant, changes in variants.items():
            # without the run's labels: published values belong to its own settings and data
            kept = {k: v for k, v in run.items() if k not in ("sweep", "labels")}
            own = {k: v for k, v in changes.items() if k in OF_THE_RUN}
            settings = {k: v for k, v in changes.items() if k not in OF_THE_RUN}
            expanded[f"{name}_{variant}"] = {**kept, **own, "settings": {**run["settings"], **settings}}
    return expanded


def as_written(runs: Any, line: str) -> str:
    """A line on a variant, with the key that the file has: `runs.dora.sweep.a.lr` in place of `runs.dora_a.settings.lr`."""
    for name, run in runs.items() if isinstance(runs, dict) else ():
        for variant, changes in _variants(run).items():
            if not line.startswith((f"runs.{name}_{variant}.", f"runs.{name}_{variant}:")):
                continue
            rest = re.split(r"(?=[.:])", line.removeprefix(f"runs.{name}_{variant}"), maxsplit=3)
            key = rest[2] if rest[1] == ".settings" else rest[1]
            if key.startswith(".") and key[1:] not in changes:  # what the run itself says
                return line.replace(f"{name}_{variant}", name, 1)
            return f"runs.{name}.sweep.{variant}{''.join(rest[2:] if rest[1] == '.settings' else rest)}"
    return line


def _variants(run: Any) -> dict[str, dict[str, Any]]:
    """A run's well-formed sweep, or nothing."""
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict) or run.get("method") == "none":
        return {}
    sweep = run.get("sweep")
    if not isinstance(sweep, dict) or not all(isinstance(k, str) and isinstance(v, dict) and v for k, v in sweep.items()):
        return {}
    return sweep
