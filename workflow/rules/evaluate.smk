# backbone -> results/{run}/s{seed}/{evaluation}.json; one rule per protocol, so that each has its own resources

for protocol, settings in registry.evaluations().items():

    rule:
        name:
            f"evaluate_{protocol}"
        input:
            backbone=evaluation_backbone,
            data=evaluation_data,
        output:
            "<results>/{run}/s{seed}/{evaluation}.json",
        log:
            "<results>/logs/{run}/s{seed}/{evaluation}.log",
        wildcard_constraints:
            evaluation=only(evaluations_of(protocol)),
        priority: evaluation_priority
        conda:
            "../../envs/main.yaml"
        threads: threads_of(settings.RESOURCES)
        resources:
            gpu=gpus(settings.RESOURCES),
            mem_mb=settings.RESOURCES.mem_mb,
            runtime=settings.RESOURCES.runtime,
        params:
            spec=file_of(evaluation_spec),
            backbone=backbone_path,
            state=state_of(evaluation_spec),
            features=features_option,
        shell:
            "densewalk evaluate --spec {params.spec:q} --backbone {params.backbone:q} --state {params.state} --out {output}"
            " {params.features} --threads {threads} --gpus {resources.gpu} 2>> {log}"
