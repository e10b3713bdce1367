# How Snakemake itself behaves: in which order it starts jobs, that it keeps their logs, what it says of a dry run, of a failure and of
# Ctrl-C, and of another one at work. The few places where its own functions are replaced are all here.
import contextlib
import logging
import threading
from collections import Counter

import snakemake.exceptions
import snakemake.jobs
import snakemake.logging
import snakemake.persistence
from snakemake.logging import logger

from densewalk.cli.forkserver.start import serve_jobs
from densewalk.core.errors import RESUME
from densewalk.core.text.attempts import latest_attempt
from densewalk.core.text.snakemake_options import place_options, study_file
from densewalk.results.missing import state_by_log
from densewalk.study.schedule.order import Order
from densewalk.study.schedule.todo import JobToDo, summary
from densewalk.study.upkeep.forgotten import forgotten

# -- order: profiles/default takes the scheduler that goes by priority -----------------------------------------------------

ORDER = Order(STUDY)


def first_of_all(wildcards):
    return ORDER.of_data() if DECIDES else 0


def run_priority(wildcards):
    return ORDER.of_run(wildcards.run, int(wildcards.seed)) if DECIDES else 0


def evaluation_priority(wildcards):
    w = wildcards
    return ORDER.of_evaluation(w.run, int(w.seed), w.evaluation) if DECIDES else 0


def features_priority(wildcards):
    return ORDER.of_features(wildcards.run, int(wildcards.seed)) if DECIDES else 0


def submit_by_priority(scheduler):
    """Submit first what has the highest priority of the jobs that are started at once: a queue is served in this order."""
    submit = scheduler.run
    in_arrays = getattr(workflow.executor_settings, "array_jobs", None)

    def run(jobs, executor=None):
        jobs = sorted(jobs, key=lambda job: -job.priority)
        for some in [jobs] if in_arrays else [[job] for job in jobs]:
            submit(some, executor=executor)

    scheduler.run = run


# -- logs: jobs append to them ---------------------------------------------------------------------------------------------


def keeping_logs(remove_existing_output):
    async def remove(job):
        logs, job._log = job.log, []
        try:
            await remove_existing_output(job)
        finally:
            job._log = logs

    remove.keeps_logs = True
    return remove


if not hasattr(snakemake.jobs.Job.remove_existing_output, "keeps_logs"):
    snakemake.jobs.Job.remove_existing_output = keeping_logs(
        snakemake.jobs.Job.remove_existing_output
    )


def end_of_logs(logs, lines=30):
    """Of failed jobs, the end of the latest attempt is shown."""
    for path in logs:
        if path and os.path.isfile(path):  # Slurm's may be unknown
            text = latest_attempt(Path(path).read_text(errors="replace"))
            yield f"End of {path}:"
            yield from (f"    {line}" for line in text.splitlines()[-lines:])


snakemake.logging.show_logs = end_of_logs

# -- Ctrl-C: one line; what jobs and Snakemake have to say about it is in their logs -----------------------------------------

INTERRUPTED = []


def interrupt(number, frame):
    if not INTERRUPTED:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(
                handler, logging.FileHandler
            ):
                handler.addFilter(lambda record: False)
        print(f"\n{RESUME} (jobs are saving their state)", file=sys.stderr, flush=True)
    INTERRUPTED.append(number)
    raise KeyboardInterrupt


if DECIDES and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, interrupt)

# -- another one at work: one line, and for a dry run no error --------------------------------------------------------------

AT_WORK = "another Snakemake is at work in this folder"


@contextlib.contextmanager
def say_if_locked(persistence):
    if persistence.locked:
        logger.info(f"{AT_WORK}: what it has not finished is counted as to do")
    yield


def say_it_is_locked(error):
    unlock = f"snakemake --unlock{place_options(sys.argv[1:])}"
    todo = f"wait for it (`densewalk status` says what it does); if it was killed: {unlock}"
    WorkflowError.__init__(error, f"{AT_WORK}; to do: {todo}")


snakemake.persistence.PersistenceBase.lock_warn_only = say_if_locked
snakemake.exceptions.LockException.__init__ = say_it_is_locked


# -- results under a name that the study had: moved, not made again (docs/changes.md) ------------------------------------------


def former_names():
    """A line for each run and evaluation whose results are there under another name."""
    return [found.text(study_file(sys.argv[1:])) for found in forgotten(CHANGES)]


def say_former_names():
    if DECIDES:
        for line in former_names():
            logger.warning(line)


# -- jobs of this machine: forked from one process that has imported what they need (docs/execution.md) ------------------------


def serve_local_jobs():
    """Not for jobs of a cluster, nor for those in a conda environment or container."""
    here = workflow.local_exec and not workflow.deployment_settings.deployment_method
    jobs = workflow.dag.needrun_jobs() if here and not workflow.touch else ()
    if DECIDES:
        serve_jobs(Counter(job.rule.name for job in jobs))


# -- dry run: a summary ------------------------------------------------------------------------------------------------------


def why(job):
    """Why a job would run: as results/changes.py says it, else how far it has come, or what it is made from."""
    if reasons := [r for path in job.output for r in REASONS.get(str(path), ())]:
        return "; ".join(dict.fromkeys(reasons))
    if any(not os.path.exists(path) for path in job.output):
        # logs of tables and page do not say how these ended
        logs = job.log if {"run", "name"} & set(job.wildcards_dict) else []
        return next((state_by_log(Path(log))[0] for log in logs), "not there")
    needed = [
        other for other in workflow.dag.dependencies[job] if workflow.dag.needrun(other)
    ]
    if needed:
        return "made from what is made again"
    return "asked for" if workflow.dag.reason(job).forced else "an input is newer"


def to_do():
    """The jobs that would run, in the order of their priority. A dry run calls those that it has printed finished."""
    dag = workflow.dag
    jobs = [job for job in dag.needrun_jobs(exclude_finished=False) if job.output]
    for job in sorted(
        jobs, key=lambda job: (-dag.priority(job), job.rule.name, str(job.output[0]))
    ):
        w = job.wildcards_dict
        seed = int(w["seed"]) if "seed" in w else None
        name = next((w[key] for key in ("run", "name", "table") if key in w), "")
        name = f"{w['evaluation']} of {name}" if "evaluation" in w else name
        yield JobToDo(job.rule.name, why(job), name, seed)


FOLDER = os.getcwd()  # the study's, which Snakemake has left at the end


def say_what_is_to_do():
    quiet = workflow.output_settings.quiet or ()
    planned = workflow.dryrun and workflow.scheduler is not None
    if planned and not any(kind.name == "ALL" for kind in quiet):
        with contextlib.suppress(BrokenPipeError), contextlib.chdir(FOLDER):
            print("\n".join([summary(list(to_do())), *former_names()]), flush=True)


if DECIDES:
    atexit.register(say_what_is_to_do)
