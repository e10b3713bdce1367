# One study = one folder with a config.yaml:  snakemake --directory my-study --cores 2   (default: this folder)
from snakemake.utils import min_version, validate

min_version("9.27")


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
        "results/report.html",
        "results/tables/all.csv",
        "results/tables/cost.csv",
        collect("results/tables/{table}.csv", table=STUDY.task_tables),


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/scheduler.smk"
