# initial backbone + data -> results/{run}/s{seed}/backbone.safetensors; one rule per method, so that each has its own resources

METHODS = {"none": Asked(gpu=0, threads=1, mem_mb=8000, runtime=30)} | {
    name: settings.RESOURCES for name, settings in registry.methods().items()
}

for method, asked in METHODS.items():

    rule:
        name:
            "baseline" if method == "none" else f"train_{method}"
        input:
            init=run_init,
            teachers=run_teachers,
            data=run_data,
        output:
            backbone="<results>/{run}/s{seed}/backbone.safetensors",
            record="<results>/{run}/s{seed}/run.json",
        log:
            "<results>/logs/{run}/s{seed}/train.log",
        wildcard_constraints:
            run=only(runs_of(method)),
        priority: run_priority
        conda:
            "../../envs/main.yaml"
        threads: threads_of(asked)
        resources:
            gpu=gpus(asked),
            nodes=1,
            mem_mb=asked.mem_mb,
            runtime=asked.runtime,
        params:
            spec=file_of(run_spec),
            init=init_option,
            teachers=teacher_options,
            data=run_receipts,
            state=state_of(run_spec),
            out=subpath(output.backbone, parent=True),
        shell:
            "densewalk train --spec {params.spec:q} {params.init} {params.teachers} --data {params.data:q} --state {params.state} --out {params.out}"
            " --threads {threads} --gpus {resources.gpu} --nodes {resources.nodes} 2>> {log}"
