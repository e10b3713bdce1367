# What every job asks of a scheduler, whoever says so (a rule, a profile, the command line): memory that grows after a lack of memory
# and after nothing else, and a partition of its own without a GPU. Included last, after all rules.
#
# Two keys of a profile's default-resources decide about it:
#   node_mem_mb    what a node has: no job asks for more
#   cpu_partition  where jobs without a GPU go
from functools import partial

from snakemake.io import apply_wildcards
from snakemake.logging import logger

from densewalk.core.memory import MemoryOfJobs

MEMORY = MemoryOfJobs()


def value_of(resource, wildcards, given):
    """A resource's value for one job, whether it is a value or an expression."""
    return resource.evaluate(wildcards, **given).value


def logs_of(job_rule, wildcards):
    """The logs that an attempt leaves: its own and Slurm's, which keeps those of failed jobs."""
    own = [Path(apply_wildcards(log, wildcards)) for log in job_rule.log]
    folder = getattr(workflow.executor_settings, "logdir", None)
    folder = Path(folder or ".snakemake/slurm_logs") / f"rule_{job_rule.name}"
    slurm = (folder / "_".join(wildcards).replace(os.sep, "_")).glob("*.log")
    return own + sorted(slurm, key=os.path.getmtime)[-1:]


def growing_memory(job_rule, first, node):
    """The function that gives a job's mem_mb. first: of its first attempt. node: what a node has."""

    def mem_mb(wildcards, **given):
        megabytes = value_of(first, wildcards, given)
        if not isinstance(megabytes, int):  # not known before the job's inputs are
            return megabytes
        attempt, most = given["attempt"], value_of(node, wildcards, given)
        job = " ".join([job_rule.name, *wildcards])
        logs = partial(logs_of, job_rule, wildcards)
        asked = MEMORY.asked(job, attempt, megabytes, logs, most)
        if MEMORY.grew_at(job, attempt):
            logger.info(f"{job} was short of memory and now asks for {asked} MB.")
        return asked

    return mem_mb


def partition_without_gpu(job_rule, usual, cpu_partition):
    """The function that gives a job's slurm_partition."""
    gpus = [job_rule.resources.get("gpu"), job_rule.resources.get("gres")]

    def slurm_partition(wildcards, **given):
        needs_gpu = any(value_of(gpu, wildcards, given) for gpu in gpus)
        return value_of(usual if needs_gpu else cpu_partition, wildcards, given)

    return slurm_partition


for each in workflow.rules:
    asked = each.resources
    if "mem_mb" in asked:
        asked["mem_mb"] = growing_memory(
            each, asked["mem_mb"], asked.get("node_mem_mb")
        )
    chosen = workflow.resource_settings.overwrite_resources.get(each.name, {})
    if "cpu_partition" in asked and "slurm_partition" not in chosen:
        asked["slurm_partition"] = partition_without_gpu(
            each, asked.get("slurm_partition"), asked["cpu_partition"]
        )
