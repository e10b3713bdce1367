# What the rules ask of the study. Torch-free: every job of a cluster run parses this file again.
import json
import os
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from densewalk.core.errors import UserError
from densewalk.core.text.quoting import for_shell, for_snakemake
from densewalk.core.resources import Resources as Asked
from densewalk.core.typed_files import write_model
from densewalk.data.receipts import VideoReceipt, read_receipt
from densewalk.results.stale import checkpoint_content
from densewalk.study import registry
from densewalk.study.config import parse_study

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


wildcard_constraints:
    run="|".join(STUDY.runs),
    seed=r"\d+",
    evaluation="|".join(STUDY.evaluations) or "(?!)",


# what jobs and the page must know, as files; written when a run of the workflow starts, not by a dry run
RESULTS = Path(STUDY.results)
PLAN = STUDY.plan()
PLAN_FILE = f"{RESULTS}/specs/plan-{PLAN.hash}.json"


pathvars:
    results=STUDY.results,


# the tables' records are in the plan: ten thousand of them are too long for a command line
os.environ.update(DENSEWALK_PLAN=PLAN_FILE)


onstart:
    try:
        write_model(PLAN_FILE, PLAN)
        for spec in STUDY.specifications():
            spec.write(RESULTS)
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


def video_needs(wildcards):
    return generated(STUDY.videos[wildcards.name].source)


def images_need(wildcards):
    return generated(STUDY.images[wildcards.name].source)


def source_stamp(wildcards):
    """Size and time of a video file. One that was removed after its transcoding keeps the stamp of then, so that freeing
    the disk of a 100 GB original reruns nothing, while replacing it reruns everything made from it.
    """
    source = Path(STUDY.videos[wildcards.name].source)
    path = RESULTS / f"data/{wildcards.name}.json"
    if source.is_file():
        return f"{source.stat().st_size} bytes, {source.stat().st_mtime_ns}"
    if not path.is_file():
        return "none"
    try:
        receipt = read_receipt(path)
    except UserError as error:
        raise WorkflowError(str(error))
    return receipt.source_stamp if isinstance(receipt, VideoReceipt) else "none"


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
    """A rule's parameter: the file's name holds the hash, so that a changed setting reruns what depends on it. Text, because
    Snakemake does not remember other kinds of parameters."""
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


class Forgotten:
    """The value of a parameter that Snakemake does not remember."""


def init_content(wildcards):
    """The sha256 of the checkpoint that a run starts from: another file in its place reruns it, even one with an older time."""
    init = run_spec(wildcards).init
    if init.kind != "checkpoint":
        return Forgotten()
    record = RESULTS / wildcards.run / f"s{wildcards.seed}" / "run.json"
    return checkpoint_content(init.file, record) or Forgotten()


def run_init(wildcards):
    """A checkpoint whose content is remembered is not older or newer than anything: its content decides."""
    found = waits_for(run_spec(wildcards).init)
    return (
        ancient(found) if found and isinstance(init_content(wildcards), str) else found
    )


def init_option(wildcards):
    init = run_spec(wildcards).init
    return "" if init.kind == "random" else f"--init={for_shell(path_of(init))}"


def run_data(wildcards):
    return receipts(run_spec(wildcards).data or [])


def curation_backbone(wildcards):
    return waits_for(curation_spec(wildcards).backbone)


def curation_backbone_path(wildcards):
    return path_of(curation_spec(wildcards).backbone)


def curation_data(wildcards):
    return receipts(STUDY.curations[wildcards.name].data)


def curation_references(wildcards):
    retrieve = STUDY.curations[wildcards.name].retrieve
    return generated(retrieve.source) if retrieve else []


def evaluation_data(wildcards):
    return generated(STUDY.evaluations[wildcards.evaluation].settings.root)


# -- tables --------------------------------------------------------------------------------------------------------------


def table_records(wildcards):
    """The result records a table is made of, in the study's order."""
    return [
        f"{RESULTS}/{run}/s{seed}/{evaluation}.json"
        for run, seed, evaluation in STUDY.evaluation_jobs()
        if wildcards.table
        in ("all", "cost", "gain", STUDY.evaluations[evaluation].settings.TABLE)
    ]


# pictures of each run's first seed
features_wanted = (
    [f"{RESULTS}/{run}/s{r.seeds[0]}/features.json" for run, r in STUDY.runs.items()]
    if STUDY.picture_sources()
    else []
)
