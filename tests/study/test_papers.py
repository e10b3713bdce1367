"""Each paper's study against the figures of its release, and against published.csv."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from densewalk.__main__ import main
from densewalk.data.settings import ImagesSettings
from densewalk.results.published import is_published, published
from densewalk.study.config import Study, load_study
from densewalk.study.runs import TrainedRun
from tests.fixtures.records import of_whole_benchmark, record, typed
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


# (study, row, evaluation, metric) -> the published value that stands beside ours
BESIDE = {
    ("neco", "neco_dinov2r_xr", "incontext_voc", "mIoU_hungarian"): 80.2,
    ("neco", "neco_dinov2r", "incontext_voc", "mIoU_hungarian"): 80.7,
    ("neco", "neco_dinov2r_xr", "incontext_voc_8", "mIoU_hungarian"): 76.4,
    ("neco", "neco_dinov2r", "incontext_voc_8", "mIoU_hungarian"): None,  # no value of a run that keeps its registers
    ("neco", "neco_dinov2r_xr_paper", "incontext_voc", "mIoU_hungarian"): None,
    ("neco", "neco_dinov2r_xr", "incontext_voc", "mIoU"): None,  # the published metric is the matched one
    ("neco", "neco_dinov2r_xr", "clusters_voc_500", "mIoU"): 72.6,
    ("neco", "neco_dinov2r", "clusters_voc_500", "mIoU"): 68.9,
    ("neco", "neco_timetuning", "clusters_voc_500", "mIoU"): 53.1,
    ("neco", "leopart", "clusters_voc_500", "mIoU"): 53.5,
    ("neco", "neco_dino", "linear_voc", "mIoU"): 65.8,
    ("neco", "neco_cribo", "linear_voc", "mIoU"): 72.1,
    ("neco", "neco_dinov2r_xr", "clusters_things_500", "mIoU"): None,  # other masks
    ("neco", "neco_dinov2r_xr", "unsupervised_voc", "mIoU"): None,  # another search for communities
    ("neco", "neco_dinov2r_xr_b14", "linear_ade20k", "mIoU"): 44.9,
    ("dora", "dino_imagenet", "davis", "J&F"): 61.8,
    ("dora", "dino_imagenet", "knn", "top1_k20"): 74.5,
    ("dora", "dino_imagenet", "discovery_voc07", "CorLoc"): 61.9,
    ("dora", "dino_imagenet", "linear", "top1_best"): None,  # its 77.0 is by DINO's recipe
    ("dora", "dora_venice_amsterdam", "linear", "top1_best"): 45.4,
    ("dora", "dora_venice", "ade20k_upernet", "mIoU"): None,  # PooDLe's 35.2 is by PooDLe's protocol
    ("timetuning", "timetuning", "incontext_voc", "mIoU_hungarian"): 62.3,
    ("timetuning", "timetuning_no_teacher", "incontext_voc", "mIoU_hungarian"): None,
    ("timetuning", "timetuning", "clusters_davis", "F"): None,
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_row_of_a_study_shows_its_own_published_value_alone(studies, case):
    study, run, evaluation, metric = case
    plan = studies[f"studies/{study}"]
    settings = plan.evaluations[evaluation].settings
    assert (run, evaluation) in {(name, e) for name, _, e in plan.evaluation_jobs()}
    assert metric in settings.METRICS
    labels = plan.labels_of(run)
    written = record(
        *(run, 0, {metric: 1.0}),
        labels=None if labels is None else labels.model_dump(),
        **of_whole_benchmark(settings.TABLE, settings.dataset),
        published_protocol=settings.published_protocol,
        published_metrics=settings.PUBLISHED_METRICS,
    )
    found = published(typed(written), metric)
    assert (found and found.value) == BESIDE[case]


def paper_tables() -> Iterator[tuple[str, str, str]]:
    """Study, evaluations and table of every line of docs/papers.md that a study gives."""
    study = ""
    for line in (REPOSITORY / "docs" / "papers.md").read_text().splitlines():
        heading = re.match(r"## .*`(studies/\w+)\.yaml`", line)
        study = heading[1] if heading else "" if line.startswith("## ") else study
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if study and len(cells) == 5 and cells[2].startswith("`"):
            yield study, cells[1], cells[2].strip("`")


def test_the_papers_tables_name_what_the_studies_have(studies):
    named: dict[str, set[str]] = {name: set() for name in STUDIES[1:]}
    for study, evaluations, table in paper_tables():
        assert table in studies[study].task_tables, (study, table)
        known = {*studies[study].evaluations, *studies[study].runs}
        names = set(re.findall(r"`(\w+)`", evaluations))
        assert names <= known, (evaluations, table)
        assert table in {studies[study].evaluations[name].settings.TABLE for name in names & studies[study].evaluations.keys()}
        named[study] |= names
    for study, names in named.items():
        assert studies[study].evaluations.keys() <= names, "a line for each evaluation"
