"""Detection and instance segmentation on COCO through mmdetection: iBOT's Cascade Mask R-CNN, or a plain Mask R-CNN.

    densewalk evaluate --spec '{"protocol": "coco", ...}' --backbone backbone.safetensors --state DIR --out FILE

`cascade` is the detector of iBOT (https://arxiv.org/abs/2111.07832, https://github.com/bytedance/ibot, evaluation/
object_detection), which DoRA follows: four maps brought to strides 4 to 32, FPN, three stages (IoU 0.5, 0.6, 0.7) of four
convolutions and one linear layer, GIoU loss of weight 10 on decoded boxes, four-convolution mask head. `maskrcnn`: ViTDet's simple
pyramid from the last map, Mask R-CNN's standard heads. Both: AdamW with layer decay, a tenth of the learning rate after 8 and 11 of
12 epochs, images of 480 to 800 px, test at 800 px, the 100 best detections per image.

Deliberate deviations: position embeddings are interpolated for each batch from the file's grid (iBOT resamples them to 800 x 1008
px when it loads, and again for each batch). Batch normalisation sees the whole batch in one process. Arithmetic is bfloat16 on
CUDA (fp16 in iBOT), of boxes and pyramid float32. For patch 14 the levels' strides are 3.5 to 56; anchors keep their sizes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, read_json
from densewalk.core.hashing import config_hash, file_sha256
from densewalk.data.images import read_rgb
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.mmlab.experiment import Config, Experiment, default_levels, strides
from densewalk.models.architecture import Architecture
from densewalk.models.loading import load

# ImageNet's mean and standard deviation, of pixels in 0..255
NORMALIZATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
DETECTIONS = 100  # per image
SMALLEST = 32  # least side of a training image in pixels
SCORE = 0.05  # least score of a detection
# per stage: overlap that makes a region positive, standard deviations of the box offsets, weight of the losses
STAGES = ((0.5, (0.1, 0.1, 0.2, 0.2), 1.0), (0.6, (0.05, 0.05, 0.1, 0.1), 0.5), (0.7, (0.033, 0.033, 0.067, 0.067), 0.25))
# DETR's second augmentation: short sides before the crop, and the crop's least and greatest side
CROP_FROM, CROP = (400, 500, 600), (384, 600)


@dataclass(frozen=True)
class Split:
    """One checked half of the data; `usable` of its `count` images are large enough and have an object, to train on."""

    annotations: Path
    images: Path
    count: int
    usable: int
    categories: tuple[tuple[int, str], ...]


def evaluate(settings: CocoSettings, backbone_path: Path, job: Job) -> Result:
    """Train a detector on one backbone and score it; what it found goes to `job.out` in COCO's result format.

    Raises:
        UserError: data missing or inconsistent; the message names the file.
        Interrupted: a signal came; the state is saved.
    """
    training, validation = check_data(settings)
    arch = load(backbone_path).arch
    # imported late: the toolboxes take seconds, and what is wrong with the data has been said by now
    from densewalk.evaluations.mmlab import detection  # noqa: F401
    from densewalk.evaluations.mmlab.runner import run

    inputs = {
        "backbone": file_sha256(backbone_path),
        "annotations": file_sha256(training.annotations),
        "settings": config_hash([settings.model_dump(mode="json"), job.seed]),
    }
    found = run(experiment(settings, str(backbone_path), arch, training, validation), job, inputs)
    for kind, records in (("bbox", found.pop("boxes")), ("segm", found.pop("masks"))):
        write_detections(job.out / f"detections_val2017_{kind}.json", records)
    metrics = {name: found.pop(name, math.nan) for name in settings.METRICS}
    return Result(metrics, n=validation.count, unit="images", details=found)


def describe_data(settings: CocoSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    training, validation = check_data(settings)
    for split in (training, validation):
        read_rgb(min(path for path in split.images.iterdir() if path.suffix == ".jpg"))
    return {"training images": training.count, "validation images": validation.count}


def write_detections(path: Path, records: list[dict[str, Any]]) -> None:
    """COCO's result format, which its evaluation servers take too: image_id, category_id, score, and bbox or segmentation."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(records, separators=(",", ":")))


# -- data ------------------------------------------------------------------------------------------------------------


def check_data(settings: CocoSettings) -> tuple[Split, Split]:
    """The two halves of the data.

    Raises:
        UserError: a file or folder is missing, an annotation file is no instances file, lists an image that is not there or uses
            an unknown image or category, or the two files' categories differ.
    """
    root = Path(settings.root)
    training, validation = (check_split(root / f"annotations/instances_{name}.json", root / name) for name in ("train2017", "val2017"))
    if training.categories != validation.categories:
        # the position in this list is the detector's label
        raise UserError(
            f"{training.annotations} and {validation.annotations} do not list the same categories in the same order",
            todo="write both files with one list of categories",
        )
    return training, validation


def check_split(annotations: Path, images: Path) -> Split:
    """One half of the data; see `check_data`."""
    if not images.is_dir():
        raise UserError(f"image folder {images} does not exist", todo="correct `root` or download the data")
    content = read_json(annotations)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise UserError(f"{annotations} is not a COCO instances file", allowed="a dictionary with images, annotations and categories")
    try:
        return _checked(annotations, images, content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{annotations} is not a COCO instances file: an entry lacks {error}", todo="download it again") from error


def _checked(annotations: Path, images: Path, content: dict[str, Any]) -> Split:
    there = {path.name for path in images.iterdir()}
    missing = [image["file_name"] for image in content["images"] if image["file_name"] not in there]
    if missing:
        raise UserError(f"{annotations} lists {len(missing)} images that are not in {images}, e.g. {missing[0]}", todo="download them")
    check_references(annotations, content)
    with_objects = {annotation["image_id"] for annotation in content["annotations"]}
    usable = sum(image["id"] in with_objects and min(image["width"], image["height"]) >= SMALLEST for image in content["images"])
    if not usable:
        raise UserError(f"{annotations} has no image of at least {SMALLEST} x {SMALLEST} px with an object")
    categories = tuple((category["id"], category["name"]) for category in content["categories"])
    return Split(annotations, images, len(content["images"]), usable, categories)


def check_references(path: Path, content: dict[str, Any]) -> None:
    """Every annotation belongs to a listed image and category and has a mask."""
    images, categories = ({entry["id"] for entry in content[kind]} for kind in ("images", "categories"))
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images or annotation["category_id"] not in categories or not annotation.get("segmentation"):
            found = json.dumps({key: annotation.get(key) for key in ("id", "image_id", "category_id")})
            raise UserError(f"{path}: annotation {found} has an unknown image or category, or no segmentation")


# -- the experiment --------------------------------------------------------------------------------------------------


def experiment(settings: CocoSettings, backbone: str, arch: Architecture, training: Split, validation: Split) -> Experiment:
    """Everything in mmdetection's configuration dictionaries."""
    decay = {"rate": settings.layer_decay, "decay_position_embedding": settings.decay_position_embedding}
    optimizer = {"type": "AdamW", "lr": settings.learning_rate, "betas": (0.9, 0.999), "weight_decay": settings.weight_decay}
    iterations = settings.total_iterations(training.usable)
    return Experiment(
        scope="mmdet",
        model=detector(settings, backbone, arch, classes=len(training.categories)),
        optimizer={"optimizer": optimizer, "constructor": "LayerDecayConstructor", "paramwise_cfg": decay},
        schedules=schedules(settings, iterations),
        training=dataset(training, training_pipeline(settings)) | {"filter_cfg": {"filter_empty_gt": True, "min_size": SMALLEST}},
        test=dataset(validation, test_pipeline(settings)) | {"test_mode": True},
        metric={
            "type": "CocoScore",
            "annotations": str(validation.annotations),
            "category_ids": [identity for identity, _ in validation.categories],
        },
        iterations=iterations,
        batch_size=settings.batch_size,
        group_by_aspect=True,
    )


def schedules(settings: CocoSettings, iterations: int) -> list[Config]:
    """Warm-up from a thousandth, and a tenth of the learning rate after each drop."""
    warm = {"type": "LinearLR", "start_factor": 1e-3, "begin": 0, "end": settings.warmup + 1, "by_epoch": False}
    drops = sorted({max(1, round(part * iterations)) for part in settings.lr_drops})
    steps = {"type": "MultiStepLR", "milestones": drops, "gamma": 0.1, "by_epoch": False}
    return [warm, steps] if settings.warmup else [steps]


def detector(settings: CocoSettings, backbone: str, arch: Architecture, *, classes: int) -> Config:
    """Backbone, pyramid, region proposals and heads."""
    cascade = settings.head == "cascade"
    pyramid = {"type": "LevelPyramid" if cascade else "SimplePyramid", "dim": arch.dim, "patch": arch.patch, "channels": settings.channels}
    # sides that every level divides, so that the backbone has nothing to pad and positions stay exact
    divisor = math.lcm(arch.patch, round(strides(arch.patch)[3]))
    stages = STAGES if cascade else STAGES[:1]
    training = [stage_training(settings, overlap) for overlap, _, _ in stages]
    return {
        "type": "CascadeRCNN" if cascade else "MaskRCNN",
        "data_preprocessor": {"type": "DetDataPreprocessor", "pad_mask": True, "pad_size_divisor": divisor, **NORMALIZATION},
        "backbone": vit(settings, backbone, arch),
        "neck": pyramid,
        "rpn_head": proposal_head(settings, arch),
        "roi_head": (cascade_heads if cascade else standard_heads)(settings, arch, classes),
        "train_cfg": {
            "rpn": proposal_training(),
            "rpn_proposal": proposals(settings.proposals),
            "rcnn": training if cascade else training[0],
        },
        "test_cfg": {
            "rpn": proposals(max(1, settings.proposals // 2)),
            "rcnn": {
                "score_thr": SCORE,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": DETECTIONS,
                "mask_thr_binary": 0.5,
            },
        },
    }


def vit(settings: CocoSettings, backbone: str, arch: Architecture) -> Config:
    """The backbone's configuration.

    Raises:
        UserError: levels that the backbone does not have.
    """
    levels = settings.levels or (default_levels(arch.depth) if settings.head == "cascade" else [arch.depth - 1])
    if levels != sorted(levels) or not 0 <= levels[0] <= levels[-1] < arch.depth:
        raise UserError(f"levels {levels} do not fit {arch.name}", allowed=f"ascending block numbers from 0 to {arch.depth - 1}")
    return {
        "type": "DensewalkBackbone",
        "path": backbone,
        "levels": levels,
        "final_norm": settings.final_norm,
        "drop_path": settings.drop_path,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "padding": "corner",
    }


# -- region proposals ------------------------------------------------------------------------------------------------


def proposal_head(settings: CocoSettings, arch: Architecture) -> Config:
    """Three anchors of sizes 32 to 512 at every position of the five levels."""
    return {
        "type": "RPNHead",
        "in_channels": settings.channels,
        "feat_channels": settings.channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": strides(arch.patch),
            "base_sizes": [4, 8, 16, 32, 64],
        },
        "bbox_coder": box_coder((1.0, 1.0, 1.0, 1.0)),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1 / 9, "loss_weight": 1.0},
    }


def proposal_training() -> Config:
    """Which anchors the proposal head learns from."""
    return {
        "assigner": assigner(0.7, 0.3, match_low_quality=True),
        "sampler": sampler(256, 0.5, add_gt_as_proposals=False),
        "allowed_border": 0,
        "pos_weight": -1,
        "debug": False,
    }


def proposals(count: int) -> Config:
    """How many proposals go to the heads."""
    return {"nms_pre": count, "max_per_img": count, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}


# -- heads -----------------------------------------------------------------------------------------------------------


def standard_heads(settings: CocoSettings, arch: Architecture, classes: int) -> Config:
    """Mask R-CNN's: two linear layers for boxes, four convolutions for masks (https://arxiv.org/abs/1703.06870)."""
    box_head = {
        "type": "Shared2FCBBoxHead",
        "in_channels": settings.channels,
        "fc_out_channels": 1024,
        "roi_feat_size": 7,
        "num_classes": classes,
        "bbox_coder": box_coder(STAGES[0][1]),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    return {"type": "StandardRoIHead", "bbox_head": box_head, **shared_heads(settings, arch, classes)}


def cascade_heads(settings: CocoSettings, arch: Architecture, classes: int) -> Config:
    """Three box heads, each refining the boxes of the one before, and three mask heads (https://arxiv.org/abs/1906.09756)."""
    box_heads = [
        {
            "type": "ConvFCBBoxHead",
            "num_shared_convs": 4,
            "num_shared_fcs": 1,
            "in_channels": settings.channels,
            "conv_out_channels": settings.channels,
            "fc_out_channels": 1024,
            "roi_feat_size": 7,
            "num_classes": classes,
            "bbox_coder": box_coder(deviations),
            "reg_class_agnostic": False,
            "reg_decoded_bbox": True,
            "norm_cfg": {"type": "BN"},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 10.0},
        }
        for _, deviations, _ in STAGES
    ]
    weights = [weight for _, _, weight in STAGES]
    stages = {"num_stages": len(STAGES), "stage_loss_weights": weights}
    return {"type": "CascadeRoIHead", **stages, "bbox_head": box_heads, **shared_heads(settings, arch, classes)}


def shared_heads(settings: CocoSettings, arch: Architecture, classes: int) -> Config:
    """Region pooling and the mask head."""
    mask_head = {
        "type": "FCNMaskHead",
        "num_convs": 4,
        "in_channels": settings.channels,
        "conv_out_channels": settings.channels,
        "num_classes": classes,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }
    return {"bbox_roi_extractor": pooling(settings, arch, 7), "mask_roi_extractor": pooling(settings, arch, 14), "mask_head": mask_head}


def pooling(settings: CocoSettings, arch: Architecture, size: int) -> Config:
    """RoIAlign from the level that suits a region's size."""
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0}
    return {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": settings.channels, "featmap_strides": strides(arch.patch)[:4]}


def stage_training(settings: CocoSettings, overlap: float) -> Config:
    """Which regions a stage learns from: a quarter of them overlap an object by at least `overlap`."""
    return {
        "assigner": assigner(overlap, overlap, match_low_quality=False),
        "sampler": sampler(settings.rois_per_image, 0.25, add_gt_as_proposals=True),
        "mask_size": 28,
        "pos_weight": -1,
        "debug": False,
    }


def assigner(positive: float, negative: float, *, match_low_quality: bool) -> Config:
    """Regions and objects by overlap."""
    least = negative if match_low_quality else positive
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def sampler(count: int, positive: float, *, add_gt_as_proposals: bool) -> Config:
    """A random choice of regions."""
    return {
        "type": "RandomSampler",
        "num": count,
        "pos_fraction": positive,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_gt_as_proposals,
    }


def box_coder(deviations: tuple[float, ...]) -> Config:
    """Boxes as offsets from a reference box."""
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(deviations)}


# -- pipelines -------------------------------------------------------------------------------------------------------


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
        {"type": "LoadImageFromFile"},
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
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (settings.long_side, settings.test_short_side), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
