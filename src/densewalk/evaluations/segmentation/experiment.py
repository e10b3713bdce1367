"""A recipe in mmsegmentation's configuration dictionaries."""

from collections import Counter

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.mmlab import experiment as mm
from densewalk.evaluations.mmlab.experiment import Config, Experiment
from densewalk.evaluations.segmentation.data import class_names
from densewalk.evaluations.segmentation.recipes import LinearSettings, SegmentationSettings, UpernetSettings
from densewalk.models.architecture import Shape

STAGE_CHANNELS = 512  # of UPerNet on a hierarchical network, as mmsegmentation has it for ResNet, ConvNeXt and Swin
SHOWN = 4  # predictions in `strip.png`
UNLIMITED = 99_999_999  # a long side that is never reached


def experiment(
    settings: SegmentationSettings, backbone: str, arch: Shape, training: list[Example], validation: list[Example]
) -> Experiment:
    """The whole experiment."""
    if isinstance(settings, LinearSettings):
        settings = settings.fitted(None if mm.is_hierarchical(arch) else arch.multiple)
    optimizer = mm.adamw(settings.learning_rate, settings.weight_decay)
    if isinstance(settings, UpernetSettings):
        model = upernet(settings, backbone, arch)
        optimizer |= mm.layer_decay(settings.layer_decay, decay_position_embedding=settings.decay_position_embedding)
    else:
        assert isinstance(settings, LinearSettings)
        model = linear(settings, backbone, arch)
    crop = (settings.crop, settings.crop)
    # crops from images smaller than the crop are padded
    preprocessor = {"type": "SegDataPreProcessor", "size": crop, "pad_val": 0, "seg_pad_val": 255, **mm.normalization(arch.statistics)}
    window = {"mode": "slide", "crop_size": crop, "stride": (settings.stride, settings.stride)} if settings.slide else {"mode": "whole"}
    # how the views of `test_pipeline` are put together: each size, plain and mirrored, as often as it is named
    weights = [n for n in Counter(test_sides(settings)).values() for _ in ("plain", "mirrored")]
    return Experiment(
        scope="mmseg",
        model=model | {"data_preprocessor": preprocessor, "test_cfg": window},
        optimizer=optimizer,
        schedules=schedules(settings),
        training=dataset(settings, training, training_pipeline(settings)),
        test=dataset(settings, validation, test_pipeline(settings)) | {"test_mode": True},
        metric={"type": "SegmentationScore", "classes": len(settings.rule.values), "shown": SHOWN},
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        test_model={"type": "AveragedViews", "weights": weights} if settings.multi_scale else None,
    )


def linear(settings: LinearSettings, backbone: str, arch: Shape) -> Config:
    """The frozen backbone with a linear head."""
    depth = len(arch.level_dims)
    levels = mm.pyramid_levels(arch) if settings.layers == "spread" else list(range(depth - settings.layers, depth))
    if levels[0] < 0 or len(set(levels)) < len(levels):
        raise UserError(f"layers {settings.layers}: {arch.name} has {depth} blocks", todo="lower layers")
    dims = mm.level_dims(arch, levels)
    many = len(levels) > 1
    head = {
        "type": "LinearHead",
        "batch_norm": settings.batch_norm,
        "in_channels": dims if many else dims[0],
        "in_index": list(range(len(levels))) if many else 0,
        "input_transform": "resize_concat" if many else None,
        "channels": sum(dims),
        **prediction(settings),
    }
    frozen = mm.backbone(backbone, arch, levels, final_norm=settings.final_norm, padding="center", frozen=True)
    return {"type": "EncoderDecoder", "backbone": frozen, "decode_head": head}


def upernet(settings: UpernetSettings, backbone: str, arch: Shape) -> Config:
    """The trainable backbone with UPerNet; a ViT's maps are first brought to the strides that a hierarchical network's have."""
    options = {"drop_path": settings.drop_path, "gradient_checkpointing": settings.gradient_checkpointing}
    levels = settings.levels or mm.pyramid_levels(arch)
    norm = {"type": "BN"}
    hierarchical = mm.is_hierarchical(arch)
    if hierarchical and levels != mm.stage_levels(arch):
        raise UserError(f"levels {levels} of {arch.name}", allowed=f"its last stages, {mm.stage_levels(arch)}", todo="leave `levels` out")
    dims = mm.level_dims(arch, levels)
    rescales = [] if hierarchical else list(mm.scales(arch.stride))
    neck = {"neck": {"type": "Feature2Pyramid", "embed_dim": arch.dim, "rescales": rescales, "norm_cfg": norm}} if rescales else {}
    return {
        "type": "EncoderDecoder",
        "backbone": mm.backbone(backbone, arch, levels, final_norm=settings.final_norm, padding="center", **options),
        **neck,
        "decode_head": {
            "type": "UPerHead",
            "in_channels": dims,
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": settings.channels or (STAGE_CHANNELS if hierarchical else arch.dim),
            "dropout_ratio": 0.1,
            "norm_cfg": norm,
            **prediction(settings),
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": dims[2],
            "in_index": 2,
            "channels": settings.auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0.1,
            "norm_cfg": norm,
            **prediction(settings, settings.auxiliary_weight),
        },
    }


def prediction(settings: SegmentationSettings, weight: float = 1.0) -> Config:
    """The classes and loss of a head. out_channels is given so that two classes are not taken for one and its complement."""
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}
    classes = len(settings.rule.values)
    return {"num_classes": classes, "out_channels": classes, "align_corners": False, "loss_decode": loss}


def schedules(settings: SegmentationSettings) -> list[Config]:
    """lr(t) = lr (1 - t / iterations) (1 - (1 - t / warmup)(1 - 1e-6)), the last factor while t < warmup.

    A cosine has (1 + cos(pi t / iterations)) / 2 in place of (1 - t / iterations). mmengine's schedulers multiply what they find, so two
    that begin together give the product.
    """
    whole = {"eta_min": 0.0, "begin": 0, "end": settings.iterations + 1, "by_epoch": False}
    decay: Config = {"type": "PolyLR", "power": 1.0, **whole}
    if isinstance(settings, LinearSettings) and settings.resolved().schedule == "cosine":
        decay = {"type": "CosineAnnealingLR", "T_max": settings.iterations, **whole}
    return [*mm.warm_up(settings.warmup, 1e-6), decay]


def dataset(settings: SegmentationSettings, examples: list[Example], pipeline: list[Config]) -> Config:
    """Pairs of files as a data set."""
    pairs = [(str(example.image), str(example.mask)) for example in examples]
    return {"type": "LabelledImages", "pairs": pairs, "classes": class_names(settings), "pipeline": pipeline}


def training_pipeline(settings: SegmentationSettings) -> list[Config]:
    """Loading and augmentation."""
    scale = (settings.long_side or UNLIMITED, settings.short_side)
    return [
        {"type": "ReadImage"},
        {"type": "LoadClasses", "rule": settings.rule},
        {"type": "RandomResize", "scale": scale, "ratio_range": settings.scale_range, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (settings.crop, settings.crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]


def test_pipeline(settings: SegmentationSettings) -> list[Config]:
    """Loading; the mask keeps its own size."""
    load, mask, pack = {"type": "ReadImage"}, {"type": "LoadClasses", "rule": settings.rule}, {"type": "PackSegInputs"}
    if not settings.multi_scale:
        scale = (settings.long_side or UNLIMITED, settings.short_side)
        return [load, {"type": "Resize", "scale": scale, "keep_ratio": True}, mask, pack]
    sizes = [{"type": "Resize", "scale": (UNLIMITED, side), "keep_ratio": True} for side in dict.fromkeys(test_sides(settings))]
    mirrored = [{"type": "RandomFlip", "prob": probability} for probability in (0.0, 1.0)]
    return [load, {"type": "TestTimeAug", "transforms": [sizes, mirrored, [mask], [pack]]}]


def test_sides(settings: SegmentationSettings) -> list[int]:
    """Short sides of the test images with `multi_scale`, one for each ratio."""
    return [max(settings.crop, int(ratio * settings.short_side)) for ratio in settings.test_ratios]
