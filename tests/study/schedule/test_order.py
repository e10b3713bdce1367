"""In which order jobs are started."""

from densewalk.study.config import parse_study
from densewalk.study.schedule.order import Order
from tests.fixtures.studies import TINY

DINO = {"method": "dino", "init": "random", "arch": "vit_small_patch16", "data": ["walk"], "settings": {"steps": 2}}
RUNS = {
    "start": {"method": "none", "init": "random", "arch": "vit_small_patch16", "seeds": [3, 4]},
    "dino": {**DINO, "seeds": [3, 4]},
    "late": {**DINO, "init": "dino", "seeds": [4]},
}
RUNS["late"].pop("arch")
LISTED = {
    "linear": {"protocol": "linear", "settings": {"root": "data", "dataset": "ImageNet-1k"}},
    "other": {"protocol": "knn", "settings": {"root": "data", "dataset": "mine"}},
    "knn": {"protocol": "knn", "settings": {"root": "data", "dataset": "ImageNet-1k"}},
}


def order(evaluations=LISTED, runs=RUNS):
    study = parse_study({**TINY, "runs": runs, "evaluations": evaluations})
    found = Order(study)
    jobs = {("data",): found.of_data()}
    jobs |= {job: found.of_run(*job) for job in study.jobs()}
    jobs |= {job: found.of_evaluation(*job) for job in study.evaluation_jobs()}
    return study, found, sorted(jobs, key=jobs.__getitem__, reverse=True)


def test_of_each_seed_baselines_then_cheap_evaluations_then_trainings_then_expensive_ones():
    _, _, jobs = order()
    seed = [job for job in jobs if len(job) > 1 and job[1] == 3]
    assert jobs[0] == ("data",)
    assert seed == [
        ("start", 3),
        ("start", 3, "knn"),  # its work is known: minutes
        ("dino", 3, "knn"),
        ("start", 3, "other"),  # its work is not: four hours are asked for
        ("dino", 3, "other"),
        ("dino", 3),
        ("start", 3, "linear"),
        ("dino", 3, "linear"),
    ]


def test_a_seed_that_the_first_seed_of_another_run_waits_for_is_as_early():
    """`late` has seed 4 only, and starts from the second seed of `dino`."""
    _, found, jobs = order()
    assert jobs.index(("dino", 4)) < jobs.index(("late", 4)) < jobs.index(("start", 4))
    assert found.of_run("dino", 4) < found.of_run("dino", 3)


def test_pictures_come_after_cheap_evaluations_and_before_trainings():
    _, found, _ = order()
    pictures = found.of_features("start", 3)
    assert found.of_run("dino", 3) <= pictures - 1 < found.of_evaluation("dino", 3, "other")


def test_what_the_study_does_not_plan_comes_last():
    _, found, _ = order()
    assert found.of_run("dino", 9) == found.of_evaluation("dino", 3, "unknown") == 0
