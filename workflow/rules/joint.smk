# Evaluations of one backbone share entries of Slurm's queue, as long as these ask for no more minutes than `joint_minutes` of a profile's
# default-resources: docs/slurm.md. Included after all rules.
import tempfile

from densewalk.cli.joint.driver import Joint
from densewalk.cli.joint.entries import Entry, limit_of, member_of
from densewalk.cli.joint.plan import JointPlan, write_plan
from densewalk.core.text.quoting import for_double_quotes
from densewalk.study.schedule.order import asks_as_a_training

# not those that ask for as much time as a training: they train heads
LIGHT_RULES = {"features"} | {
    f"evaluate_{protocol}"
    for protocol, settings in registry.evaluations().items()
    if not asks_as_a_training(settings)
}


def has_usual_tmpdir(job_rule):
    """False if its folder for temporary files was set by hand: Snakemake finds out on the node what it is."""
    tmpdir = job_rule.resources.get("tmpdir")
    return tmpdir is None or tmpdir.raw == "system_tmpdir"


def incomplete_markers(job):
    """Snakemake's files that say that outputs of a job that has begun are incomplete: it removes them when the job has ended."""
    kept = workflow.persistence
    if not hasattr(kept, "_incomplete_path"):  # a data base
        return []
    return [
        os.path.abspath(kept._record_path(kept._incomplete_path, kept._get_key(path)))
        for path in job.output
    ]


def new_entry(jobs):
    """Jobs that are to share an entry, with the plan that its node reads."""
    place = Path(workflow.persistence.path, "joint").absolute()
    place.mkdir(parents=True, exist_ok=True)
    entry = Entry(jobs, Path(tempfile.mkdtemp(dir=place)))
    prefix = f"export PATH={for_shell(str(Path(sys.executable).parent))}:$PATH; "
    members = [member_of(job, prefix, incomplete_markers(job)) for job in jobs]
    latency = workflow.execution_settings.latency_wait
    plan = JointPlan(folder=os.getcwd(), latency=latency, members=members)
    try:
        write_plan(entry.folder, plan)
    except UserError as error:  # a full disk
        raise WorkflowError(str(error))
    return entry


def command_of_entry(entry):
    """What a Slurm job runs: a step that has all that the job asks for."""
    from snakemake_executor_plugin_slurm_jobstep import (
        get_cpu_setting,
        get_gpu_setting,
        get_node_setting,
    )

    sizes = [
        get_cpu_setting(entry, bool(entry.resources.get("gpu"))),
        get_gpu_setting(entry),
        get_node_setting(entry),
    ]
    step = f"{for_shell(sys.executable)} -P -m densewalk.cli.joint.step {for_shell(str(entry.folder))}"
    command = f"{step} srun -n1 --cpu-bind=q {' '.join(sizes)}"
    if workflow.executor_settings.pass_command_as_script:
        return command
    return for_double_quotes(command)  # Slurm's executor: sbatch --wrap="COMMAND"


def note_slurm_log(job, log):
    MEMORY.add_log(" ".join([job.rule.name, *job.wildcards]), log)


def runs_as_usual():
    """False for jobs of conda environments and containers, for arrays of jobs, and if Snakemake does not wait for jobs."""
    return not (
        workflow.deployment_settings.deployment_method
        or workflow.executor_settings.array_jobs
        or workflow.remote_execution_settings.immediate_submit
    )


def share_entries(scheduler):
    """Let light evaluations of one backbone share entries; not on another cluster than Slurm."""
    executor = type(scheduler._executor).__module__
    if not DECIDES or executor != "snakemake_executor_plugin_slurm":
        return
    for job in {job.rule.name: job for job in workflow.dag.needrun_jobs()}.values():
        limit_of(job)
    rules = [r for r in workflow.rules if r.name in LIGHT_RULES and has_usual_tmpdir(r)]
    if runs_as_usual():
        Joint(
            scheduler,
            {each.name for each in rules},
            new_entry,
            command_of_entry,
            note_slurm_log,
            workflow.execution_settings.latency_wait,
        )
