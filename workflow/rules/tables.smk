# result records -> tables, pictures of features, the page


rule table:
    input:
        table_records,
    output:
        csv=report(
            "<results>/tables/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        markdown="<results>/tables/{table}.md",
        latex="<results>/tables/{table}.tex",
    log:
        "<results>/logs/tables/{table}.log",
    wildcard_constraints:
        table=only(["gain", "all", "cost", *STUDY.task_tables]),
    conda:
        "../../envs/main.yaml"
    shell:
        'densewalk tables --table {wildcards.table} --out {output.csv} --plan "$DENSEWALK_PLAN" 2>> {log}'


rule features:
    input:
        backbone=features_backbone,
        init=features_init,
        data=features_data,
    output:
        "<results>/{run}/s{seed}/features.json",
    log:
        "<results>/logs/{run}/s{seed}/features.log",
    priority: features_priority
    conda:
        "../../envs/main.yaml"
    threads: threads_of(FEATURES)
    resources:
        gpu=gpus(FEATURES),
        mem_mb=FEATURES.mem_mb,
        runtime=FEATURES.runtime,
    params:
        spec=file_of(run_spec),
        init=init_option,
        backbone=backbone_path,
        data=features_receipts,
        settings=STUDY.pictures.model_dump_json(),
    shell:
        "densewalk features --spec {params.spec:q} {params.init} --backbone {params.backbone:q} --data {params.data:q}"
        " --settings={params.settings:q} --out {output} --threads {threads} 2>> {log}"


rule report:
    input:
        collect(
            "<results>/tables/{table}.csv",
            table=["gain", "all", "cost", *STUDY.task_tables],
        ),
        page_features,
    output:
        report("<results>/report.html", caption="../report/page.rst", category="Page"),
    log:
        "<results>/logs/report.log",
    conda:
        "../../envs/main.yaml"
    params:
        plan=PLAN_FILE,
        results=subpath(output[0], parent=True),
    shell:
        "densewalk report --plan {params.plan:q} --results {params.results:q} --out {output} 2>> {log}"


# asked for by name: snakemake --cores 1 stale
localrules:
    stale,


rule stale:
    log:
        "<results>/logs/stale.log",
    conda:
        "../../envs/main.yaml"
    params:
        config=workflow.configfiles[-1],
    shell:
        "densewalk stale {params.config:q} 2>> {log}"


# a page that says what is missing
onerror:
    if not INTERRUPTED:
        shell(
            "densewalk report --plan {plan:q} --results {results:q} --out {results:q}/report.html || true",
            plan=PLAN_FILE,
            results=STUDY.results,
        )
