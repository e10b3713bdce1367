"""Labels that claim a published row, and studies that contradict them."""

import copy

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.study.config import parse_study

DORA_RUN = {"method": "dora", "init": "random", "arch": "vit_small_patch16", "data": ["venice"], "settings": {"compat": "released"}}
NECO_RUN = {"method": "neco", "init": "dinov2_vits14_reg", "data": ["coco"]}
TIMET_RUN = {"method": "timetuning", "init": "dino_vits16", "data": ["youtube_vos"], "settings": {"compat": "released", "steps": 2200}}
SOURCES = {
    "videos": {
        **{name: {"source": f"data/walking_tours/{name}.mp4"} for name in ("venice", "zurich")},
        "own": {"source": "data/own.mp4"},
        "hour": {"source": "data/walking_tours/venice.mp4", "usable_seconds": [[0, 3600]]},
        "slow": {"source": "data/walking_tours/venice.mp4", "fps": 1},
    },
    "images": {
        "coco": {"source": "data/coco/train2017"},
        "elsewhere": {"source": "/datasets/coco_2017"},
        "imagenet": {"source": "data/imagenet/train"},
        "youtube_vos": {"source": "data/YouTube-VOS/train/JPEGImages", "layout": "sequences"},
    },
}


def labels(method, init="", arch="ViT-S/16", data="WT_Venice"):
    return {"method": method, "init": init, "arch": arch, "pretraining_data": data}


def study_of(run, **sections):
    return parse_study({"study": "s", **copy.deepcopy(SOURCES), "runs": {"row": run}, **sections})


NECO_LABELS = labels("NeCo", "DINOv2R", "ViT-S/14", "COCO (post-training)")
TIMET_LABELS = labels("TimeT", "DINO", data="YouTube-VOS (post-training)")
XR = {"preset": "small/neco_dinov2r_xr", "compat": "released"}
CONTRADICTED = {
    "the paper's variant": (
        {**DORA_RUN, "settings": {"compat": "paper"}, "labels": labels("DoRA")},
        ("has compat released, the study paper",),
    ),
    "another k": (
        {**DORA_RUN, "settings": {"compat": "released", "objects": 4}, "labels": labels("DoRA")},
        ("has objects 3, the study 4",),
    ),
    "another batch": (
        {**DORA_RUN, "settings": {"compat": "released", "batch_size": 32}, "labels": labels("DoRA")},
        ("has batch_size 48 or 128, the study 32",),
    ),
    "a shorter training": (
        {**DORA_RUN, "settings": {"compat": "released", "epochs": 10}, "labels": labels("DoRA")},
        ("has epochs 100.0, the study 10.0",),
    ),
    "another walk": ({**DORA_RUN, "data": ["zurich"], "labels": labels("DoRA")}, ("has data venice, the study zurich",)),
    "one walk of ten": ({**DORA_RUN, "labels": labels("DoRA", data="WT_all")}, ("has data amsterdam, ", "the study venice, nothing")),
    "an hour of the walk": ({**DORA_RUN, "data": ["hour"], "labels": labels("DoRA")}, ("has data venice, the study a part of hour",)),
    "a frame a second": ({**DORA_RUN, "data": ["slow"], "labels": labels("DoRA")}, ("has data venice, the study a part of slow",)),
    "images": (
        {**DORA_RUN, "method": "dino", "settings": {"epochs": 100}, "data": ["coco"], "labels": labels("DINO")},
        ("has data venice, the study coco, which is no video",),
    ),
    "another method": ({**DORA_RUN, "labels": labels("DINO")}, ("has method dino, the study dora",)),
    "another architecture": (
        {**DORA_RUN, "arch": "vit_base_patch16", "labels": labels("DoRA")},
        ("has arch ViT-S/16, the study ViT-B/16",),
    ),
    "registers kept": (
        {**NECO_RUN, "settings": {**XR, "registers": "keep"}, "labels": NECO_LABELS},
        ("has registers drop, the study keep",),
    ),
    "registers dropped": (
        {**NECO_RUN, "settings": XR, "labels": {**NECO_LABELS, "method": "NeCo (registers kept)"}},
        ("has registers keep, the study drop",),
    ),
    "another initial backbone": (
        {**NECO_RUN, "init": "dinov2_vits14", "settings": XR, "labels": NECO_LABELS},
        ("has init DINOv2R, the study DINOv2",),
    ),
    "an unpublished initial backbone": (
        {**NECO_RUN, "init": "dino_vits16_venice", "settings": {"preset": "small/neco_dino", "compat": "released"}}
        | {"labels": labels("NeCo", "DINO", data="COCO (post-training)")},
        ("has init's data ImageNet-1k, the study WT_Venice",),
    ),
    "other images": (
        {**NECO_RUN, "data": ["imagenet"], "settings": XR, "labels": NECO_LABELS},
        ("has data COCO as layout pictures, the study imagenet",),
    ),
    "ten steps on a video": (
        {**TIMET_RUN, "data": ["venice"], "labels": TIMET_LABELS},
        ("has data YouTube-VOS as layout sequences, the study venice",),
    ),
    "too few steps": (
        {**TIMET_RUN, "settings": {"compat": "released", "steps": 10}, "labels": TIMET_LABELS},
        ("has steps none or 2200, the study 10",),
    ),
    "random weights": (
        {"method": "none", "init": "random", "arch": "vit_small_patch16", "labels": labels("DoRA")},
        ("has method DoRA, the",),
    ),
    "another file": (
        {"method": "none", "init": "neco_dinov2r_vits14", "labels": NECO_LABELS},
        ("'method': 'NeCo', ", "'method': 'NeCo (registers kept)', "),
    ),
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_labels_that_the_study_contradicts_are_refused_with_both_values(case):
    run, messages = CONTRADICTED[case]
    with pytest.raises(UserError) as error:
        study_of(run)
    for message in ("runs.row.labels: the published row ", *messages, "; to do: correct one of the two, or give labels that no published"):
        assert message in str(error.value)
    claimless = {**run, "labels": {**run["labels"], "method": "mine"}}
    assert study_of(claimless).labels_of("row").method == "mine", "labels that no published row has are free"


@pytest.mark.parametrize(
    "run",
    [
        {**DORA_RUN, "labels": labels("DoRA")},
        {**DORA_RUN, "settings": {"compat": "released", "batch_size": 128, "linear_sinkhorn": False}, "labels": labels("DoRA")},
        {**DORA_RUN, "data": ["own"], "labels": labels("DoRA")},  # which may be the walk under another name
        {**NECO_RUN, "settings": {**XR, "teacher_graph": False}, "labels": NECO_LABELS},
        {**NECO_RUN, "data": ["elsewhere"], "settings": XR, "labels": NECO_LABELS},
        {**TIMET_RUN, "labels": TIMET_LABELS},
        {**TIMET_RUN, "settings": {"compat": "released"}, "labels": TIMET_LABELS},
    ],
)
def test_labels_that_the_study_bears_out_are_taken(run):
    assert study_of(run).labels_of("row") is not None


def test_a_file_s_labels_are_those_of_its_address():
    url = "https://huggingface.co/FunAILab/NeCo/resolve/main/vit-small/dinov2-architectures/neco_on_dinov2r_vit14_model.ckpt"
    entry = {"file": "own.ckpt", "arch": "vit_small_patch14_reg4", "url": url, "labels": NECO_LABELS}
    run = {"method": "none", "init": "own"}
    with pytest.raises(
        UserError, match=r"checkpoints\.own\.labels: the published row NeCo, .* has labels .*registers kept.*, the study .*'NeCo'"
    ):
        study_of(run, checkpoints={"own": entry})
    with pytest.raises(UserError, match=r"checkpoints\.own\.labels: .* has arch ViT-S/14, the study ViT-B/14"):
        study_of(run, checkpoints={"own": {**entry, "url": None, "arch": "vit_base_patch14_reg4"}})


def test_a_run_on_an_unlabelled_run_claims_no_published_row():
    start = {**TIMET_RUN, "settings": {"compat": "paper", "steps": 2200}}
    row = {**NECO_RUN, "init": "start", "settings": {"preset": "small/neco_timetuning", "compat": "released"}}
    config = {
        "study": "s",
        **SOURCES,
        "runs": {"start": start, "row": {**row, "labels": labels("NeCo", "TimeT", data="COCO (post-training)")}},
    }
    with pytest.raises(UserError, match=r"runs\.row\.labels: .* has init TimeT, the study start, a run without labels"):
        parse_study(config)


def test_check_refuses_the_file_with_one_line(tmp_path, caplog):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"study": "s", **SOURCES, "runs": {"row": CONTRADICTED["registers kept"][0]}}))
    assert main(["check", str(path)]) == UserError.exit_status
    assert "has registers drop, the study keep" in caplog.text
    assert "Traceback" not in caplog.text
