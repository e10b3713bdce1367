# sources -> training copies, receipts and curated pools


if STUDY.synthetic:

    rule generate:
        input:
            generator_needs,
        output:
            f"{STUDY.synthetic.root}/receipt.json",
        log:
            "<results>/logs/generate.log",
        priority: first_of_all
        conda:
            "../../envs/main.yaml"
        params:
            settings=STUDY.synthetic.model_dump_json(exclude={"root"}),
            root=STUDY.synthetic.root,
        shell:
            "densewalk generate --settings={params.settings:q} --root={params.root:q} 2>> {log}"


rule prepare_video:
    input:
        video_needs,
    output:
        video="<results>/data/{name}.mp4",
        receipt="<results>/data/{name}.json",
    log:
        "<results>/logs/data/{name}.log",
    wildcard_constraints:
        name=only(STUDY.videos),
    priority: first_of_all
    conda:
        "../../envs/main.yaml"
    threads: threads_of(TRANSCODING)
    resources:
        mem_mb=TRANSCODING.mem_mb,
        runtime=TRANSCODING.runtime,
    params:
        settings=settings_of("videos"),
    shell:
        "densewalk prepare-video --settings={params.settings:q} --out {output.video} --receipt {output.receipt} 2>> {log}"


rule check_images:
    input:
        images_need,
    output:
        "<results>/data/{name}.json",
    log:
        "<results>/logs/data/{name}.log",
    wildcard_constraints:
        name=only(STUDY.images),
    priority: first_of_all
    conda:
        "../../envs/main.yaml"
    params:
        settings=settings_of("images"),
    shell:
        "densewalk check-images --settings={params.settings:q} --receipt {output} 2>> {log}"


rule curate:
    input:
        backbone=curation_backbone,
        data=curation_data,
        references=curation_references,
    output:
        receipt="<results>/data/{name}.json",
        list="<results>/data/{name}.csv",
        sheet="<results>/data/{name}.png",
    log:
        "<results>/logs/data/{name}.log",
    wildcard_constraints:
        name=only(STUDY.curations),
    priority: first_of_all
    conda:
        "../../envs/main.yaml"
    threads: threads_of(CURATION)
    resources:
        gpu=gpus(CURATION),
        mem_mb=CURATION.mem_mb,
        runtime=CURATION.runtime,
    params:
        spec=file_of(curation_spec),
        backbone=curation_backbone_path,
        data=curation_receipts,
    shell:
        "densewalk curate --spec {params.spec:q} --backbone={params.backbone:q} --data {params.data:q} --out {output.receipt}"
        " --threads {threads} 2>> {log}"


# asked for by name: snakemake --cores 1 results/data/sets/coco.json, snakemake --cores 1 fetch
localrules:
    fetch,
    dataset,


rule dataset:
    output:
        "results/data/sets/{name}.json",
    log:
        "<results>/logs/data/sets/{name}.log",
    conda:
        "../../envs/main.yaml"
    shell:
        "densewalk data {wildcards.name} --receipt {output} 2>> {log}"


rule fetch:
    log:
        "<results>/logs/data/fetch.log",
    conda:
        "../../envs/main.yaml"
    params:
        config=lambda wildcards: workflow.configfiles[-1],
    shell:
        "densewalk fetch --config={params.config:q} 2>> {log}"
