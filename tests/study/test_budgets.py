"""One budget for all trainings of a study: what becomes of it, and which hashes it enters."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from densewalk.core.errors import UserError
from densewalk.methods.cis.settings import CisSettings
from densewalk.models.architecture import architecture_named
from densewalk.study.amounts import Assumed
from densewalk.study.config import load_study, parse_study
from densewalk.study.estimate import estimate
from densewalk.study.estimate_text import text
from densewalk.study.gpus import GPUS
from tests.fixtures.studies import REPOSITORY, write_study

DINO = {"method": "dino", "init": "random", "arch": "vit_micro_patch16", "data": ["walk"]}
STUDY = {
    "study": "s",
    "videos": {"walk": {"source": "walk.mp4", "usable_seconds": [[0, 100]]}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_micro_patch16"},
        "preset": {**DINO, "settings": {"preset": "small_video"}},
        "default": {**DINO, "settings": {"steps": None}},
        "own": {**DINO, "settings": {"preset": "small_video", "steps": 7}},
    },
}


def study(budget=None, device="cpu", **settings):
    content = copy.deepcopy(STUDY)
    content["execution"] = {"device": device, **({"budget": budget} if budget is not None else {})}
    content["runs"]["preset"]["settings"] |= settings
    return parse_study(content)


def lengths(found):
    return {name: (run.settings.epochs, run.settings.steps) for name, run in found.runs.items() if run.method != "none"}


def test_counted_work_becomes_as_many_steps_as_it_pays_for():
    """By hand: whole steps of each run's own work; a length of its own stays, those of presets and defaults do not."""
    found = study({"teraflop": 50})
    work = {name: found.runs[name].settings.step_work(architecture_named("vit_micro_patch16")).flops for name in ("preset", "default")}
    assert lengths(found) == {
        "preset": (None, int(50e12 // work["preset"])),
        "default": (None, int(50e12 // work["default"])),
        "own": (None, 7),
    }
    assert lengths(found)["preset"] != lengths(found)["default"]
    assert found.runs["preset"].settings.warmup_epochs == 2, "what a recipe gives in epochs stays as many epochs"


def test_a_budget_in_teraflop_is_the_run_of_so_many_steps():
    found = study({"teraflop": 50})
    steps = found.runs["preset"].settings.steps
    assert found.run_spec("preset", 0).hash == study(steps=steps).run_spec("preset", 0).hash
    assert found.run_spec("own", 0).hash == study().run_spec("own", 0).hash
    assert found.run_spec("preset", 0).hash != study({"teraflop": 60}).run_spec("preset", 0).hash


def test_a_measured_budget_is_in_the_hash_as_it_is():
    hashes = {
        study(budget, device="auto").run_spec("preset", 0).hash
        for budget in (None, {"cpu_seconds": 60}, {"cpu_seconds": 61}, {"gpu_hours": 60})
    }
    assert len(hashes) == 4
    assert study({"cpu_seconds": 60}).run_spec("preset", 0).hash == study({"cpu_seconds": 60.0}).run_spec("preset", 0).hash
    own = {"preset": "small_video", "budget": {"cpu_seconds": 60}}
    assert study({"cpu_seconds": 60}).run_spec("preset", 0).hash == study(**own).run_spec("preset", 0).hash
    assert study({"cpu_seconds": 60}).run_spec("own", 0).hash == study().run_spec("own", 0).hash
    settings = study({"cpu_seconds": 60}).runs["preset"].settings
    assert (settings.epochs, settings.steps, settings.budget.seconds) == (None, None, 60)


def test_a_run_without_a_budget_has_no_word_of_it_in_its_specification():
    assert "budget" not in study().run_spec("preset", 0).model_dump_json()


@pytest.mark.parametrize(
    ("budget", "device", "message"),
    [
        ({"teraflop": 1e-9}, "cpu", "runs.preset: the budget of 1e-09 teraflop is less than one step, which takes"),
        ({"gpu_hours": 1}, "cpu", "runs.preset: a budget in GPU-hours, and execution.device is cpu; allowed: cpu_seconds, teraflop"),
        ({"cpu_seconds": 1}, "cuda", "runs.preset: a budget in CPU seconds, and execution.device is cuda; allowed: gpu_hours, teraflop"),
        ({"cpu_seconds": 1, "teraflop": 1}, "cpu", "execution.budget: set exactly one of gpu_hours, cpu_seconds, teraflop"),
        ({"cpu_hours": 1}, "cpu", "execution.budget.cpu_hours: there is no key 'cpu_hours' here"),
        (60, "cpu", "execution.budget: keys with values"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(budget, device, message):
    with pytest.raises(UserError) as error:
        study(budget, device)
    assert message in str(error.value)
    assert str(error.value).count("budget") <= 3
    assert "\n" not in str(error.value)


def test_the_work_of_an_unknown_architecture_is_not_made_up():
    content = copy.deepcopy(STUDY)
    content["runs"] = {"theirs": {"method": "dino", "init": "timm/vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "data": ["walk"]}}
    content["runs"]["theirs"]["settings"] = {"batch_size": 8}
    content["execution"] = {"budget": {"teraflop": 5}}
    with pytest.raises(UserError, match=r"runs\.theirs: how many operations timm/vit_medium_patch16_gap_256.* needs is not in its name"):
        parse_study(content)


def planned(budget):
    found = study(budget, "auto")
    return found, estimate(found, GPUS["a100"], Path("results"), Assumed())


def test_the_plan_shows_equal_work_and_what_will_be_measured():
    found, cost = planned({"teraflop": 50})
    jobs = {job.name: job for job in cost.jobs if job.rule == "train_dino"}
    assert jobs["preset"].flops == pytest.approx(50e12, rel=0.05)
    assert jobs["own"].flops < 1e12
    assert "execution.budget: 50 teraflop for each training" in text(found, cost, Path("results"), "a100")
    found, cost = planned({"gpu_hours": 3})
    jobs = {job.name: job for job in cost.jobs if job.rule == "train_dino"}
    assert (jobs["preset"].gpu_hours, jobs["preset"].steps, jobs["preset"].flops) == (3, None, None)
    assert "run preset: 3 GPU-hours; how many steps they pay for is measured when it begins" in cost.notes
    found, cost = planned({"cpu_seconds": 60})
    assert {job.name: job for job in cost.jobs if job.rule == "train_dino"}["preset"].gpu_hours is None
    found.runs["preset"] = found.runs["preset"].model_copy(update={"seeds": [0, 1]})
    trained = sum(len(run.seeds) for run in found.runs.values() if run.method != "none" and run.settings.budget)
    hours = f"{trained * 60 / 3600:.2g}"
    assert f"budget in CPU seconds: {trained}, together {hours} hours of a core" in text(found, cost, Path("results"), "a100")


def test_the_plan_names_a_warm_up_that_a_budget_does_not_pay_for():
    _, cost = planned({"teraflop": 5})
    assert any(note.startswith("run default: warmup_epochs") and "the training has 2;" in note for note in cost.notes)
    assert not any(note.startswith("run preset: warmup_epochs") for note in cost.notes)


PRETRAINING = {"mae", "simclr", "mocov3", "ibot", "dinov2", "crw", "dino", "dora", "paka", "mosic", "distill"}


@pytest.mark.parametrize("path", ["studies/one_video.yaml", "benchmarks/one_video/config.yaml"])
def test_the_studies_of_one_video_compare_every_method_at_one_length_with_a_random_start(path):
    found = load_study(REPOSITORY / path)
    trained = {name: run for name, run in found.runs.items() if not name.endswith("_start")}
    assert {run.method for run in trained.values()} >= PRETRAINING
    assert {tuple(run.seeds) for run in found.runs.values()} == {(0, 1, 2)}
    assert len({(run.arch, run.init, tuple(run.data)) for run in trained.values()}) == len(found.videos) == 1
    assert (found.baseline, found.runs["random_start"].method) == ("random_start", "none")
    if found.execution.budget.unit == "cpu_seconds":
        assert {run.settings.budget.cpu_seconds for run in trained.values()} == {300}
        return
    shape = architecture_named("vit_small_patch16")
    assert trained.pop("cis").settings.steps == CisSettings.PRESETS["published"]["steps"]
    for run in trained.values():
        step = run.settings.step_work(shape).flops / 1e12
        assert 0 <= found.execution.budget.teraflop - run.settings.steps * step < step
        assert run.settings.warmup_steps(390_000 // run.settings.batch_size) < run.settings.steps


def test_the_study_after_distillation_builds_every_post_training_on_the_same_three_starts():
    found = load_study(REPOSITORY / "benchmarks/one_video/after_distill.yaml")
    built = {name: run for name, run in found.runs.items() if run.init == "distilled"}
    assert {run.method for run in built.values()} == {"distill", "neco", "timetuning", "dino", "paka"}
    assert {tuple(run.seeds) for name, run in found.runs.items() if name != "teacher"} == {(0, 1, 2)}
    assert {found.runs["distilled"].settings.steps, *(run.settings.steps for run in built.values())} == {600, 300}
    assert [found.runs[found.runs[name].init].method for name in ("mae_neco", "crw_timetuning")] == ["mae", "crw"]
    whole = load_study(REPOSITORY / "benchmarks/one_video/config.yaml")
    assert {name: found.evaluations[name] for name in whole.evaluations} == whole.evaluations, "numbers of both tables may be compared"


def test_the_small_file_changes_length_and_seeds_of_the_small_study_alone():
    folder = REPOSITORY / "benchmarks/one_video"
    whole, small = (yaml.safe_load((folder / name).read_text()) for name in ("config.yaml", "small.yaml"))
    assert small["runs"].keys() == whole["runs"].keys()
    merged = {
        **whole,
        "results": small["results"],
        "runs": {name: {**run, **small["runs"][name]} for name, run in whole["runs"].items()},
        "execution": {**whole["execution"], **small["execution"]},
    }
    found = parse_study(merged)
    assert [*found.jobs()] == [(name, 0) for name in whole["runs"]]
    assert {run.settings.budget.text for run in found.runs.values() if run.method != "none" and run.settings.budget} == {"30 CPU seconds"}
    assert [name for name, run in found.runs.items() if run.method != "none" and not run.settings.budget] == ["mae_start", "mocov3_start"]


def test_the_file_of_steps_takes_the_place_of_the_budget_alone():
    folder = REPOSITORY / "benchmarks/one_video"
    whole, fixed = (yaml.safe_load((folder / name).read_text()) for name in ("config.yaml", "steps.yaml"))
    trained = {name for name, run in parse_study(whole).runs.items() if run.method != "none" and run.settings.budget}
    assert fixed.keys() == {"execution", "runs"}
    assert fixed["runs"].keys() == trained
    runs = copy.deepcopy(whole["runs"])
    for name, change in fixed["runs"].items():
        runs[name]["settings"] |= change["settings"]
    found = parse_study({**whole, "runs": runs, "execution": {**whole["execution"], **fixed["execution"]}})
    for name in trained:
        settings = found.runs[name].settings
        assert (settings.steps, settings.budget) == (fixed["runs"][name]["settings"]["steps"], None)
        assert settings.warmup_obstacle(settings.steps, 171 // settings.batch_size) is None, name


def test_a_study_with_a_budget_is_read_without_torch(tmp_path):
    write_study(tmp_path, {**copy.deepcopy(STUDY), "execution": {"budget": {"teraflop": 50}}})
    program = "import sys; from densewalk.study.config import load_study; load_study('config.yaml'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0
