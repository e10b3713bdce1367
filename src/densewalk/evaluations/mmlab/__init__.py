"""The adapter to mmengine, mmcv, mmsegmentation and mmdetection, which nothing else imports.

    from densewalk.evaluations.mmlab.runner import run
    metrics = run(experiment, job, training_state(settings, backbone_path, job))

An evaluation describes its model, data and optimizer in the toolboxes' own configuration dictionaries (experiment.py); `runner`
trains and tests it under this project's rules: seeds per step and sample, state that resumes bit for bit, progress lines, signals.
Missing parts of the toolboxes are registered in mmengine's root registries, where both find them:

    imports         keeps transformers out of their imports, and gives them faster-coco-eval for pycocotools
    ops             replaces mmcv's compiled operators
    processes       SharedTrainLoop, shared batch normalization, GatheredMetric
    images          ReadImage, this project's reader of images
    vit             DensewalkBackbone, this project's networks
    optim           LayerDecayConstructor
    pyramid         SimplePyramid, LevelPyramid: feature pyramids from a plain ViT; StagePyramid: from a network's stages (imports mmdet)
    segmentation    LinearHead, LabelledImages, LoadClasses, AveragedViews, SegmentationScore (imports mmseg)
    detection       CocoScore
"""

from densewalk.evaluations.mmlab.imports import toolbox_imports

with toolbox_imports():
    import mmengine.optim  # noqa: F401  which asks for it first

    from densewalk.evaluations.mmlab import ops

    # before anything imports mmcv.ops, as mmseg and mmdet do
    ops.install()
    # here, since both import pycocotools; mmseg imports the second, too
    import mmdet.datasets
    import mmdet.models  # noqa: F401
