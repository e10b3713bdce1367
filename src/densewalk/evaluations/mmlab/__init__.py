"""The only door to mmengine, mmcv, mmsegmentation and mmdetection.

    from densewalk.mmlab.runner import Experiment, run
    metrics = run(experiment, job, inputs)

An evaluation describes its model, data and optimiser in the toolboxes' own configuration dictionaries; `runner` trains and
tests it under this project's rules: seeds per step and sample, state that resumes bit for bit, progress lines, signals.
What the toolboxes lack is registered here, in mmengine's root registries, where both find it:

    ops             stands in for mmcv's compiled operators
    vit             DensewalkBackbone, this project's backbones
    optim           LayerDecayConstructor
    pyramid         SimplePyramid, LevelPyramid: feature pyramids from a plain ViT (imports mmdet)
    segmentation    LinearHead, LabelledImages, LoadClasses, AveragedViews, SegmentationScore (imports mmseg)
    detection       CocoScore
"""

from densewalk.evaluations.mmlab import ops

# before anything imports mmcv.ops, as mmseg and mmdet do
ops.install()
