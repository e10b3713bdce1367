"""Each paper's study against the figures of its release, and labels that a study contradicts."""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.data.settings import ImagesSettings
from densewalk.results.published import is_published
from densewalk.study.config import Study, load_study, parse_study
from densewalk.study.runs import TrainedRun
from tests.fixtures.studies import REPOSITORY, planned

STUDIES = ("config", "studies/dora", "studies/neco", "studies/timetuning")
COCO_IMAGES = 118_287  # train2017
VENICE_CLIPS = 390_000 - 8 * 60  # DoRA's WTDataloader.py:85: one for each start frame of a video of 390,000
VENICE_FRAMES = 390_000
YOUTUBE_VOS_VIDEOS = 2776  # TimeT_clean's train.txt


@dataclass(frozen=True)
class Release:
    """What a release says of a training. rates: learning rates of one step at their peak. more: other settings of ours, resolved."""

    samples: int
    batch: int
    steps: int
    rates: tuple[float, ...]
    labels: tuple[str, str, str, str]
    more: dict[str, Any] = field(default_factory=dict)


# README: 8 GPUs of 6 clips, 5e-4 * 48 / 256, 100 epochs of 8115 steps; utils.py:27-79, main.py:403-568
DORA = Release(
    *(VENICE_CLIPS, 48, 811_500, (9.375e-5,), ("DoRA", "", "ViT-S/16", "WT_Venice")),
    {
        "frames": 8,
        "spacing_seconds": 1.0,
        "objects": 3,
        "global_size": 224,
        "local_size": 112,
        "local_crops": 6,
        "global_views": 1,
        "out_dim": 65536,
        "min_lr": 1e-5,
        "warmup_epochs": 10,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "clip_grad": 3.0,
        "teacher_momentum": 0.996,
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
        "teacher_temperature_start": 0.04,
        "norm_last_layer": False,
        "drop_path": 0.1,
        "sinkhorn_epsilon": 0.05,
        "sinkhorn_iterations": 30,
        "loss_carry_over": True,
        "skip_first_local_crop": True,
        "hard_masks": True,
        "batch_threshold": True,
        "n_fold_assignment": True,
    },
)
# DINO's README: 8 GPUs of 64, 5e-4 * 512 / 256, 100 epochs
DINO = Release(VENICE_FRAMES, 512, 76_100, (1e-3,), ("DINO", "", "ViT-S/16", "WT_Venice"), {"local_crops": 8, "local_size": 96})
# README: 22 steps an epoch, 100 epochs, batch 128; time_tuning.py, models.py
TIMETUNING = Release(
    *(YOUTUBE_VOS_VIDEOS, 128, 2_200, (1e-5, 1e-4), ("TimeT", "DINO", "ViT-S/16", "YouTube-VOS (post-training)")),
    {
        "frames": 4,
        "sampling": "uniform",
        "size": 224,
        "trainable_blocks": 2,
        "head_widths": [1024, 1024, 512, 256],
        "prototypes": 200,
        "sinkhorn_epsilon": 0.05,
        "sinkhorn_iterations": 10,
        "queue": 0,
        "context": 7,
        "radius": 6,
        "top_k": 5,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "momentum": 0.995,
        "teacher": True,
        "swapped_momentum": True,
        "red_std": 0.228,
    },
)


def neco(batch: int, steps: int, backbone_rate: float, *labels: str, **more: Any) -> Release:
    """A configuration of NeCo's release, experiments/configs/models; common: head 1e-4, weight decay 0.04 to 0.5, bitonic, 100."""
    common = {"weight_decay": 0.04, "weight_decay_end": 0.5, "network": "bitonic", "student_steepness": 100, "teacher_steepness": 100}
    common |= {"teacher_momentum": 0.9995, "aligned_patches": 7, "similarity_order": True, "unequal_heads": True, "trainable_blocks": None}
    method, init, arch = labels
    return Release(COCO_IMAGES, batch, steps, (backbone_rate, 1e-4), (method, init, arch, "COCO (post-training)"), {**common, **more})


S14 = {"global_size": 518, "local_size": 98, "queue": 8192, "half_filled_queue": True}
S16 = {"global_size": 224, "local_size": 98, "queue": 0, "cut_remainder": True, "registers": "keep"}
NECO_XR = neco(64, 46_200, 1e-5, "NeCo", "DINOv2R", "ViT-S/14", **S14, registers="drop")
NECO_DINO, NECO_TIMET = (neco(45, 131_400, 1e-5, "NeCo", init, "ViT-S/16", **S16) for init in ("DINO", "TimeT"))
RELEASES = {
    "config": {
        "dora_venice": DORA,
        "dino_venice": DINO,
        "timetuning": TIMETUNING,
        "neco_dino": NECO_DINO,
        "neco_dinov2r": NECO_XR,
        "neco_timetuning": NECO_TIMET,
    },
    "studies/dora": {
        "dora_venice": DORA,
        "dora_venice_amsterdam": Release(**{**vars(DORA), "labels": (*DORA.labels[:3], "WT_Amsterdam")}),
        "dora_all": Release(**{**vars(DORA), "labels": (*DORA.labels[:3], "WT_all")}),
        "dino_venice": DINO,
    },
    "studies/neco": {
        "neco_dinov2r_xr": NECO_XR,
        "neco_dinov2r": neco(64, 46_200, 1e-5, "NeCo (registers kept)", "DINOv2R", "ViT-S/14", **S14, registers="keep"),
        "neco_dinov2": neco(64, 46_200, 1e-5, "NeCo", "DINOv2", "ViT-S/14", **S14, registers="keep"),
        "neco_dino": NECO_DINO,
        "neco_timetuning": NECO_TIMET,
        **{f"neco_{i.lower()}": neco(45, 131_400, 1e-5, "NeCo", i, "ViT-S/16", **S16) for i in ("iBOT", "Leopart", "CrIBo")},
        "neco_dinov2r_xr_b14": neco(16, 184_800, 1e-6, "NeCo", "DINOv2R", "ViT-B/14", **S14, registers="drop"),
    },
    "studies/timetuning": {"timetuning": TIMETUNING},
}


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {name: load_study(REPOSITORY / f"{name}.yaml") for name in STUDIES}


@pytest.mark.parametrize(("study", "run"), [(study, run) for study, runs in RELEASES.items() for run in runs])
def test_a_run_has_the_figures_of_its_release(studies, study, run):
    found, release = studies[study].runs[run], RELEASES[study][run]
    settings = found.settings.resolved()
    assert settings.batch_size == release.batch
    assert settings.total_steps(release.samples)[0] == release.steps
    rates = (
        (settings.lr,) if found.method in ("dora", "dino") else (settings.backbone_lr, getattr(settings, "head_lr", None) or settings.lr)
    )
    scale = settings.batch_size / 256 if found.method in ("dora", "dino") else 1
    assert tuple(rate * scale for rate in rates) == pytest.approx(release.rates)
    assert tuple(studies[study].labels_of(run).model_dump().values()) == release.labels
    assert {name: getattr(settings, name) for name in release.more} == release.more


@pytest.mark.parametrize("study", STUDIES)
def test_every_training_with_published_labels_is_in_the_table(studies, study):
    labelled = {name: studies[study].labels_of(name) for name, run in studies[study].runs.items() if isinstance(run, TrainedRun)}
    assert {name for name, labels in labelled.items() if labels and is_published(labels)} == RELEASES[study].keys()


def test_dora_s_rows_stand_side_by_side_and_its_ablations_change_objects_masking_and_video(studies):
    study = studies["studies/dora"]
    data = {name: run.data for name, run in study.runs.items() if isinstance(run, TrainedRun)}
    for pair in (("dora_venice", "dora_venice_paper", "dino_venice"), ("dora_all", "dora_all_paper", "dino_all")):
        assert len({tuple(data[name]) for name in pair}) == 1, "on the same frames"
    assert data["dora_all"] == list(study.videos)
    assert len(study.videos) == 10
    compat = {name: study.runs[name].settings.compat for name in ("dora_venice", "dora_venice_paper", "dora_all", "dora_all_paper")}
    assert list(compat.values()) == ["released", "paper", "released", "paper"]
    assert {study.runs[f"dora_venice_k{k}"].settings.objects for k in (1, 2, 4, 6)} == {1, 2, 4, 6}
    assert study.runs["dora_venice_soft_masks"].settings.resolved().hard_masks is False
    assert [data[f"dora_venice_{city}"] for city in ("amsterdam", "bangkok")] == [["amsterdam"], ["bangkok"]]


def test_time_tuning_trains_and_scores_disjoint_videos_of_youtube_vos(studies):
    for study in (studies["studies/timetuning"], studies["config"]):
        images = study.images["youtube_vos"]
        scored = study.evaluations["clusters_youtube_vos"].settings
        assert isinstance(images, ImagesSettings)
        assert (images.layout, Path(images.sequence_list).name, scored.sequence_list) == (
            *("sequences", "timetuning_train.txt", "timetuning_val.txt"),
        )
        assert Path(images.sequence_list).parent == Path(scored.root)
    clusters = studies["studies/timetuning"].evaluations
    assert {clusters[n].settings.frames for n in ("clusters_youtube_vos", "clusters_davis")} == {4, 16}


def test_neco_has_its_tables_columns(studies):
    found = {e.settings.published_protocol for e in studies["studies/neco"].evaluations.values()}
    fractions = {f"dense NN, fraction {part}" for part in ("1", "1/8", "1/64", "1/128")}
    clusters = {"k-means K=GT Hungarian", "k-means K=300 many-to-one", "k-means K=500 many-to-one"}
    assert found == {*fractions, *clusters, "linear 100x100 masks", None}
    assert {run.init for name, run in studies["studies/neco"].runs.items() if run.method == "neco" and run.settings.queue == 0} == {
        *("dino_vits16", "ibot_vits16", "timet_vits16", "leopart_vits16", "cribo_vits16"),
    }


@pytest.mark.parametrize("study", STUDIES)
def test_a_paper_s_study_is_checked_and_planned_without_data(study, studies, tmp_path, capsys):
    path = REPOSITORY / f"{study}.yaml"
    assert not main(["check", str(path)])
    assert "is a study of" in capsys.readouterr().out
    jobs, results = planned(tmp_path, "all", "--configfile", str(path)), studies[study].results
    assert {f"{results}/{run}/s{seed}/{e}.json" for run, seed, e in studies[study].evaluation_jobs()} <= jobs
    assert {f"{results}/tables/{table}.csv" for table in studies[study].task_tables} <= jobs
    assert all(job.startswith(f"{results}/") for job in jobs)


def test_studies_of_one_folder_write_to_folders_of_their_own(studies):
    folders = [study.results for study in studies.values()]
    assert len(set(folders)) == len(folders)


def paper_tables() -> list[tuple[str, str]]:
    """Evaluations and file of every line of docs/papers.md that a study gives."""
    lines = (REPOSITORY / "docs" / "papers.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return [(line[1], line[2].strip("`")) for line in cells if len(line) == 5 and line[2].startswith("`studies/")]


def test_the_papers_tables_name_what_the_studies_have(studies):
    named: dict[str, set[str]] = {name: set() for name in STUDIES[1:]}
    for evaluations, file in paper_tables():
        study, table = file.removesuffix(".csv").split("/tables/")
        assert table in studies[study].task_tables, file
        known = {*studies[study].evaluations, *studies[study].runs}
        names = [name for name in re.findall(r"`(\w+)`", evaluations) if not name.startswith("_")]
        assert set(names) <= known, (evaluations, file)
        named[study] |= set(names)
    for study, names in named.items():
        assert studies[study].evaluations.keys() <= names, "a line for each evaluation"


# -- labels that claim a published row -------------------------------------------------------------------------------

DORA_RUN = {"method": "dora", "init": "random", "arch": "vit_small_patch16", "data": ["venice"], "settings": {"compat": "released"}}
NECO_RUN = {"method": "neco", "init": "dinov2_vits14_reg", "data": ["coco"]}
TIMET_RUN = {"method": "timetuning", "init": "dino_vits16", "data": ["youtube_vos"], "settings": {"compat": "released", "steps": 2200}}
SOURCES = {
    "videos": {name: {"source": f"data/walking_tours/{name}.mp4"} for name in ("venice", "zurich")} | {"own": {"source": "data/own.mp4"}},
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
    "images": ({**DORA_RUN, "data": ["coco"], "labels": labels("DoRA")}, ("has data venice, the study coco, which is no video",)),
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
