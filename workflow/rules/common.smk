# What the rules ask of the study. Torch-free: every job of a cluster run parses this file again.
import json
import os
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.data.receipts import VideoReceipt, read_receipt
from densewalk.study.config import parse_study

try:
    STUDY = parse_study(config)
except UserError as error:
    raise WorkflowError(str(error))

# jobs use the Python that runs Snakemake, whether or not its environment is activated
shell.prefix(f"export PATH={Path(sys.executable).parent}:$PATH; ")

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


def only(names):
    """A wildcard constraint for exactly these names; an empty one would mean any."""
    return "|".join(names) or "(?!)"


def runs_of(method):
    return [name for name, run in STUDY.runs.items() if run.method == method]


def evaluations_of(protocol):
    return [name for name, e in STUDY.evaluations.items() if e.protocol == protocol]


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
    path = Path(f"results/data/{wildcards.name}.json")
    if source.is_file():
        return f"{source.stat().st_size} bytes, {source.stat().st_mtime_ns}"
    if not path.is_file():
        return "none"
    try:
        receipt = read_receipt(path)
    except UserError as error:
        raise WorkflowError(str(error))
    return receipt.source_stamp if isinstance(receipt, VideoReceipt) else "none"


def run_spec(wildcards):
    return json.dumps(STUDY.run_spec(wildcards.run, int(wildcards.seed)))


def run_state(wildcards):
    """Keyed by the configuration: a changed run starts afresh, an interrupted one resumes. Not an output: Snakemake
    deletes the outputs of failed jobs."""
    spec = STUDY.run_spec(wildcards.run, int(wildcards.seed))
    return f"results/state/{wildcards.run}-s{wildcards.seed}-{config_hash(spec)}"


def file_of(backbone):
    """What a job waits for; a checkpoint that is not there yet is reported by the job itself."""
    if backbone["kind"] == "checkpoint" and not os.path.isfile(backbone["file"]):
        return []
    return [] if backbone["kind"] == "random" else path_of(backbone)


def path_of(backbone):
    if backbone["kind"] == "run":
        return f"results/{backbone['name']}/s{backbone['seed']}/backbone.safetensors"
    return backbone["file"]


def run_init(wildcards):
    return file_of(STUDY.run_spec(wildcards.run, int(wildcards.seed))["init"])


def init_option(wildcards):
    init = STUDY.run_spec(wildcards.run, int(wildcards.seed))["init"]
    return "" if init["kind"] == "random" else f"--init {path_of(init)}"


def curation_spec(wildcards):
    return json.dumps(STUDY.curation_spec(wildcards.name))


def curation_backbone(wildcards):
    return file_of(STUDY.curation_spec(wildcards.name)["backbone"])


def curation_backbone_path(wildcards):
    return path_of(STUDY.curation_spec(wildcards.name)["backbone"])


def curation_data(wildcards):
    return [
        f"results/data/{name}.json" for name in STUDY.curations[wildcards.name].data
    ]


def curation_references(wildcards):
    retrieve = STUDY.curations[wildcards.name].retrieve
    return generated(retrieve.source) if retrieve else []


def run_data(wildcards):
    return [
        f"results/data/{name}.json"
        for name in getattr(STUDY.runs[wildcards.run], "data", [])
    ]


def evaluation_spec(wildcards):
    return json.dumps(
        STUDY.evaluation_spec(wildcards.run, int(wildcards.seed), wildcards.evaluation)
    )


def evaluation_state(wildcards):
    spec = STUDY.evaluation_spec(
        wildcards.run, int(wildcards.seed), wildcards.evaluation
    )
    return f"results/state/{wildcards.run}-s{wildcards.seed}-{wildcards.evaluation}-{config_hash(spec)}"


def evaluation_data(wildcards):
    return generated(STUDY.evaluations[wildcards.evaluation].settings.root)


def records_of(table):
    """The result records a table is made of, in the study's order."""
    return [
        f"results/{run}/s{seed}/{evaluation}.json"
        for run, seed, evaluation in STUDY.evaluation_jobs()
        if table in ("all", "cost")
        or STUDY.evaluations[evaluation].settings.TASK == table
    ]


def table_records(wildcards):
    return records_of(wildcards.table)


# pictures of each run's first seed
features_wanted = (
    [f"results/{run}/s{r.seeds[0]}/features.json" for run, r in STUDY.runs.items()]
    if STUDY.picture_sources()
    else []
)
