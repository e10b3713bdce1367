"""Scores of the combinations of a ladder, each made once: what is there is read.

results/explain/{A}-{B}/{run}-s{seed}/scores/{hash}.json, {hash}.units.npz

The two ends are the records of the evaluations, where the study has them: `results/{run}/s{seed}/{evaluation}.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.core.machine import usable_workers
from densewalk.core.progress import log
from densewalk.core.typed_files import read_model, write_model
from densewalk.data.fingerprint import fingerprint
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evidence.units import Units, read_units, units_path, write_units
from densewalk.jobs.inputs import feature_cache
from densewalk.results.ladder import LadderScore
from densewalk.results.records import read_result, read_run
from densewalk.study.config import Study
from densewalk.study.ladder.protocols import MixedLadder
from densewalk.study.ladder.steps import Ladder, SettingsLadder
from densewalk.study.registry import evaluation_module
from densewalk.study.specs import EvaluationSpec
from densewalk.training.execution import Execution


@dataclass(frozen=True)
class Scored:
    """The metrics of one combination, and what they are made of; None where nobody has said it."""

    metrics: dict[str, float | None]
    units: Units | None


class Scorer:
    """Scores combinations of settings of one run's backbone.

    Attributes:
        names: of the two evaluations. folder: of the ladder.
    """

    def __init__(
        self, study: Study, names: tuple[str, str], run: str, seed: int, results: Path, folder: Path, execution: Execution
    ) -> None:
        self.study, self.names, self.run, self.seed = study, names, run, seed
        self.folder, self.execution = folder, execution
        self.backbone = results / run / f"s{seed}" / "backbone.safetensors"
        if not self.backbone.is_file():
            raise UserError(f"{self.backbone} does not exist", todo=f"make the run first: snakemake {self.backbone}")
        self.run_hash = study.run_spec(run, seed).hash
        if (found := read_run(self.backbone.with_name("run.json")).config_hash) != self.run_hash:
            raise UserError(
                f"{self.backbone} is of an earlier configuration of {run} ({found})",
                todo=f"make it again: snakemake {self.backbone}",
            )
        self.sha256 = file_sha256(self.backbone)

    @cached_property
    def data(self) -> str:
        """Fingerprint of the files of A's data, which are B's, too."""
        return fingerprint(self.study.evaluations[self.names[0]].settings.data_paths).sha256

    def scores(self, ladder: Ladder, subsets: Sequence[int]) -> dict[int, Scored]:
        """All metrics of the combinations, in their order."""
        if isinstance(ladder, MixedLadder):
            return self._mixed(ladder, subsets)
        assert isinstance(ladder, SettingsLadder)
        return self._of_settings(ladder, subsets)

    def end(self, name: str) -> Scored:
        """One of the two evaluations, by its own code: its record where there is one that is up to date."""
        spec = self.study.evaluation_spec(self.run, self.seed, name)
        return self._recorded(name) or self._evaluated([(spec.settings, spec)])[0]

    def _recorded(self, name: str) -> Scored | None:
        """The record of one of the two evaluations; None where there is none, or one of other inputs."""
        record = self.backbone.with_name(f"{name}.json")
        if not record.is_file():
            return None
        found, wanted = read_result(record), self.study.evaluation_spec(self.run, self.seed, name).hash
        data = found.data.sha256 if found.data else None
        if (found.config_hash, found.backbone_sha256, data) != (wanted, self.sha256, self.data):
            return None
        log.info("%s is read from %s", name, record)
        return Scored(found.metrics, self._units(record, wanted))

    def _of_settings(self, ladder: SettingsLadder, subsets: Sequence[int]) -> dict[int, Scored]:
        ends = {0: self.names[0], ladder.whole: self.names[1]}
        recorded = {s: self._recorded(name) for s, name in ends.items() if s in subsets}
        found = {s: scored for s, scored in recorded.items() if scored is not None}
        wanted = [s for s in subsets if s not in found]
        settings = [ladder.settings(s) for s in wanted]
        made = self._evaluated([(chosen, self._spec(chosen)) for chosen in settings])
        found |= dict(zip(wanted, made, strict=True))
        return {s: found[s] for s in subsets}

    def _spec(self, settings: EvaluationSettings) -> EvaluationSpec:
        return EvaluationSpec(
            run=self.run,
            seed=self.seed,
            run_hash=self.run_hash,
            evaluation=self.names[0],
            protocol=self.study.evaluations[self.names[0]].protocol,
            version=settings.VERSION,
            settings=settings,
            labels=None,
        )

    def _evaluated(self, wanted: Sequence[tuple[EvaluationSettings, EvaluationSpec]]) -> list[Scored]:
        """Settings scored by their protocol's own code: side by side where it can, else one after the other."""
        paths = [self._path(spec.hash) for _, spec in wanted]
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        jobs = [self._job(paths[i].stem) for i in missing]
        if missing:
            module = evaluation_module(wanted[0][1].protocol)
            chosen = [wanted[i][0] for i in missing]
            if side_by_side := getattr(module, "evaluate_side_by_side", None):
                for i, result in zip(missing, side_by_side(chosen, self.backbone, jobs), strict=True):
                    self._write(paths[i], wanted[i][1].hash, result)
            else:
                for number, (i, settings, job) in enumerate(zip(missing, chosen, jobs, strict=True)):
                    self._write(paths[i], wanted[i][1].hash, module.evaluate(settings, self.backbone, job))
                    log.info("%d/%d scored", number + 1, len(missing))
        return [self._read(path, spec.hash) for path, (_, spec) in zip(paths, wanted, strict=True)]

    def _mixed(self, ladder: MixedLadder, subsets: Sequence[int]) -> dict[int, Scored]:
        mixtures = {s: ladder.mixture(s) for s in subsets}
        hashes = {s: config_hash([mixture.hash, self.run_hash, self.seed]) for s, mixture in mixtures.items()}
        paths = {s: self._path(h) for s, h in hashes.items()}
        if missing := [s for s in subsets if not paths[s].is_file()]:
            # imported late: this trains, and needs the toolbox
            from densewalk.evaluations.linear_ladder.run import score

            results = score([mixtures[s] for s in missing], self.backbone, self._job("mixed"))
            for s, result in zip(missing, results, strict=True):
                self._write(paths[s], hashes[s], result)
        return {s: self._read(paths[s], hashes[s]) for s in subsets}

    def _path(self, own: str) -> Path:
        return self.folder / "scores" / f"{config_hash([own, self.sha256, self.data])}.json"

    def _job(self, name: str) -> Job:
        return Job(
            self.folder / "pictures" / name,
            self.folder / "state" / name,
            self.seed,
            str(distributed.local_device(self.execution.device)),
            usable_workers(self.execution.workers),
            feature_cache(self.execution),
            data=self.data,
            deterministic=self.execution.deterministic,
        )

    def _write(self, path: Path, own: str, result: Result) -> None:
        metrics = {name: None if np.isnan(value) else float(value) for name, value in result.metrics.items()}
        if result.units is not None:
            write_units(path, result.units, config_hash=own, run_hash=self.run_hash, backbone_sha256=self.sha256)
        write_model(path, LadderScore(config_hash=own, backbone_sha256=self.sha256, data=self.data, metrics=metrics))

    def _read(self, path: Path, own: str) -> Scored:
        return Scored(read_model(path, LadderScore, "score of a ladder", "delete it").metrics, self._units(path, own))

    def _units(self, record: Path, own: str) -> Units | None:
        """What a score is made of; None where its evaluation does not say, or an earlier version did not keep it."""
        if not units_path(record).exists():
            return None
        return read_units(record, config_hash=own, run_hash=self.run_hash, backbone_sha256=self.sha256)
