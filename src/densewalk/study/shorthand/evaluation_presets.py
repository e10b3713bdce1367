"""Lists of evaluations that a study names instead of writing them: `evaluations: {preset: model_card}`."""

from typing import Any

from densewalk.core.text.complaints import did_you_mean

MODEL_CARD: dict[str, dict[str, Any]] = {
    "knn_imagenet": {"protocol": "knn", "settings": {"root": "data/imagenet", "dataset": "ImageNet-1k"}},
    "linear_imagenet": {"protocol": "linear", "settings": {"root": "data/imagenet", "dataset": "ImageNet-1k"}},
    "linear_ade20k": {"protocol": "ade20k_linear", "settings": {"root": "data/ade/ADEChallengeData2016", "dataset": "ADE20K"}},
    "linear_ade20k_dinov3": {
        "protocol": "ade20k_linear",
        "settings": {"root": "data/ade/ADEChallengeData2016", "dataset": "ADE20K", "preset": "dinov3"},
    },
    "depth_nyu": {
        "protocol": "depth",
        "settings": {"root": "data/nyu", "dataset": "NYUv2", "preset": "dinov3", "compat": "released"},
    },
    "davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS-2017", "compat": "released"}},
    "davis_dinov3": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS-2017", "preset": "dinov3_m"}},
    "correspondence_spair": {
        "protocol": "correspondence",
        "settings": {"root": "data/SPair-71k", "dataset": "SPair-71k", "readout": "probe3d"},
    },
    "correspondence_navi": {
        "protocol": "geometric_correspondence",
        "settings": {"root": "data/navi_v1", "dataset": "NAVI", "preset": "dinov3"},
    },
    "retrieval_oxford": {
        "protocol": "retrieval",
        "settings": {"root": "data", "dataset": "ROxford5k", "layout": "roxford5k", "preset": "dinov3"},
    },
    "discovery_voc12": {
        "protocol": "discovery",
        "settings": {"root": "data/VOCdevkit/VOC2012", "dataset": "VOC12", "layout": "voc", "method": "tokencut"},
    },
}
"""What model cards report of a backbone without changing it, as far as it is evaluated here. Data lie where `densewalk data` puts them."""
PRESETS = {"model_card": MODEL_CARD}
SCHEMA: dict[str, Any] = {
    "properties": {"preset": {"enum": [*PRESETS], "description": "A list of evaluations; one that is written here has its name's place."}}
}
"""Of the key `preset`, beside names of evaluations."""


def expand_evaluations(section: Any) -> Any:
    """The section `evaluations` with those of its preset, in a study that is not yet checked; what the study itself writes wins.

    Raises:
        ValueError: an unknown preset.
    """
    preset = section.get("preset") if isinstance(section, dict) else None
    if not isinstance(preset, str):
        return section
    if preset not in PRESETS:
        raise ValueError(f"evaluations.preset: '{preset}' is unknown{did_you_mean(preset, PRESETS)}; allowed: {', '.join(PRESETS)}")
    own = {name: evaluation for name, evaluation in section.items() if name != "preset"}
    return {**PRESETS[preset], **own}
