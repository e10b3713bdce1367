# initial backbone + data -> results/{run}/s{seed}/backbone.safetensors


rule baseline:
    input:
        init=run_init,
        data=run_data,
    output:
        backbone="results/{run}/s{seed}/backbone.safetensors",
        record="results/{run}/s{seed}/run.json",
    log:
        "results/logs/{run}/s{seed}/train.log",
    benchmark:
        "results/logs/{run}/s{seed}/train.tsv"
    wildcard_constraints:
        run=only(runs_of("none")),
    conda:
        "../../envs/main.yaml"
    resources:
        gpu=0,
        nodes=1,
    params:
        spec=run_spec,
        init=init_option,
        state=run_state,
        out=subpath(output.backbone, parent=True),
    shell:
        "densewalk train --spec {params.spec:q} {params.init} --data {input.data} --state {params.state} --out {params.out}"
        " --threads {threads} --gpus {resources.gpu} --nodes {resources.nodes} 2> {log}"


use rule baseline as train_dora with:
    wildcard_constraints:
        run=only(runs_of("dora")),


use rule baseline as train_dino with:
    wildcard_constraints:
        run=only(runs_of("dino")),


use rule baseline as train_neco with:
    wildcard_constraints:
        run=only(runs_of("neco")),


use rule baseline as train_timetuning with:
    wildcard_constraints:
        run=only(runs_of("timetuning")),
