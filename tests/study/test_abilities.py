"""A network that cannot give what an evaluation needs is refused before anything runs, by names."""

import pytest

from densewalk.core.errors import UserError
from densewalk.models.architecture import abilities_of, known_architecture
from densewalk.study.config import parse_study


def study(arch, protocol, settings=None, **run):
    evaluation = {"protocol": protocol, "settings": {"root": "d", "dataset": "d", **(settings or {})}}
    return {
        "study": "s",
        "videos": {"v": {"source": "v.mp4"}},
        "checkpoints": {"net": {"file": "net.pth", "arch": arch}},
        "runs": {"vit": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}, "cnn": {"method": "none", "init": "net", **run}},
        "evaluations": {"e": evaluation},
    }


@pytest.mark.parametrize(
    ("arch", "protocol", "settings", "needed"),
    [
        ("timm/resnet50", "discovery", {"layout": "voc"}, "keys of a last block's attention"),
        ("timm/swin_tiny_patch4_window7_224", "discovery", {"layout": "voc", "method": "attention"}, "the attention of a CLS token"),
        ("timm/convnext_tiny.dinov3_lvd1689m", "linear", {}, "CLS and patch tokens of its last blocks"),
        ("timm/resnet50", "unsupervised_segmentation", {"layout": "voc"}, "the attention of a CLS token"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_by_name(arch, protocol, settings, needed):
    with pytest.raises(UserError) as error:
        parse_study(study(arch, protocol, settings))
    assert f"evaluations.e: {protocol} needs {needed}, which cnn ({arch}) has not; to do: name in `runs` those that have it (vit)" in str(
        error.value
    )
    allowed = study(arch, protocol, settings)
    allowed["evaluations"]["e"]["runs"] = ["vit"]
    parse_study(allowed)


def test_pairs_that_can_be_pass():
    for arch in ("timm/resnet50", "timm/swin_tiny_patch4_window7_224"):
        for protocol in ("davis", "knn", "ade20k_upernet", "coco"):
            parse_study(study(arch, protocol))
        parse_study(study(arch, "linear", {"blocks": [1], "average_pool": [False]}))


def test_only_plain_vision_transformers_are_trained():
    trained = study("timm/resnet50", "davis", method="dino", data=["v"])
    trained["runs"]["cnn"]["settings"] = {"preset": "small_video"}
    with pytest.raises(UserError, match=r"runs.cnn.init: dino trains plain vision transformers only, not timm/resnet50"):
        parse_study(trained)


def test_statistics_of_pixels_and_stride_are_in_the_hash():
    plain = parse_study(study("timm/resnet50", "davis")).run_spec("cnn", 0).hash
    seen = {plain}
    for more in ({"stride": 16}, {"mean": [0.5] * 3, "std": [0.5] * 3}):
        changed = study("timm/resnet50", "davis")
        changed["checkpoints"]["net"] |= more
        seen.add(parse_study(changed).run_spec("cnn", 0).hash)
    assert len(seen) == 3
    half = study("timm/resnet50", "davis")
    half["checkpoints"]["net"]["mean"] = [0.5] * 3
    with pytest.raises(UserError, match="give mean and std together"):
        parse_study(half)


def test_abilities_are_known_by_name():
    assert "keys" in abilities_of("timm/vit_small_patch16_224.dino")
    assert "keys" in abilities_of("vit_small_patch14_reg4")
    assert abilities_of("timm/resnet50") == {"dense", "pooled", "levels"}
    with pytest.raises(ValueError, match="did you mean timm/resnet50"):
        known_architecture("timm/resnet5o")
