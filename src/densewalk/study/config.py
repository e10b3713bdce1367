"""The study: what `config.yaml` may say, checked before any job starts.

    densewalk schema > workflow/schemas/config.schema.json      # after a change of the models

A study names videos, image folders and checkpoints; *runs* made from them; *evaluations* of the runs; and tables. A run's
`init` may be another run, so chains such as DoRA -> Time-Tuning -> NeCo are configuration. This module is free of torch:
Snakemake imports it at every start of every job.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.core.settings import Settings
from densewalk.curation.settings import CurationSettings
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.models.catalog import Checkpoint, Labels
from densewalk.study.public_checkpoints import with_public_checkpoints
from densewalk.study.registry import TABLES, Evaluation, Run, Table
from densewalk.study.runs import Baseline, BaseRun, Name, TrainedRun
from densewalk.study.specs import as_json, expand_sweeps
from densewalk.synthetic.settings import SyntheticSettings
from densewalk.training.execution import Execution
from densewalk.visualization.settings import PictureSettings

OR_PUBLIC = "or what `densewalk checkpoints` lists"
RESERVED = {"cache", "data", "logs", "state", "tables", "random"}
RESERVED_EVALUATIONS = {"run", "training", "features"}  # what else lies in the folder of a run and seed


class Synthetic(SyntheticSettings):
    """A generated city walk that takes the place of downloaded data."""

    root: str
    """Folder it is written to; sources and evaluation roots below it wait for it."""


class Study(Settings):
    """One study: one `config.yaml`, one set of tables."""

    study: str = Field(min_length=1)
    """Title of the tables and the report."""
    synthetic: Synthetic | None = None
    """Generate the data instead of downloading any."""
    videos: dict[Name, VideoSettings] = {}
    """Videos, transcoded once to a small copy for training."""
    images: dict[Name, ImagesSettings] = {}
    """Image folders."""
    curations: dict[Name, CurationSettings] = {}
    """Pools of frames and pictures without near duplicates, or like a reference set."""
    checkpoints: dict[Name, Checkpoint] = {}
    """Initial backbones."""
    runs: dict[Name, Run] = Field(min_length=1)
    """Rows of the tables."""
    evaluations: dict[Name, Evaluation] = {}
    """Columns of the tables."""
    tables: list[Table] | None = None
    """Tables to make; by default one for each task that has an evaluation."""
    pictures: PictureSettings = PictureSettings()
    """Pictures of every run's features on the report's page; they change no number."""
    execution: Execution = Execution()
    """How jobs are run; changes no configuration hash."""

    @model_validator(mode="before")
    @classmethod
    def sweeps_become_runs(cls, values: Any) -> Any:
        """Every variant is a run like any other from here on: in the tables, the workflow, the hashes and as an `init`.

        A public checkpoint that is named as an `init` or a curation's `backbone` likewise becomes one of the study's checkpoints.
        """
        if not isinstance(values, dict) or not isinstance(values.get("runs"), dict):
            return values
        return with_public_checkpoints({**values, "runs": expand_sweeps(values["runs"])})

    # -- consistency -------------------------------------------------------------------------------------------------

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Every name that is used exists, once, and no run is built on itself."""
        names = [*self.videos, *self.images, *self.curations]
        twice = sorted({n for n in names if names.count(n) > 1} | (self.checkpoints.keys() & self.runs.keys()))
        if twice:
            raise ValueError(f"used twice as a name: {', '.join(twice)}")
        for name, run in self.runs.items():
            self._check_run(name, run)
        for name, curation in self.curations.items():
            self._check_curation(f"curations.{name}", curation)
        for name in self.runs:
            self._check_chain([name])
        self._check_parts()
        unknown_sources = sorted(set(self.pictures.sources or []) - set(names))
        if unknown_sources:
            raise ValueError(f"pictures.sources: neither a video nor an image folder: {unknown_sources[0]}; allowed: {', '.join(names)}")
        for name, evaluation in self.evaluations.items():
            if name in RESERVED_EVALUATIONS:
                raise ValueError(f"evaluations.{name}: the name '{name}' is taken; choose another")
            unknown = sorted(set(evaluation.runs or []) - self.runs.keys())
            if unknown:
                raise ValueError(f"evaluations.{name}.runs: no such run: {', '.join(unknown)}; allowed: {', '.join(self.runs)}")
        return self

    def _check_run(self, name: str, run: BaseRun) -> None:
        where = f"runs.{name}"
        if name in RESERVED:
            raise ValueError(f"{where}: the name '{name}' is taken; choose another")
        if run.init != "random" and run.init not in self.checkpoints and run.init not in self.runs:
            known = ", ".join(["random", *self.checkpoints, *self.runs])
            raise ValueError(f"{where}.init: '{run.init}' is neither a checkpoint nor a run; allowed: {known}, {OR_PUBLIC}")
        if (run.init == "random") != (run.arch is not None):
            raise ValueError(f"{where}.arch: give it exactly where init is random (init: {run.init}, arch: {run.arch})")
        if len(set(run.seeds)) != len(run.seeds):
            raise ValueError(f"{where}.seeds: {run.seeds} has a seed twice")
        known_data = [*self.videos, *self.images, *self.curations]
        for source in run.data if isinstance(run, TrainedRun) else []:
            if source not in known_data:
                raise ValueError(
                    f"{where}.data: '{source}' is no video, image folder or curation; allowed: {', '.join(known_data) or 'none yet'}"
                )
        if run.init in self.runs:
            self._check_seeds(where, run)

    def _check_seeds(self, where: str, run: BaseRun) -> None:
        theirs = self.runs[run.init].seeds
        missing = [s for s in run.seeds if s not in theirs]
        if missing and len(theirs) > 1:
            raise ValueError(f"{where}.seeds: {run.init} has no seed {missing[0]} (it has {theirs})")

    def _check_parts(self) -> None:
        parts = self.execution.accumulate
        unknown = sorted(parts.keys() - self.runs.keys()) if isinstance(parts, dict) else []
        if unknown:
            raise ValueError(f"execution.accumulate: no such run: {', '.join(unknown)}; allowed: {', '.join(self.runs)}")
        for name, run in self.runs.items():
            if isinstance(run, TrainedRun) and (obstacle := run.settings.obstacle_to_parts(self.execution.parts_of(name))):
                raise ValueError(f"execution.accumulate: run '{name}': {obstacle}; to do: give accumulate by run, for those that allow it")

    def _check_curation(self, where: str, curation: CurationSettings) -> None:
        pictures = [*self.videos, *(name for name, folder in self.images.items() if folder.layout == "pictures")]
        unknown = [name for name in curation.data if name not in pictures]
        if unknown or len(set(curation.data)) < len(curation.data):
            found = f"'{unknown[0]}' is neither a video nor a folder of pictures" if unknown else "a name stands there twice"
            raise ValueError(f"{where}.data: {found}; allowed: {', '.join(pictures) or 'none yet'}")
        if curation.backbone not in self.checkpoints and curation.backbone not in self.runs:
            known = ", ".join([*self.checkpoints, *self.runs])
            raise ValueError(f"{where}.backbone: '{curation.backbone}' is neither a checkpoint nor a run; allowed: {known}, {OR_PUBLIC}")
        seeds = self.runs[curation.backbone].seeds if curation.backbone in self.runs else []
        if seeds and curation.seed is not None and curation.seed not in seeds:
            raise ValueError(f"{where}.seed: {curation.backbone} has no seed {curation.seed} (it has {seeds})")

    def _check_chain(self, chain: list[str]) -> None:
        """What a run is built on: its initial backbone, and those that its data were chosen with."""
        run = self.runs[chain[-1]]
        chosen_with = [self.curations[n].backbone for n in getattr(run, "data", []) if n in self.curations]
        for name in [run.init, *chosen_with]:
            if name in chain:
                raise ValueError(f"runs.{name}: a circle, {' -> '.join([*chain[chain.index(name) :], name])}")
            if name in self.runs:
                self._check_chain([*chain, name])

    # -- answers for the workflow ------------------------------------------------------------------------------------

    @property
    def task_tables(self) -> list[str]:
        """Tables of this study, in a fixed order."""
        tasks = {e.settings.TASK for e in self.evaluations.values()}
        return [t for t in TABLES if t in (self.tables if self.tables is not None else tasks)]

    def arch_of(self, run: str) -> str:
        """The run's architecture, through the chain of its initial backbones."""
        r = self.runs[run]
        if r.arch is not None:
            return r.arch
        return self.checkpoints[r.init].arch if r.init in self.checkpoints else self.arch_of(r.init)

    def labels_of(self, run: str) -> Labels | None:
        """The run's names in the published tables; a baseline inherits its checkpoint's."""
        r = self.runs[run]
        if r.labels is None and isinstance(r, Baseline) and r.init in self.checkpoints:
            return self.checkpoints[r.init].labels
        return r.labels

    def jobs(self) -> Iterator[tuple[str, int]]:
        """Every (run, seed)."""
        return ((name, seed) for name, run in self.runs.items() for seed in run.seeds)

    def evaluation_jobs(self) -> Iterator[tuple[str, int, str]]:
        """Every (run, seed, evaluation)."""
        for name, seed in self.jobs():
            for evaluation, e in self.evaluations.items():
                if e.runs is None or name in e.runs:
                    yield name, seed, evaluation

    def picture_sources(self) -> list[str]:
        """The data whose pictures are shown; empty where none are."""
        pictured = [*self.videos, *(n for n, i in self.images.items() if i.layout == "pictures")]
        chosen = self.pictures.sources if self.pictures.sources is not None else pictured
        return chosen if self.pictures.images else []

    def plan(self) -> dict[str, Any]:
        """What the page must know of the study, also where results are missing."""
        runs = {
            name: {"method": r.method, "init": r.init, "arch": self.arch_of(name), "data": list(getattr(r, "data", [])), "seeds": r.seeds}
            for name, r in self.runs.items()
        }
        evaluations = {
            name: {
                "task": e.settings.TASK,
                "protocol": e.protocol,
                "metrics": e.settings.METRICS,
                "runs": [r for r in self.runs if e.runs is None or r in e.runs],
            }
            for name, e in self.evaluations.items()
        }
        hashes = {f"{run}/s{seed}/{name}": config_hash(self.evaluation_spec(run, seed, name)) for run, seed, name in self.evaluation_jobs()}
        sources = [*self.videos, *self.images]
        return {"study": self.study, "runs": runs, "evaluations": evaluations, "hashes": hashes, "sources": sources}

    def run_spec(self, run: str, seed: int) -> dict[str, Any]:
        """All that determines the run's backbone: its hash is the run's identity, and includes those of what it is built on."""
        r = self.runs[run]
        spec: dict[str, Any] = {"run": run, "seed": seed, "method": r.method, "arch": self.arch_of(run), "init": self._init_spec(run, seed)}
        if isinstance(r, TrainedRun):
            spec["data"] = {n: self._data_spec(n) for n in r.data}
            spec["settings"] = as_json(r.settings)
        return spec

    def curation_spec(self, name: str) -> dict[str, Any]:
        """All that determines which pictures a curation keeps."""
        c = self.curations[name]
        backbone = self._backbone_spec(c.backbone, c.seed)
        arch = self.checkpoints[c.backbone].arch if c.backbone in self.checkpoints else self.arch_of(c.backbone)
        return {"arch": arch, "backbone": backbone, "data": {n: self._data_spec(n) for n in c.data}, "settings": as_json(c)}

    def _data_spec(self, name: str) -> dict[str, Any]:
        if name in self.curations:
            return self.curation_spec(name)
        if name in self.videos:
            return as_json(self.videos[name])
        return {key: value for key, value in as_json(self.images[name]).items() if (key, value) != ("fps", None)}

    def _init_spec(self, run: str, seed: int) -> dict[str, Any]:
        init = self.runs[run].init
        return {"kind": "random"} if init == "random" else self._backbone_spec(init, seed)

    def _backbone_spec(self, name: str, seed: int | None) -> dict[str, Any]:
        """A checkpoint, or a run with the wanted seed or its first."""
        if name in self.checkpoints:
            c = self.checkpoints[name]
            rule = {"interpolation": c.interpolation} if c.interpolation else {}
            return {"kind": "checkpoint", "name": name, "file": c.file, "key": c.key, "sha256": c.sha256, "url": c.url, **rule}
        seeds = self.runs[name].seeds
        theirs = seed if seed in seeds else seeds[0]
        return {"kind": "run", "name": name, "seed": theirs, "hash": config_hash(self.run_spec(name, theirs))}

    def evaluation_spec(self, run: str, seed: int, evaluation: str) -> dict[str, Any]:
        """All that determines one evaluation's numbers."""
        e = self.evaluations[evaluation]
        labels = self.labels_of(run)
        return {
            "run": run,
            "seed": seed,
            "run_hash": config_hash(self.run_spec(run, seed)),
            "evaluation": evaluation,
            "protocol": e.protocol,
            "version": e.settings.VERSION,
            "settings": as_json(e.settings),
            "labels": as_json(labels) if labels else None,
        }


def parse_study(config: dict[str, Any], source: str = "config.yaml") -> Study:
    """The study of a parsed configuration.

    Raises:
        UserError: the first few things that are wrong, each with its key.
    """
    try:
        return Study.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_complaints(error))) from error


def _complaints(error: ValidationError, most: int = 5) -> list[str]:
    found = []
    for e in error.errors()[:most]:
        key = ".".join(str(part) for part in e["loc"])
        message = e["msg"].removeprefix("Value error, ")
        found.append(f"{key}: {message}" if key else message)
    return found


def load_study(path: str | Path) -> Study:
    """The study in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a study.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return parse_study(content if isinstance(content, dict) else {}, str(path))


def json_schema() -> dict[str, Any]:
    """The study's JSON schema, for editors and for Snakemake."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
