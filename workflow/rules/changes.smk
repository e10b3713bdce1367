# What is made again, and what is left alone: densewalk.results.changes decides, for `densewalk status` and the page as well. Snakemake
# itself looks at missing files and, for tables and page, at times (profiles/default).
#
# A job whose output is there and not outdated waits for nothing, so that neither a time nor a name nor a preparation that runs again
# makes it run. One that is outdated is forced.
import atexit
import functools

from densewalk.results.changes import Changes

try:
    CHANGES = Changes(PLAN, RESULTS)
except UserError as error:  # a damaged cache
    raise WorkflowError(str(error))
DECIDES = workflow.is_main_process  # a job that the driver started is simply run
REASONS = {}  # output -> why it is made again
if DECIDES:
    atexit.register(CHANGES.contents.save)


def one_line_errors(function):
    """Damaged files are one line, not a traceback."""

    @functools.wraps(function)
    def wrapped(wildcards):
        try:
            return function(wildcards)
        except UserError as error:
            raise WorkflowError(str(error))

    return wrapped


def is_forced(path, rule_name):
    """True if the command line asks for this output again."""
    settings = workflow.dag_settings
    if settings is None:
        return False
    named = {os.path.relpath(path), rule_name}
    asked = set(settings.forcerun) | (
        set(settings.targets) if settings.forcetargets else set()
    )
    return settings.forceall or bool(named & {os.path.normpath(name) for name in asked})


def is_settled(path, reasons, forced=False):
    """True if nothing is to be done for an output. One that is there and outdated, for which there are reasons, is made again."""
    if not DECIDES or not os.path.isfile(path):
        return False
    if reasons:
        REASONS[path] = reasons
        workflow.dag.forcefiles.add(path)
    return not reasons and not forced


def backbone_of(run, seed):
    return f"{RESULTS}/{run}/s{seed}/backbone.safetensors"


def rule_of(run):
    method = STUDY.runs[run].method
    return "baseline" if method == "none" else f"train_{method}"


@functools.cache
def is_data_forced(name):
    own = [f"{RESULTS}/data/{name}.{end}" for end in ("json", "mp4", "csv", "png")]
    rules = {
        name in STUDY.videos: "prepare_video",
        name in STUDY.images: "check_images",
        name in STUDY.curations: "curate",
    }
    if any(is_forced(path, rules[True]) for path in own):
        return True
    if name not in STUDY.curations:
        return False
    backbone = STUDY.curation_spec(name).backbone
    inside = any(is_data_forced(source) for source in STUDY.curations[name].data)
    return inside or (
        backbone.kind == "run" and is_run_forced(backbone.name, backbone.seed)
    )


@functools.cache
def is_run_forced(run, seed):
    """True if the command line asks for a backbone again, or for anything that it is made from."""
    spec = STUDY.run_spec(run, seed)
    outputs = (backbone_of(run, seed), f"{RESULTS}/{run}/s{seed}/run.json")
    return (
        any(is_forced(path, rule_of(run)) for path in outputs)
        or any(is_data_forced(name) for name in spec.data or ())
        or (spec.init.kind == "run" and is_run_forced(spec.init.name, spec.init.seed))
    )


# -- the outputs ---------------------------------------------------------------------------------------------------------


def run_is_settled(wildcards):
    run, seed = wildcards.run, int(wildcards.seed)
    if not CHANGES.is_made(run, seed):
        return False
    reasons = CHANGES.of_run(run, seed)
    return is_settled(backbone_of(run, seed), reasons, is_run_forced(run, seed))


def result_is_settled(wildcards):
    run, seed, evaluation = wildcards.run, int(wildcards.seed), wildcards.evaluation
    path = f"{RESULTS}/{run}/s{seed}/{evaluation}.json"
    own = f"evaluate_{STUDY.evaluations[evaluation].protocol}"
    forced = is_run_forced(run, seed) or is_forced(path, own)
    return is_settled(path, CHANGES.of_result(run, seed, evaluation), forced)


def features_are_settled(wildcards):
    run, seed = wildcards.run, int(wildcards.seed)
    path = f"{RESULTS}/{run}/s{seed}/features.json"
    forced = is_run_forced(run, seed) or is_forced(path, "features")
    return is_settled(path, CHANGES.of_features(run, seed), forced)


def video_is_settled(name):
    reasons = CHANGES.of_video(name, STUDY.videos[name])
    return is_settled(f"{RESULTS}/data/{name}.json", reasons, is_data_forced(name))


def images_are_settled(name):
    reasons = CHANGES.of_images(name, STUDY.images[name])
    return is_settled(f"{RESULTS}/data/{name}.json", reasons, is_data_forced(name))


def curation_is_settled(name):
    spec = STUDY.curation_spec(name)
    parent = (
        (spec.backbone.name, spec.backbone.seed)
        if spec.backbone.kind == "run"
        else None
    )
    sources = [source.source for source in spec.data.values()]
    backbone = path_of(spec.backbone)
    reasons = CHANGES.of_curation(name, spec.hash, parent, backbone, sources)
    return is_settled(f"{RESULTS}/data/{name}.json", reasons, is_data_forced(name))


def is_written_for_this_plan(name, path):
    """Tables and page are also written again when other runs or evaluations belong in them."""
    return is_settled(path, CHANGES.of_table(name))
