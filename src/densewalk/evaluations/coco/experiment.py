"""The detectors in mmdetection's configuration dictionaries."""

import math

from densewalk.core.errors import UserError
from densewalk.evaluations.coco.data import SMALLEST, Split
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.mmlab import experiment as mm
from densewalk.evaluations.mmlab.experiment import Config, Experiment
from densewalk.models.architecture import Shape

DETECTIONS = 100  # per image
SCORE = 0.05  # least score of a detection
# per stage: overlap that makes a region positive, standard deviations of the box offsets, weight of the losses
STAGES = ((0.5, (0.1, 0.1, 0.2, 0.2), 1.0), (0.6, (0.05, 0.05, 0.1, 0.1), 0.5), (0.7, (0.033, 0.033, 0.067, 0.067), 0.25))
# DETR's second augmentation: short sides before the crop, and the crop's least and greatest side
CROP_FROM, CROP = (400, 500, 600), (384, 600)


def experiment(settings: CocoSettings, backbone: str, arch: Shape, training: Split, validation: Split) -> Experiment:
    """The whole experiment."""
    decay = mm.layer_decay(settings.layer_decay, decay_position_embedding=settings.decay_position_embedding)
    iterations = settings.total_iterations(training.usable)
    category_ids = [identity for identity, _ in validation.categories]
    return Experiment(
        scope="mmdet",
        model=detector(settings, backbone, arch, classes=len(training.categories)),
        optimizer=mm.adamw(settings.learning_rate, settings.weight_decay) | decay,
        schedules=schedules(settings, iterations),
        training=dataset(training, training_pipeline(settings)) | {"filter_cfg": {"filter_empty_gt": True, "min_size": SMALLEST}},
        test=dataset(validation, test_pipeline(settings)) | {"test_mode": True},
        metric={"type": "CocoScore", "annotations": str(validation.annotations), "category_ids": category_ids},
        iterations=iterations,
        batch_size=settings.batch_size,
        group_by_aspect=True,
    )


def schedules(settings: CocoSettings, iterations: int) -> list[Config]:
    """Warm-up from a thousandth, and a tenth of the learning rate after each drop."""
    drops = sorted({max(1, round(part * iterations)) for part in settings.lr_drops})
    return [*mm.warm_up(settings.warmup, 1e-3), {"type": "MultiStepLR", "milestones": drops, "gamma": 0.1, "by_epoch": False}]


# -- the model -------------------------------------------------------------------------------------------------------


def detector(settings: CocoSettings, backbone: str, arch: Shape, *, classes: int) -> Config:
    """Backbone, pyramid, region proposals and heads."""
    cascade = settings.head == "cascade"
    options = {"final_norm": settings.final_norm, "drop_path": settings.drop_path, "padding": "corner"}
    levels = chosen_levels(settings, arch)
    # sides that every level divides, so that the backbone has nothing to pad and positions stay exact
    divisor = math.lcm(arch.multiple, round(mm.pyramid_strides(arch)[3]))
    stages = [
        region_training(overlap, overlap, count=settings.rois_per_image, fraction=0.25) | {"mask_size": 28} for overlap, _, _ in STAGES
    ]
    final_nms = {"type": "nms", "iou_threshold": 0.5}
    return {
        "type": "CascadeRCNN" if cascade else "MaskRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "pad_mask": True,
            "pad_size_divisor": divisor,
            **mm.normalization(arch.statistics),
        },
        "backbone": mm.backbone(backbone, arch, levels, gradient_checkpointing=settings.gradient_checkpointing, **options),
        "neck": neck(settings, arch, levels),
        "rpn_head": proposal_head(settings, arch),
        "roi_head": (cascade_heads if cascade else standard_heads)(settings, arch, classes),
        "train_cfg": {
            "rpn": region_training(0.7, 0.3, count=256, fraction=0.5, anchors=True) | {"allowed_border": 0},
            "rpn_proposal": proposals(settings.proposals),
            "rcnn": stages if cascade else stages[0],
        },
        "test_cfg": {
            "rpn": proposals(max(1, settings.proposals // 2)),
            "rcnn": {"score_thr": SCORE, "nms": final_nms, "max_per_img": DETECTIONS, "mask_thr_binary": 0.5},
        },
    }


def chosen_levels(settings: CocoSettings, arch: Shape) -> list[int]:
    """The levels of the backbone whose maps make the pyramid."""
    if mm.is_hierarchical(arch):
        stages = mm.stage_levels(arch)
        if settings.levels not in (None, stages):
            raise UserError(f"levels {settings.levels} of {arch.name}", allowed=f"its last stages, {stages}", todo="leave `levels` out")
        return stages
    depth = len(arch.level_dims)
    return settings.levels or (mm.default_levels(depth) if settings.head == "cascade" else [depth - 1])


def neck(settings: CocoSettings, arch: Shape, levels: list[int]) -> Config:
    """The pyramid: iBOT's or ViTDet's from a ViT, an FPN from the stages of a hierarchical network, whose maps have its strides."""
    if mm.is_hierarchical(arch):
        return {"type": "StagePyramid", "dims": [arch.level_dims[level] for level in levels], "channels": settings.channels}
    kind = "LevelPyramid" if settings.head == "cascade" else "SimplePyramid"
    return {"type": kind, "dim": arch.dim, "patch": arch.stride, "channels": settings.channels}


def proposal_head(settings: CocoSettings, arch: Shape) -> Config:
    """Three anchors of sizes 32 to 512 at every position of the five levels."""
    return {
        "type": "RPNHead",
        "in_channels": settings.channels,
        "feat_channels": settings.channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": mm.pyramid_strides(arch),
            "base_sizes": [4, 8, 16, 32, 64],
        },
        "bbox_coder": box_coder((1.0, 1.0, 1.0, 1.0)),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1 / 9, "loss_weight": 1.0},
    }


def proposals(count: int) -> Config:
    """The selection of the proposals that go to the heads."""
    return {"nms_pre": count, "max_per_img": count, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}


def standard_heads(settings: CocoSettings, arch: Shape, classes: int) -> Config:
    """Mask R-CNN's: two linear layers for boxes, four convolutions for masks (https://arxiv.org/abs/1703.06870)."""
    loss = {"type": "L1Loss", "loss_weight": 1.0}
    box_head = {"type": "Shared2FCBBoxHead", "loss_bbox": loss, **box_head_options(settings, STAGES[0][1], classes)}
    return {"type": "StandardRoIHead", "bbox_head": box_head, **shared_heads(settings, arch, classes)}


def cascade_heads(settings: CocoSettings, arch: Shape, classes: int) -> Config:
    """Three box heads, each refining the boxes of the one before, and three mask heads (https://arxiv.org/abs/1906.09756)."""
    box_heads = [
        {
            "type": "ConvFCBBoxHead",
            "num_shared_convs": 4,
            "num_shared_fcs": 1,
            "conv_out_channels": settings.channels,
            "reg_decoded_bbox": True,
            "norm_cfg": {"type": "BN"},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 10.0},
            **box_head_options(settings, deviations, classes),
        }
        for _, deviations, _ in STAGES
    ]
    stages = {"num_stages": len(STAGES), "stage_loss_weights": [weight for _, _, weight in STAGES]}
    return {"type": "CascadeRoIHead", **stages, "bbox_head": box_heads, **shared_heads(settings, arch, classes)}


def box_head_options(settings: CocoSettings, deviations: tuple[float, ...], classes: int) -> Config:
    """The options that all box heads share."""
    return {
        "in_channels": settings.channels,
        "fc_out_channels": 1024,
        "roi_feat_size": 7,
        "num_classes": classes,
        "bbox_coder": box_coder(deviations),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }


def shared_heads(settings: CocoSettings, arch: Shape, classes: int) -> Config:
    """Region pooling by RoIAlign from the level that suits a region's size, and the mask head."""

    def pooling(size: int) -> Config:
        layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0}
        levels = {"out_channels": settings.channels, "featmap_strides": mm.pyramid_strides(arch)[:4]}
        return {"type": "SingleRoIExtractor", "roi_layer": layer, **levels}

    mask_head = {
        "type": "FCNMaskHead",
        "num_convs": 4,
        "in_channels": settings.channels,
        "conv_out_channels": settings.channels,
        "num_classes": classes,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }
    return {"bbox_roi_extractor": pooling(7), "mask_roi_extractor": pooling(14), "mask_head": mask_head}


def region_training(positive: float, negative: float, *, count: int, fraction: float, anchors: bool = False) -> Config:
    """The regions that a head learns from: `count` random ones, up to a `fraction` of which overlap an object by `positive`.

    Args:
        anchors: an object that none overlaps enough has its best one. Otherwise the objects themselves are regions, too.
    """
    return {
        "assigner": {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": positive,
            "neg_iou_thr": negative,
            "min_pos_iou": negative,
            "match_low_quality": anchors,
            "ignore_iof_thr": -1,
        },
        "sampler": {
            "type": "RandomSampler",
            "num": count,
            "pos_fraction": fraction,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": not anchors,
        },
        "pos_weight": -1,
        "debug": False,
    }


def box_coder(deviations: tuple[float, ...]) -> Config:
    """Boxes as offsets from a reference box."""
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(deviations)}


# -- data ------------------------------------------------------------------------------------------------------------


def dataset(split: Split, pipeline: list[Config]) -> Config:
    """An instances file; label k is the k-th of its categories."""
    return {
        "type": "CocoDataset",
        "ann_file": str(split.annotations),
        "data_prefix": {"img": str(split.images)},
        "metainfo": {"classes": tuple(name for _, name in split.categories)},
        "pipeline": pipeline,
    }


def training_pipeline(settings: CocoSettings) -> list[Config]:
    """Loading and augmentation."""
    resize = random_resize(settings, settings.short_sides)
    crop = {"type": "RandomCrop", "crop_type": "absolute_range", "crop_size": CROP, "allow_negative_crop": True}
    policies = [[resize], [random_resize(settings, list(CROP_FROM)), crop, resize]]
    return [
        {"type": "ReadImage"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomChoice", "transforms": policies} if settings.crop_augmentation else resize,
        {"type": "PackDetInputs"},
    ]


def random_resize(settings: CocoSettings, short_sides: list[int]) -> Config:
    """One of several short sides."""
    scales = [(settings.long_side, side) for side in short_sides]
    return {"type": "RandomChoiceResize", "scales": scales, "keep_ratio": True}


def test_pipeline(settings: CocoSettings) -> list[Config]:
    """Loading."""
    return [
        {"type": "ReadImage"},
        {"type": "Resize", "scale": (settings.long_side, settings.test_short_side), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
