# result records -> tables and the report


rule table:
    input:
        table_records,
    output:
        "results/tables/{table}.csv",
    log:
        "results/logs/tables/{table}.log",
    wildcard_constraints:
        table=only(["all", *STUDY.task_tables]),
    conda:
        "../../envs/main.yaml"
    shell:
        "densewalk tables --table {wildcards.table} --out {output} {input} 2> {log}"


rule report:
    input:
        collect("results/tables/{table}.csv", table=["all", *STUDY.task_tables]),
    output:
        "results/report.html",
    log:
        "results/logs/report.log",
    conda:
        "../../envs/main.yaml"
    params:
        title=STUDY.study,
    shell:
        "densewalk report --title {params.title:q} --results results --out {output} 2> {log}"
