# What the rules ask of the study. Torch-free: every job of a cluster run parses this file again.
import json
import os
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from densewalk.core.errors import UserError
from densewalk.core.machine import require_place
from densewalk.core.text.quoting import for_shell, for_snakemake
from densewalk.core.memory import HUGE_PAGES
from densewalk.core.resources import Resources as Asked
from densewalk.core.typed_files import write_model
from densewalk.study import registry
from densewalk.study.amounts import require_amounts
from densewalk.study.config import parse_study
from densewalk.study.upkeep.former import take_over_states

try:
    STUDY = parse_study(config)
except UserError as error:
    raise WorkflowError(str(error))

# jobs use the Python that runs Snakemake, whether or not its environment is activated
bin_folder = for_snakemake(for_shell(str(Path(sys.executable).parent)))
shell.prefix(f"export PATH={bin_folder}:$PATH; ")

# the driver outlives a controller that is away (see slurm/bin/sacct)
if (patient := f"{workflow.basedir}/slurm/bin") not in (searched := os.get_exec_path()):
    os.environ.update(PATH=os.pathsep.join([patient, *searched]))

# Slurm warns every process of a job before the time limit; the one that works saves, and Snakemake lives to report it
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# how jobs are run goes by the environment, not by params: changing it reruns nothing
os.environ.update(DENSEWALK_EXECUTION=STUDY.execution.model_dump_json())

os.environ.setdefault(*HUGE_PAGES)


wildcard_constraints:
    run="|".join(STUDY.runs),
    seed=r"\d+",
    evaluation="|".join(STUDY.evaluations) or "(?!)",


# what jobs and the page must know, as files; written when a run of the workflow starts, not by a dry run
RESULTS = Path(STUDY.results)
try:
    require_place(Path(), RESULTS)
    PLAN = STUDY.plan()
except UserError as error:  # no network of the user's own there
    raise WorkflowError(str(error))
PLAN_FILE = f"{RESULTS}/specs/plan-{PLAN.hash}.json"


pathvars:
    results=STUDY.results,


# the tables' records are in the plan: ten thousand of them are too long for a command line
os.environ.update(DENSEWALK_PLAN=PLAN_FILE)


include: "changes.smk"


try:
    if DECIDES:
        from densewalk.data.video.stated import stated_length

        require_amounts(STUDY, RESULTS, stated_length, CHANGES)
except UserError as error:  # too few samples
    raise WorkflowError(str(error))


include: "driver.smk"


onstart:
    try:
        write_model(PLAN_FILE, PLAN)
        for spec in STUDY.specifications():
            spec.write(RESULTS)
        take_over_states(STUDY, RESULTS)
        say_former_names()
        submit_by_priority(workflow.scheduler)
        share_entries(workflow.scheduler)
        serve_local_jobs()
    except UserError as error:  # a full disk, a file in a folder's place
        raise WorkflowError(str(error))


def only(names):
    """A wildcard constraint for exactly these names; an empty one would mean any."""
    return "|".join(names) or "(?!)"


def runs_of(method):
    return [name for name, run in STUDY.runs.items() if run.method == method]


def evaluations_of(protocol):
    return [name for name, e in STUDY.evaluations.items() if e.protocol == protocol]


# -- resources: of a job at the scale of the papers; what a scheduler is asked for then follows from scheduler.smk ----------

gpus = STUDY.execution.gpus_of
threads_of = STUDY.execution.cpus_of
# 9 CPU hours for three hours of 4K in AV1
TRANSCODING = Asked(gpu=0, threads=8, mem_mb=16_000, runtime=1440)
CURATION = Asked(threads=8, mem_mb=32_000, runtime=240)
FEATURES = Asked(threads=8, mem_mb=16_000, runtime=30)


# -- data ----------------------------------------------------------------------------------------------------------------


def settings_of(kind):
    """The function that gives a video's or an image folder's settings as JSON."""
    return lambda wildcards: getattr(STUDY, kind)[wildcards.name].model_dump_json()


def generated(path):
    """What a path waits for: the generator's receipt if it lies in the generated folder, else nothing."""
    inside = STUDY.synthetic and Path(path).is_relative_to(STUDY.synthetic.root)
    return [f"{STUDY.synthetic.root}/receipt.json"] if inside else []


def generator_needs(wildcards):
    """Nothing; but it is asked before the generator runs, which other settings make run again."""
    is_settled(f"{STUDY.synthetic.root}/receipt.json", CHANGES.of_generated())
    return []


@one_line_errors
def video_needs(wildcards):
    name = wildcards.name
    return [] if video_is_settled(name) else generated(STUDY.videos[name].source)


@one_line_errors
def images_need(wildcards):
    name = wildcards.name
    return [] if images_are_settled(name) else generated(STUDY.images[name].source)


def receipts(names):
    return [f"{RESULTS}/data/{name}.json" for name in names]


# -- specifications ------------------------------------------------------------------------------------------------------


def run_spec(wildcards):
    return STUDY.run_spec(wildcards.run, int(wildcards.seed))


def curation_spec(wildcards):
    return STUDY.curation_spec(wildcards.name)


def evaluation_spec(wildcards):
    return STUDY.evaluation_spec(
        wildcards.run, int(wildcards.seed), wildcards.evaluation
    )


def file_of(spec):
    """A rule's parameter: the job's specification."""
    return lambda wildcards: str(spec(wildcards).path(RESULTS))


def state_of(spec):
    """Not an output: Snakemake deletes the outputs of failed jobs."""
    return lambda wildcards: str(spec(wildcards).state(RESULTS))


def path_of(origin):
    if origin.kind == "run":
        return f"{RESULTS}/{origin.name}/s{origin.seed}/backbone.safetensors"
    return origin.file


def waits_for(origin):
    """A checkpoint that is not there yet is reported by the job itself."""
    if origin.kind == "checkpoint" and not os.path.isfile(origin.file):
        return []
    return [] if origin.kind == "random" else path_of(origin)


@one_line_errors
def run_init(wildcards):
    return [] if run_is_settled(wildcards) else waits_for(run_spec(wildcards).init)


def init_option(wildcards):
    init = run_spec(wildcards).init
    return "" if init.kind == "random" else f"--init={for_shell(path_of(init))}"


@one_line_errors
def run_teachers(wildcards):
    teachers = [] if run_is_settled(wildcards) else run_spec(wildcards).teachers or []
    return [path for one in teachers for path in [waits_for(one.backbone)] if path]


def teacher_options(wildcards):
    teachers = run_spec(wildcards).teachers or []
    return " ".join(f"--teacher={for_shell(path_of(one.backbone))}" for one in teachers)


def run_receipts(wildcards):
    return receipts(run_spec(wildcards).data or [])


@one_line_errors
def run_data(wildcards):
    return [] if run_is_settled(wildcards) else run_receipts(wildcards)


@one_line_errors
def curation_backbone(wildcards):
    settled = curation_is_settled(wildcards.name)
    return [] if settled else waits_for(curation_spec(wildcards).backbone)


def curation_backbone_path(wildcards):
    return path_of(curation_spec(wildcards).backbone)


def curation_receipts(wildcards):
    return receipts(STUDY.curations[wildcards.name].data)


@one_line_errors
def curation_data(wildcards):
    settled = curation_is_settled(wildcards.name)
    return [] if settled else curation_receipts(wildcards)


@one_line_errors
def curation_references(wildcards):
    retrieve = STUDY.curations[wildcards.name].retrieve
    if retrieve is None or curation_is_settled(wildcards.name):
        return []
    return generated(retrieve.source)


def is_result(run, seed, evaluation):
    return os.path.isfile(f"{RESULTS}/{run}/s{seed}/{evaluation}.json")


def features_option(wildcards):
    """The features that this job may find, and those that it keeps for jobs without a result so far."""
    shared = STUDY.shared_features(
        wildcards.run, int(wildcards.seed), wildcards.evaluation
    )
    kept = [name for name in shared if not all(is_result(*j) for j in shared[name])]
    read = f"--read-features {' '.join(shared)}" if shared else ""
    return f"{read} --keep-features {' '.join(kept)}" if kept else read


def backbone_path(wildcards):
    return backbone_of(wildcards.run, wildcards.seed)


@one_line_errors
def evaluation_backbone(wildcards):
    return [] if result_is_settled(wildcards) else backbone_path(wildcards)


@one_line_errors
def evaluation_data(wildcards):
    if result_is_settled(wildcards):
        return []
    return generated(STUDY.evaluations[wildcards.evaluation].settings.root)


def features_receipts(wildcards):
    return receipts(STUDY.picture_sources())


@one_line_errors
def features_backbone(wildcards):
    return [] if features_are_settled(wildcards) else backbone_path(wildcards)


@one_line_errors
def features_init(wildcards):
    settled = features_are_settled(wildcards)
    return [] if settled else waits_for(run_spec(wildcards).init)


@one_line_errors
def features_data(wildcards):
    return [] if features_are_settled(wildcards) else features_receipts(wildcards)


# -- tables --------------------------------------------------------------------------------------------------------------


@one_line_errors
def table_records(wildcards):
    """The result records a table is made of, in the study's order."""
    table = wildcards.table
    is_written_for_this_plan(table, f"{RESULTS}/tables/{table}.csv")
    return [
        f"{RESULTS}/{run}/s{seed}/{evaluation}.json"
        for run, seed, evaluation in STUDY.evaluation_jobs()
        if wildcards.table
        in ("all", "cost", "gain", STUDY.evaluations[evaluation].settings.TABLE)
    ]


def page_features(wildcards):
    is_written_for_this_plan("report", f"{RESULTS}/report.html")
    return features_wanted


# all that a study has: not the tables alone, since these stay when a record is deleted
records_wanted = [
    *(
        f"{RESULTS}/{run}/s{seed}/{name}"
        for run, seed in STUDY.jobs()
        for name in ("backbone.safetensors", "run.json")
    ),
    *(
        f"{RESULTS}/{run}/s{seed}/{evaluation}.json"
        for run, seed, evaluation in STUDY.evaluation_jobs()
    ),
]


# pictures of each run's first seed
features_wanted = (
    [f"{RESULTS}/{run}/s{r.seeds[0]}/features.json" for run, r in STUDY.runs.items()]
    if STUDY.picture_sources()
    else []
)
