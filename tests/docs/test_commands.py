"""Every command line that the documentation shows is run: here on a tiny study, or by a test that is named here, or the reason stands here.

A command line is a line of an indented block or of a fenced block without a language, one in code type that begins with a program's
name, or one in a comment of config.yaml, the Snakefile and the profiles. A new one must be added to one of the three tables.
"""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from snakemake.cli import get_argument_parser

from densewalk.__main__ import main
from densewalk.cli.parser import parse, parser
from densewalk.data.video.encode import write_video
from tests.fixtures import snakemake_server
from tests.fixtures.documents import COMMENTED, PAGES, code_words, command_lines, is_mention
from tests.fixtures.pages import write_study as write_results
from tests.fixtures.studies import REPOSITORY, TINY, write_study

# densewalk: run as it stands, in a study's folder. Exit status 1 of `diff`: there are differences.
COMMANDS = {
    "densewalk check config.yaml": 0,
    "densewalk check config.yaml --resolved": 0,
    "densewalk check studies/dora.yaml": 0,
    "densewalk status config.yaml": 0,
    "densewalk plan config.yaml --gpu h100": 0,
    "densewalk plan studies/one_video.yaml --gpu h100": 0,
    "densewalk report config.yaml": 0,
    "densewalk why results/dora/s0/davis.json": 0,
    "densewalk stale config.yaml": 0,
    "densewalk stale config.yaml --rerun": 0,
    "densewalk diff before/results after/results": 1,
    "densewalk diff before/results after/results --csv changes.csv": 1,
    "densewalk tables --table davis --out davis.csv results": 0,
    "densewalk tables --table gain --out gain.csv results": 0,
    "densewalk tables --table all --out all.csv results": 0,
    "densewalk add-video data/lisbon.mp4": 0,
    "densewalk add-video data/lisbon.mp4 --out lisbon/config.yaml": 0,
    "densewalk add-video walk.mp4 --out study/config.yaml": 0,
}

# Snakemake: a dry run, in a copy of the repository with a small study
DRY_RUNS = (
    "snakemake -n all",
    "snakemake -n all --quiet",
    "snakemake --cores 8 all",
    "snakemake --profile slurm all",
    "snakemake --profile slurm -n all",
    "snakemake --profile slurm --unlock",
    "snakemake --profile workflow/profiles/local all",
    "snakemake all --profile slurm --set-resources train_dora:gpu=8 --set-threads train_dora=64",
    "snakemake --directory my-study --cores 8 all",
    "snakemake -n all --configfile studies/dora.yaml",
    "snakemake all --profile slurm --configfile studies/dora.yaml",
    "snakemake studies/dora/tables/davis.csv --profile slurm --configfile studies/dora.yaml",
    "snakemake --directory study -n all",
    "snakemake --directory demo -n all --quiet",
    "snakemake --cores 1 --force results/tables/coco.csv",
    "snakemake --cores 1 fetch",
    "snakemake --cores 1 stale",
    "snakemake --cores 1 results/data/sets/voc.json",
    "snakemake --directory demo --cores 2",
    "snakemake --directory benchmarks/frozen_real --cores 1 all",
    "snakemake --directory benchmarks/davis_floor --cores 1 all",
    "snakemake --directory benchmarks/one_video --cores 1 all",
    (
        "snakemake --directory benchmarks/one_video --cores 1"
        " --configfile benchmarks/one_video/config.yaml benchmarks/one_video/small.yaml -- all"
    ),
    "snakemake --directory benchmarks/one_video --cores 1 --configfile benchmarks/one_video/after_distill.yaml -- all",
    (
        "snakemake --directory benchmarks/one_video --cores 1"
        " --configfile benchmarks/one_video/config.yaml benchmarks/one_video/pedestrians.yaml -- all"
    ),
    (
        "snakemake --directory benchmarks/one_video --cores 1"
        " --configfile benchmarks/one_video/config.yaml benchmarks/one_video/steps.yaml --config results=results/pedestrians"
        """ 'videos={"video": {"source": "data/videos/vtest_pedestrians_79s.mp4"}}' -- all"""
    ),
)

# make: its recipe, without running it. .ci/run runs the four whole.
RECIPES = (
    "make demo",
    "make demo VIDEO=my_walk.mp4",
    "make test",
    "make test-slurm",
    "make lint",
    "make format",
    "make install",
    "make install PYTHON=python3.12",
    "make lock",
    "make docs",
)

TESTED = {
    "densewalk add-video walk.mp4 --masks walk_masks --out study/config.yaml": "jobs/test_add_video.py::test_masks_become_an_evaluation",
    (
        "densewalk add-video walk.mp4 --masks walk_masks --ignore 11 --out study/config.yaml"
    ): "jobs/test_add_video.py::test_masks_become_an_evaluation",
    (
        "densewalk add-video frames --fps 25 --masks masks --ignore 11 --out study/config.yaml"
    ): "jobs/test_add_video.py::test_frames_and_masks_as_two_folders",
    "densewalk add-video frames --fps 25": "jobs/test_add_video.py::test_a_folder_of_frames_is_named_as_what_it_is",
    (
        "densewalk explain incontext_paper incontext_released --run dora_venice"
    ): "jobs/test_explain.py::test_a_ladder_sums_to_the_difference_computes_features_once_and_is_not_scored_twice",
    (
        "densewalk explain incontext_paper incontext_released --run dora_venice --dry-run"
    ): "jobs/test_explain.py::test_a_dry_run_scores_nothing",
    "densewalk explain ade20k_linear linear_segmentation --run dora_venice --pairs 0": (
        "jobs/test_explain_linear.py::test_one_order_from_the_toolbox_s_record_to_the_probe_s_by_shared_features"
    ),
    "densewalk doctor --config study/config.yaml": "jobs/test_doctor.py::test_paths_are_the_study_s_wherever_doctor_is_called",
    "densewalk tables --table gain --out gain.csv --baseline random_start results": "results/test_gain.py::test_the_command_writes_it",
    "densewalk tables --columns run,J,F --pivot dataset --format latex": "results/test_paper.py::test_it_is_printed_or_written",
    'densewalk tables --columns "run,incontext:mIoU,davis:J&F" --format latex': "results/test_paper.py::test_it_is_printed_or_written",
    "densewalk doctor --config config.yaml": "jobs/test_doctor.py::test_checkpoints_are_checked_and_loaded_and_nothing_in_them_is_executed",
    "densewalk doctor --config studies/dora.yaml": "jobs/test_doctor.py::test_a_study_of_the_papers_is_examined_for_exactly_what_it_needs",
    "densewalk bench dinov2_vits14 dino_vits16 --data /datasets": "jobs/test_bench.py::test_a_dry_run_says_what_would_run",
    "densewalk fetch --config demo/config.yaml": "workflow/test_workflow.py::test_the_demo_s_network_comes_from_an_installed_package",
    "densewalk fetch --config config.yaml": "data/test_download.py::test_the_command_fetches_what_can_be_fetched_and_says_what_not",
    "densewalk data coco": "jobs/test_fetch.py::test_every_set_s_own_check_and_folder_lead_to_its_command",
    "densewalk data navi": "jobs/test_fetch.py::test_every_set_s_own_check_and_folder_lead_to_its_command",
    "densewalk data voc": "jobs/test_fetch.py::test_a_set_is_downloaded_unpacked_and_counted",
    "densewalk train ... --gpus 2": "training/test_launch.py::test_one_node_is_torchrun",
    "densewalk evaluate ... --gpus 2": "evaluations/test_mmlab_processes.py::test_a_job_in_two_processes_writes_one_record",
    "densewalk evaluate ... --gpus 4": "jobs/test_evaluate_processes.py::test_the_command_starts_two_processes_whose_result_is_that_of_one",
    "snakemake --cores 8 all --forcerun $(cat results/stale.txt)": "workflow/test_stale.py::test_only_stale_outputs_are_made_again",
    (
        "densewalk tables --table all --out all.csv --plan results/specs/plan-HASH.json"
    ): "workflow/test_workflow.py::test_one_rule_regenerates_one_table",
    "densewalk compare dino:davis neco:davis": "results/test_pairs.py::test_the_command",
    "densewalk compare dino:davis neco:davis timet:davis": "results/test_pairs.py::test_rows_are_compared_over_units_and_over_seeds",
    "densewalk compare dino:davis neco:davis --metric J --csv j.csv": "results/test_pairs.py::test_the_command",
    "densewalk compare before.json after.json": "results/test_pairs.py::test_right_and_wrong_answers_are_counted",
    (
        "python -m benchmarks.forwarded_labels video.mp4 masks --classes 12 --ignore 11"
        " --backbones random/vit_micro_patch16 backbone.safetensors"
    ): "benchmarks/test_forwarded_labels.py::test_the_program_reads_a_video_and_its_masks",
    "DENSEWALK_PROFILE=profiles snakemake --cores 2 results/tables/davis.csv": (
        "workflow/test_forkserver.py::test_forked_jobs_make_what_a_process_of_its_own_makes_also_while_it_is_profiled"
    ),
    "python -m benchmarks.profiles profiles": "cli/test_profiling.py::test_the_longest_jobs_come_first_with_the_functions_that_took_most",
    "python -m benchmarks.interval_coverage": "benchmarks/test_interval_coverage.py::test_intervals_of_accuracies_hold_the_truth",
    "densewalk rename config.yaml OLD NEW": "workflow/test_changes.py::test_renamed_runs_evaluations_and_videos_keep_their_results",
    "snakemake --report study.zip": "workflow/test_workflow.py::test_snakemake_s_own_report_is_made_without_a_network_and_has_captions",
    "python benchmarks/parity.py [FOLDER]": "benchmarks/test_parity.py::test_a_folder_with_other_cases_is_compared",
    "make gpu-check": "benchmarks/test_gpu.py::test_make_runs_it_with_any_python",
    "make gpu-check PYTHON=python3.12": "benchmarks/test_gpu.py::test_make_runs_it_with_any_python",
    "python -m benchmarks.gpu --rehearse": "benchmarks/test_gpu.py::test_every_check_runs_on_a_cpu",
    "python -m benchmarks.gpu --only sorting methods": "benchmarks/test_gpu.py::test_the_first_failure_ends_it_with_status_1",
    "python -m benchmarks.gpu --keep-going": "benchmarks/test_gpu.py::test_the_first_failure_ends_it_with_status_1",
    "tensorboard --logdir results/state": "training/test_tensorboard.py::test_event_files_hold_the_points_of_the_curve",
}

NOT_RUN = {
    "source .venv/bin/activate": "make install makes it",
    "python3.11 -m venv .venv": "a line of make install, see test_the_environment_is_that_of_make_install",
    ".venv/bin/pip install --require-hashes -r requirements.lock": "the same",
    ".venv/bin/pip install --require-hashes --no-deps -r requirements-mm.lock": "the same",
    ".venv/bin/pip install --no-deps --no-build-isolation -e .": "the same",
    "uv venv -p 3.11 .venv": "a download",
    "uv pip install --torch-backend cpu -r requirements.txt -r requirements-dev.txt": "a download",
    "uv pip install --no-deps -r requirements-mm.txt": "a download",
    "uv pip install --no-deps -e .": "the same",
    "touch .venv/.installed": "a file of make install",
    "cd demo": "a folder",
    "cd ..": "a folder",
    "source ../.venv/bin/activate": "make install makes it",
    "densewalk compare random_start:davis dora:davis": "needs the demo's results; `densewalk compare dino:davis neco:davis` is tested",
    "pip check": "looks at the whole environment, in which tests may run from another checkout",
    "pip install yt-dlp": "a download",
    "snakemake --sdm conda --cores 8 all": "conda downloads the environment",
    '.venv/bin/pytest -m "not slow"': "these tests themselves",
    ".venv/bin/pytest tests/ops/test_soft_sort.py": "these tests themselves",
    ".venv/bin/pytest -m gpu": "these tests themselves, on a GPU",
    "DENSEWALK_FUZZ=20 .venv/bin/pytest tests/fuzz": "these tests themselves",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth": "torch's own program",
    "python -m benchmarks.memory": "three minutes; tests/benchmarks counts blocks, and all methods on nano networks",
    "python -m benchmarks.slurm_entries": "minutes; it starts a Slurm, as tests/workflow/test_slurm_joint.py does",
    "python -m benchmarks.feeding": "a minute; tests/benchmarks runs it on one sample",
    "python -m benchmarks.colors": "half a minute; tests/benchmarks runs it on small images",
    "python -m benchmarks.growth": "minutes; it writes 1600 records",
    "python -m benchmarks.all --out docs/performance.md": "minutes; tests/benchmarks runs it at its smallest size",
    "ln -s FOLDER benchmarks/frozen_real/data": "a folder of the reader's",
    "ln -s FOLDER benchmarks/davis_floor/data": "a folder of the reader's",
    "ln -s FOLDER benchmarks/one_video/data": "a folder of the reader's",
    "densewalk fetch --config benchmarks/one_video/config.yaml": "a download",
    "tar -C data/coco -cf data/coco/train2017.tar train2017": "tar's own program; data/storage/test_archives.py makes such archives",
    "squeue --me -o '%i %T %k'": "needs a cluster",
}


def test_every_documented_command_is_run_or_says_why_not():
    documented = command_lines()
    listed = [*COMMANDS, *DRY_RUNS, *RECIPES, *TESTED, *NOT_RUN]
    assert len(listed) == len(set(listed))
    unknown = {command: pages for command, pages in documented.items() if command not in listed}
    assert not unknown, "add them to a table of this file"
    assert not set(listed) - set(documented), "no page shows these any more"


@pytest.mark.parametrize("test", TESTED.values())
def test_the_named_tests_exist(test):
    file, name = test.split("::")
    assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text()


@pytest.mark.parametrize("command", [command for command in command_lines() if command.startswith("densewalk ")])
def test_options_and_arguments_are_those_of_the_command_line(command):
    words = shlex.split(command)[1:]
    if "..." in words:
        subparser = parser()._subparsers._group_actions[0].choices[words[0]]  # type: ignore[union-attr]
        assert {word for word in words if word.startswith("--")} <= {text for a in subparser._actions for text in a.option_strings}
    else:
        parse(words)


def test_commands_that_are_only_named_exist():
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    named = {word.split()[1] for page in PAGES for word in code_words(page) if is_mention(word)}
    assert named <= set(commands)


@pytest.mark.parametrize("command", [command for command in command_lines() if command.startswith("snakemake ")])
def test_snakemake_knows_the_options_and_how_many_cores_it_may_use(command):
    """Without --cores or a profile that has them it refuses to run anything here, which a dry run does not show."""
    args = get_argument_parser().parse_args(shlex.split(command)[1:])
    assert args.dryrun or args.report or args.unlock or args.profile or args.cores


# -- run here ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study's folder: configuration, videos, results, and the results of two earlier studies."""
    folder = write_study(tmp_path_factory.mktemp("study"), TINY)
    for results in ("results", "before/results", "after/results"):
        write_results(folder / results)
    record = folder / "after/results/walk/s0/incontext_voc.json"
    record.write_text(record.read_text().replace("40.0", "41.0"))
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), np.uint8)
    (folder / "data").mkdir()
    (folder / "studies").mkdir()
    for name in ("dora.yaml", "one_video.yaml"):
        shutil.copy2(REPOSITORY / "studies" / name, folder / "studies")
    for name in ("data/lisbon.mp4", "walk.mp4"):
        write_video(folder / name, list(frames), 10.0)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(shlex.split(command)[1:]) == COMMANDS[command], capsys.readouterr()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository whose study is small and has every table that the documentation names."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("src", "workflow", "profiles", "slurm", "envs", "benchmarks", "demo", "studies"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "results", "data", ".snakemake")
        # the packages of densewalk that are called so
        shutil.copytree(REPOSITORY / name, clone / name, ignore=None if name == "src" else ignored)
    shutil.copy2(REPOSITORY / "Snakefile", clone)
    study = copy.deepcopy(TINY)
    study["evaluations"]["coco"] = {"protocol": "coco", "settings": {"root": "data/coco", "dataset": "COCO"}}
    for place in (clone, clone / "study", clone / "my-study"):
        write_study(place, study)
    return clone


def dry_run(command: str, clone: Path) -> str:
    """What Snakemake plans; a command that plans nothing is run as it is."""
    words = shlex.split(command)[1:]
    args = get_argument_parser().parse_args(words)
    more = [] if args.dryrun or args.unlock else ["-n"]
    environment = {**os.environ, "PYTHONPATH": str(clone / "src")}
    done = snakemake_server.dry_run([*more, *words], clone, environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.workflow
@pytest.mark.parametrize("command", DRY_RUNS)
def test_snakemake_plans_it(command, clone):
    assert "rule " in dry_run(command, clone) or "--unlock" in command


def recipe(command: str, *options: str) -> str:
    """What make would run."""
    done = subprocess.run(["make", "-n", *options, *shlex.split(command)[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", RECIPES)
def test_make_has_a_recipe(command):
    assert ".venv/bin/" in recipe(command, "--always-make")


@pytest.mark.slow
@pytest.mark.workflow
def test_the_demo_takes_a_video(clone):
    (line,) = re.findall(r"^\.venv/bin/(snakemake .*)$", recipe("make demo VIDEO=my_walk.mp4"), flags=re.MULTILINE)
    words = shell_words(line, "my_walk.mp4")
    assert "rule prepare_video:" in dry_run(shlex.join(words), clone)


@pytest.mark.parametrize("name", ["my walk.mp4", "it's.mp4", 'a"b.mp4', "a;b&c.mp4", "ü.mp4"])
def test_the_demo_takes_a_video_of_any_name(name):
    (line,) = re.findall(r"^\.venv/bin/(snakemake .*)$", recipe(f"make demo {shlex.quote(f'VIDEO={name}')}"), flags=re.MULTILINE)
    words = shell_words(line, name)
    (given,) = [word for word in words if word.startswith("videos=")]
    assert json.loads(given.removeprefix("videos=")) == {"walk": {"source": str(REPOSITORY / name)}}


def shell_words(line: str, video: str) -> list[str]:
    """The words that a shell makes of a line of the recipe, whose commands are those of this environment."""
    line = line.replace(".venv/bin/python", shlex.quote(sys.executable))
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {line}"],
        cwd=REPOSITORY,
        env={**os.environ, "VIDEO": video},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\0")[:-1]


def test_the_environment_is_that_of_make_install():
    lines = recipe("make install", "--always-make").splitlines()
    for command in NOT_RUN:
        if "/pip install" in command:
            assert command in lines


def test_the_files_with_commands_in_comments_have_some():
    pages = {page for pages in command_lines().values() for page in pages}
    assert {"config.yaml", "slurm/profile.yaml"} <= pages & {path.relative_to(REPOSITORY).as_posix() for path in COMMENTED}


@pytest.mark.parametrize("command", ["make demo", "make test", "make lint", "make test-slurm"])
def test_these_are_run_whole_before_a_release(command):
    assert re.search(rf"^{command}\b", (REPOSITORY / ".ci/run").read_text(), flags=re.MULTILINE)
