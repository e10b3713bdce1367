# One study = one file:   snakemake all                                       config.yaml of this folder
#                         snakemake --directory my-study all                  config.yaml of another one, which holds data and results
#                         snakemake all --configfile studies/dora.yaml        another file; its `results` says where results go
from snakemake.utils import min_version, validate

min_version("9.27")


include: "workflow/rules/config.smk"


# not beside another study, with which Snakemake would mix it
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"


validate(
    config,
    workflow.source_path("workflow/schemas/config.schema.json"),
    set_default=False,
)


report: "workflow/report/study.rst"


# these take seconds, so the driver runs them itself
localrules:
    all,
    table,
    report,


rule all:
    input:
        records_wanted,
        "<results>/report.html",
        "<results>/tables/gain.csv",
        "<results>/tables/all.csv",
        "<results>/tables/cost.csv",
        collect("<results>/tables/{table}.csv", table=STUDY.task_tables),


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/scheduler.smk"
include: "workflow/rules/joint.smk"
