"""A study: the contents of `config.yaml`, checked before any job starts.

    densewalk schema > workflow/schemas/config.schema.json      # after a change of the models

Videos, image folders and checkpoints have names; *runs* are made from them, *evaluations* are applied to the runs. A run's `init`
may be another run, so chains such as DoRA -> Time-Tuning -> NeCo are configuration. Free of torch: Snakemake imports this module at
every start of every job.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from densewalk.core.config_file import not_plain, read_config
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.core.settings import FOLDER_PATTERN, Settings, Unique, WorkflowPath, truths_for_numbers
from densewalk.core.text.complaints import complaints
from densewalk.curation.settings import CurationSettings
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.models.architecture import abilities_of
from densewalk.models.catalog import Checkpoint, Labels
from densewalk.models.families.abilities import WITH_MOTION
from densewalk.models.families.own_code import OWN
from densewalk.models.origin import CheckpointFile, RandomWeights, RunBackbone
from densewalk.results.plan import DatasetName, Generated, Plan, PlannedBackbone, PlannedEvaluation, PlannedRun, result_key, run_key
from densewalk.study.checks import check_study
from densewalk.study.runs import Baseline, ChangedRun, Name, TaughtRun, TrainedRun
from densewalk.study.schema.members import TABLES, Evaluation, Run, Table
from densewalk.study.shorthand.budgets import count_steps, spread_budget
from densewalk.study.shorthand.evaluation_presets import SCHEMA, expand_evaluations
from densewalk.study.shorthand.public_checkpoints import as_named, with_public_checkpoints
from densewalk.study.shorthand.sweeps import as_written, expand_sweeps
from densewalk.study.specs import CurationSpec, EvaluationSpec, RunSpec, Specification, TeacherSpec, code_of
from densewalk.synthetic.settings import SyntheticSettings
from densewalk.training.execution import Execution
from densewalk.visualization.settings import PictureSettings


class Synthetic(SyntheticSettings):
    """A generated city walk that takes the place of downloaded data."""

    root: WorkflowPath
    """Folder it is written to; sources and evaluation roots below it wait for it."""

    @property
    def planned(self) -> Generated:
        """For the plan."""
        return Generated(root=self.root, hash=config_hash(self.model_dump(mode="json", exclude={"root"})))


class Study(Settings):
    """One study: one `config.yaml`, one set of tables."""

    study: str = Field(min_length=1)
    """Title of the tables and the report."""
    results: str = Field(default="results", pattern=FOLDER_PATTERN)
    """Folder of the results, relative to the study's folder. Studies of one folder need different ones."""
    synthetic: Synthetic | None = None
    """Generate the data instead of downloading any."""
    videos: dict[Name, VideoSettings] = {}
    """Videos, transcoded once to a small copy for training."""
    images: dict[Name, ImagesSettings] = {}
    """Image folders."""
    curations: dict[Name, CurationSettings] = {}
    """Pools of frames and images without near duplicates, or like a reference set."""
    checkpoints: dict[Name, Checkpoint] = {}
    """Initial backbones."""
    runs: dict[Name, Run] = Field(min_length=1)
    """Rows of the tables."""
    evaluations: dict[Name, Evaluation] = Field(default={}, json_schema_extra=SCHEMA)
    """Columns of the tables. `preset: model_card` stands for the evaluations of a model card."""
    baseline: Name | None = None
    """The run that every other run is compared with in gain.csv and on the page, besides its own start; none by default."""
    tables: Annotated[list[Table], Unique] | None = None
    """Tables to make; by default one for each task that has an evaluation."""
    pictures: PictureSettings = PictureSettings()
    """Images of every run's features on the page; they change no number."""
    execution: Execution = Execution()
    """How jobs are run; changes no configuration hash, but for `budget`."""

    @model_validator(mode="before")
    @classmethod
    def write_out_shorthand(cls, values: Any) -> Any:
        """Make every variant a run like any other, and every public checkpoint that is named one of the study's.

        The same for a preset's evaluations. Every run that trains gets the study's budget.
        """
        if isinstance(values, dict) and "evaluations" in values:
            values = {**values, "evaluations": expand_evaluations(values["evaluations"])}
        if not isinstance(values, dict) or not isinstance(values.get("runs"), dict):
            return values
        return with_public_checkpoints(spread_budget({**values, "runs": expand_sweeps(values["runs"])}))

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """See `check_study`; budgets in teraflop become steps."""
        check_study(self)
        count_steps(self)
        return self

    # -- answers for the workflow ------------------------------------------------------------------------------------

    @property
    def task_tables(self) -> list[str]:
        """Tables of this study, in a fixed order."""
        wanted = {e.settings.TABLE for e in self.evaluations.values()} if self.tables is None else self.tables
        return [t for t in TABLES if t in wanted]

    def arch_of(self, run: str) -> str:
        """The run's architecture, through the chain of its initial backbones."""
        r = self.runs[run]
        if isinstance(r, Baseline) and r.backbone is not None:
            return f"{OWN}{r.backbone}"
        if r.arch is not None:
            return r.arch
        return self.checkpoints[r.init].arch if r.init in self.checkpoints else self.arch_of(r.init)

    def gives(self, run: str) -> frozenset[str]:
        """What the run's backbone can give, by its architecture's name and by the methods that made it."""
        r = self.runs[run]
        if isinstance(r, ChangedRun) and r.settings.GIVES is not None:
            return r.settings.GIVES
        of_init = self.gives(r.init) if r.init in self.runs else abilities_of(self.arch_of(run))
        return (of_init - WITH_MOTION) | r.settings.ADDS if isinstance(r, ChangedRun) else of_init

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
                if e.covers(name, seed):
                    yield name, seed, evaluation

    @cached_property
    def _feature_readers(self) -> dict[tuple[str, str], list[tuple[str, int, str]]]:
        """By backbone and features: the evaluation jobs that read them."""
        found: dict[tuple[str, str], list[tuple[str, int, str]]] = {}
        for run, seed, evaluation in self.evaluation_jobs():
            for read in self.evaluations[evaluation].settings.feature_reads().values():
                found.setdefault((self.run_spec(run, seed).hash, read.key), []).append((run, seed, evaluation))
        return found

    def shared_features(self, run: str, seed: int, evaluation: str) -> dict[str, list[tuple[str, int, str]]]:
        """The splits of an evaluation job whose features other jobs read, too, and these jobs."""
        job, backbone = (run, seed, evaluation), self.run_spec(run, seed).hash
        reads = self.evaluations[evaluation].settings.feature_reads()
        others = {split: [other for other in self._feature_readers[backbone, read.key] if other != job] for split, read in reads.items()}
        return {split: jobs for split, jobs in others.items() if jobs}

    def picture_sources(self) -> list[str]:
        """The data of which images are shown; empty if none are."""
        if self.pictures.images == 0:
            return []
        default = [*self.videos, *(n for n, i in self.images.items() if i.layout == "pictures")]
        return default if self.pictures.sources is None else self.pictures.sources

    def plan(self) -> Plan:
        """What there should be, for the page, the tables and `status`."""
        runs = {
            name: PlannedRun(
                method=r.method,
                init=r.init,
                arch=self.arch_of(name),
                data=r.data if isinstance(r, TrainedRun) else [],
                teachers=r.teachers if isinstance(r, TaughtRun) else [],
                seeds=r.seeds,
                captions=r.settings.PICTURES if isinstance(r, ChangedRun) else {},
                ceilings=r.settings.ceilings() if isinstance(r, TrainedRun) else {},
            )
            for name, r in self.runs.items()
        }
        evaluations = {
            name: PlannedEvaluation(
                table=e.settings.TABLE,
                title=e.settings.TITLE,
                protocol=e.protocol,
                metrics=e.settings.METRICS,
                pictures=e.settings.PICTURES,
                runs=[run for run in self.runs if e.runs is None or run in e.runs],
                seeds=e.seeds,
            )
            for name, e in self.evaluations.items()
        }
        hashes = {result_key(*job): self.evaluation_spec(*job).hash for job in self.evaluation_jobs()}
        return Plan(
            study=self.study,
            results=self.results,
            runs=runs,
            evaluations=evaluations,
            baseline=self.baseline,
            hashes=hashes,
            backbones={run_key(*job): self._planned_backbone(*job) for job in self.jobs()},
            data={name: list(e.settings.data_paths) for name, e in self.evaluations.items()},
            generated=self.synthetic.planned if self.synthetic else None,
            labels={run: self.labels_of(run) for run in self.runs},
            datasets={
                name: DatasetName(dataset=e.settings.dataset, published_protocol=e.settings.published_protocol)
                for name, e in self.evaluations.items()
            },
            pictures=self.pictures.model_copy(update={"sources": self._chosen_from(self.picture_sources())}),
        )

    def _chosen_from(self, names: Sequence[str]) -> list[str]:
        """Names of videos and folders: for a curation those that it chooses from."""
        return [source for name in names for source in (self.curations[name].data if name in self.curations else [name])]

    def _planned_backbone(self, run: str, seed: int) -> PlannedBackbone:
        spec, r = self.run_spec(run, seed), self.runs[run]
        names = r.data if isinstance(r, TrainedRun) else []
        sources = [self._source(name) for name in self._chosen_from(names)]
        lists = {s.source: s.sequence_list for s in sources if isinstance(s, ImagesSettings) and s.sequence_list is not None}
        parent = (spec.init.name, spec.init.seed) if isinstance(spec.init, RunBackbone) else None
        init = None if isinstance(spec.init, RandomWeights) else self._path_of(spec.init)
        curated = [self._path_of(self.curation_spec(name).backbone) for name in names if name in self.curations]
        teachers = [self._path_of(teacher.backbone) for teacher in spec.teachers or ()]
        files = spec.settings.files() if spec.settings else []
        more: dict[str, Any] = {"lists": lists, "curated": curated, "teachers": teachers, "files": files}
        return PlannedBackbone(hash=spec.hash, init=init, parent=parent, receipts=names, sources=[s.source for s in sources], **more)

    def _path_of(self, origin: CheckpointFile | RunBackbone) -> str:
        """Where the weights lie, from the study's folder."""
        if isinstance(origin, CheckpointFile):
            return origin.file
        return f"{self.results}/{run_key(origin.name, origin.seed)}/backbone.safetensors"

    # -- specifications ----------------------------------------------------------------------------------------------

    def specifications(self) -> Iterator[Specification]:
        """The specifications of all jobs."""
        yield from (self.run_spec(run, seed) for run, seed in self.jobs())
        yield from (self.curation_spec(name) for name in self.curations)
        yield from (self.evaluation_spec(*job) for job in self.evaluation_jobs())

    def run_spec(self, run: str, seed: int) -> RunSpec:
        """All that determines the run's backbone, with the hashes of what it is built on."""
        if (run, seed) not in self._run_specs:
            self._run_specs[run, seed] = self._make_run_spec(run, seed)
        return self._run_specs[run, seed]

    @cached_property
    def _run_specs(self) -> dict[tuple[str, int], RunSpec]:
        """Those that were asked for: every evaluation of a run, and every run built on it, asks again."""
        return {}

    def _make_run_spec(self, run: str, seed: int) -> RunSpec:
        r = self.runs[run]
        init = RandomWeights() if r.init == "random" else self._backbone(r.init, seed)
        changed: dict[str, Any] = {}
        if isinstance(r, TrainedRun):
            changed["data"] = {name: self._data(name) for name in r.data}
        if isinstance(r, ChangedRun):
            changed |= {"settings": r.settings, "version": r.settings.VERSION}
        if isinstance(r, TaughtRun):
            changed["teachers"] = [self._teacher(name, seed) for name in r.teachers]
        arch = self.arch_of(run)
        return RunSpec(run=run, seed=seed, method=r.method, arch=arch, init=init, code=code_of(arch), **changed)

    def _teacher(self, name: str, seed: int) -> TeacherSpec:
        arch = self._arch_named(name)
        return TeacherSpec(arch=arch, code=code_of(arch), backbone=self._backbone(name, seed))

    def _arch_named(self, name: str) -> str:
        """The architecture of a checkpoint or a run."""
        return self.checkpoints[name].arch if name in self.checkpoints else self.arch_of(name)

    def curation_spec(self, name: str) -> CurationSpec:
        """All that determines which images a curation keeps."""
        c = self.curations[name]
        arch = self._arch_named(c.backbone)
        data = {source: self._source(source) for source in c.data}
        return CurationSpec(arch=arch, code=code_of(arch), backbone=self._backbone(c.backbone, c.seed), data=data, settings=c)

    def evaluation_spec(self, run: str, seed: int, evaluation: str) -> EvaluationSpec:
        """All that determines one evaluation's numbers."""
        e = self.evaluations[evaluation]
        return EvaluationSpec(
            run=run,
            seed=seed,
            run_hash=self.run_spec(run, seed).hash,
            evaluation=evaluation,
            protocol=e.protocol,
            version=e.settings.VERSION,
            settings=e.settings,
            labels=self.labels_of(run),
        )

    def _source(self, name: str) -> VideoSettings | ImagesSettings:
        return self.videos.get(name) or self.images[name]

    def _data(self, name: str) -> VideoSettings | ImagesSettings | CurationSpec:
        return self.curation_spec(name) if name in self.curations else self._source(name)

    def _backbone(self, name: str, seed: int | None) -> CheckpointFile | RunBackbone:
        """A checkpoint, or a run with the wanted seed or its first."""
        if name in self.checkpoints:
            return CheckpointFile(name=name, **self.checkpoints[name].model_dump(exclude={"arch", "labels"}))
        seeds = self.runs[name].seeds
        init_seed = seed if seed in seeds else seeds[0]
        return RunBackbone(name=name, seed=init_seed, hash=self.run_spec(name, init_seed).hash)


def parse_study(config: dict[str, Any], source: str = "config.yaml") -> Study:
    """Check a parsed configuration.

    Raises:
        UserError: the first few things that are wrong, each with its key.
    """
    if problems := list(islice(not_plain(config), 5)):
        raise UserError(f"{source}: " + "; ".join(problems))
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        lines = dict.fromkeys(as_written(config.get("runs"), as_named(config, line)) for line in complaints(error, Study))
        raise UserError(f"{source}: " + "; ".join(lines)) from error
    if problems := list(islice(truths_for_numbers(study, {**config, "runs": expand_sweeps(config["runs"])}), 5)):
        raise UserError(f"{source}: " + "; ".join(as_written(config["runs"], problem) for problem in problems))
    return study


def load_study(path: str | Path) -> Study:
    """Read the study in a YAML file.

    Raises:
        UserError: no such file, not YAML, or not a study.
    """
    return parse_study(read_config(path), str(path))


def json_schema() -> dict[str, Any]:
    """The study's JSON schema, for editors and for Snakemake."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
