"""In which order jobs are started that could all start now: Snakemake's priorities. Free of torch.

The first seed of every run comes before the second one of any, so that a table of all runs exists early. Of each seed, baselines come
first, then evaluations from cheap to expensive, then trainings in the study's order. An evaluation that asks for as much time as a training
comes after these.
"""

from functools import cached_property

from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import shape_of
from densewalk.study.config import Study
from densewalk.study.estimate import UTILIZATION, Estimate
from densewalk.study.gpus import gpu_named
from densewalk.study.runs import TrainedRun
from densewalk.training.settings import TrainingSettings

# place of the seed, or of one that waits for it; kind of job; minutes; places of run and evaluation in the study; the seed's own place
Key = tuple[int, int, float, int, int, int]
BASELINES, CHEAP, PICTURES, TRAININGS, EXPENSIVE = range(5)


def asks_as_a_training(settings: EvaluationSettings | type[EvaluationSettings]) -> bool:
    """True for an evaluation that asks for as much time as a training: those that train heads."""
    return settings.RESOURCES.runtime >= TrainingSettings.RESOURCES.runtime


class Order:
    """The priority of each job: a whole number above 0, the higher the earlier."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def of_data(self) -> int:
        """Of preparation and curation, which everything else waits for."""
        return len(self._priorities) + 1

    def of_run(self, run: str, seed: int) -> int:
        """Of a training or baseline; of one that the study does not plan, the lowest."""
        return self._priorities.get((run, seed, None), 0)

    def of_evaluation(self, run: str, seed: int, evaluation: str) -> int:
        """Of an evaluation; of one that the study does not plan, the lowest."""
        return self._priorities.get((run, seed, evaluation), 0)

    def of_features(self, run: str, seed: int) -> int:
        """Of the images of a backbone's features: they come after the cheap evaluations of the same seed."""
        key = (self._places.get((run, seed), 0), PICTURES, 0.0, 0, 0, 0)
        return 1 + sum(other > key for other in self._keys.values())

    @cached_property
    def _priorities(self) -> dict[tuple[str, int, str | None], int]:
        last_first = sorted(self._keys, key=self._keys.__getitem__, reverse=True)
        return {job: number for number, job in enumerate(last_first, start=1)}

    @cached_property
    def _keys(self) -> dict[tuple[str, int, str | None], Key]:
        study, numbers = self.study, {run: number for number, run in enumerate(self.study.runs)}
        columns = {evaluation: number for number, evaluation in enumerate(study.evaluations)}
        keys: dict[tuple[str, int, str | None], Key] = {}
        for run, seed in study.jobs():
            kind = TRAININGS if isinstance(study.runs[run], TrainedRun) else BASELINES
            keys[run, seed, None] = (self._places[run, seed], kind, 0.0, numbers[run], 0, study.runs[run].seeds.index(seed))
        for run, seed, evaluation in study.evaluation_jobs():
            kind = EXPENSIVE if asks_as_a_training(study.evaluations[evaluation].settings) else CHEAP
            minutes = self._minutes[evaluation, study.arch_of(run)]
            keys[run, seed, evaluation] = (
                self._places[run, seed],
                kind,
                minutes,
                numbers[run],
                columns[evaluation],
                study.runs[run].seeds.index(seed),
            )
        return keys

    @cached_property
    def _places(self) -> dict[tuple[str, int], int]:
        """Place of each run's seed in its list; the earlier one of a run that is built on it, if that waits for it."""
        places = {(name, seed): place for name, run in self.study.runs.items() for place, seed in enumerate(run.seeds)}
        waiting = list(places)
        while waiting:
            job = waiting.pop()
            for parent in self._parents(*job):
                if places[parent] > places[job]:
                    places[parent] = places[job]
                    waiting.append(parent)
        return places

    def _parents(self, run: str, seed: int) -> list[tuple[str, int]]:
        """The backbones that a run starts from or learns from, or with which the data it is trained on were chosen."""
        spec = self.study.run_spec(run, seed)
        curated = [self.study.curation_spec(name).backbone for name in spec.data or () if name in self.study.curations]
        taught_by = [teacher.backbone for teacher in spec.teachers or ()]
        return [(origin.name, origin.seed) for origin in (spec.init, *curated, *taught_by) if origin.kind == "run"]

    @cached_property
    def _minutes(self) -> dict[tuple[str, str], float]:
        """Of each evaluation and architecture, on one GPU; where the work is not known, what the job asks a scheduler for."""
        cost = Estimate(gpu_named("a100"), UTILIZATION, self.study.execution.precision)
        found = {}
        for name, evaluation in self.study.evaluations.items():
            for arch in {self.study.arch_of(run) for run in self.study.runs}:
                shape, settings = shape_of(arch), evaluation.settings
                work = None if shape is None else settings.work(shape)
                hours = None if work is None else cost.gpu_hours(work.flops, "bfloat16" if work.bfloat16 else "float32")
                found[name, arch] = settings.RESOURCES.runtime if hours is None else 60 * hours
        return found
