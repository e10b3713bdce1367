# backbone -> results/{run}/s{seed}/{evaluation}.json; one rule per protocol, so that each has its own resources


rule evaluate_davis:
    input:
        backbone="results/{run}/s{seed}/backbone.safetensors",
        data=evaluation_data,
    output:
        "results/{run}/s{seed}/{evaluation}.json",
    log:
        "results/logs/{run}/s{seed}/{evaluation}.log",
    benchmark:
        "results/logs/{run}/s{seed}/{evaluation}.tsv"
    wildcard_constraints:
        evaluation=only(evaluations_of("davis")),
    conda:
        "../../envs/main.yaml"
    resources:
        gpu=0,
    params:
        spec=evaluation_spec,
        state=evaluation_state,
    shell:
        "densewalk evaluate --spec {params.spec:q} --backbone {input.backbone} --state {params.state} --out {output}"
        " --threads {threads} --gpus {resources.gpu} 2> {log}"


use rule evaluate_davis as evaluate_incontext with:
    wildcard_constraints:
        evaluation=only(evaluations_of("incontext")),


use rule evaluate_davis as evaluate_ade20k_linear with:
    wildcard_constraints:
        evaluation=only(evaluations_of("ade20k_linear")),


use rule evaluate_davis as evaluate_ade20k_upernet with:
    wildcard_constraints:
        evaluation=only(evaluations_of("ade20k_upernet")),


use rule evaluate_davis as evaluate_segmentation_linear with:
    wildcard_constraints:
        evaluation=only(evaluations_of("segmentation_linear")),


use rule evaluate_davis as evaluate_segmentation_upernet with:
    wildcard_constraints:
        evaluation=only(evaluations_of("segmentation_upernet")),


use rule evaluate_davis as evaluate_coco with:
    wildcard_constraints:
        evaluation=only(evaluations_of("coco")),


use rule evaluate_davis as evaluate_video_segmentation with:
    wildcard_constraints:
        evaluation=only(evaluations_of("video_segmentation")),


use rule evaluate_davis as evaluate_knn with:
    wildcard_constraints:
        evaluation=only(evaluations_of("knn")),


use rule evaluate_davis as evaluate_linear with:
    wildcard_constraints:
        evaluation=only(evaluations_of("linear")),


use rule evaluate_davis as evaluate_discovery with:
    wildcard_constraints:
        evaluation=only(evaluations_of("discovery")),


use rule evaluate_davis as evaluate_tracking with:
    wildcard_constraints:
        evaluation=only(evaluations_of("tracking")),


use rule evaluate_davis as evaluate_linear_segmentation with:
    wildcard_constraints:
        evaluation=only(evaluations_of("linear_segmentation")),


use rule evaluate_davis as evaluate_overcluster with:
    wildcard_constraints:
        evaluation=only(evaluations_of("overcluster")),


use rule evaluate_davis as evaluate_unsupervised_segmentation with:
    wildcard_constraints:
        evaluation=only(evaluations_of("unsupervised_segmentation")),
