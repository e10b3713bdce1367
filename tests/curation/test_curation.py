"""Choosing pictures: plain loops in float64, and a real video that stands still, is cut and moves on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.curation import select as curation
from densewalk.curation.select import Groups, choose, curate, group_duplicates, retrieve
from densewalk.curation.settings import CurationSettings, RetrievalSettings
from densewalk.data.check_images import check_images
from densewalk.data.image_folder import open_image_folder
from densewalk.data.receipts import CuratedReceipt, VideoReceipt, read_receipt, write_receipt
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.data.sources import Source
from densewalk.data.stretches import segments
from densewalk.data.video.clips import VideoClips
from densewalk.data.video.encode import write_video
from densewalk.data.video.transcode import transcode
from densewalk.jobs import curate as curate_job
from densewalk.jobs import inputs as job_inputs
from densewalk.jobs import train as train_job
from densewalk.jobs.prepare import prepare_images
from densewalk.methods.dino.method import Dino
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora.method import Dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.ops.clustering import kmeans
from densewalk.study.config import parse_study
from densewalk.training.execution import Execution
from tests.fixtures.helpers import shared
from tests.fixtures.studies import planned, snakemake, write_study


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Every search crosses the borders of tiles."""
    monkeypatch.setattr(curation, "TILE", 7)


def clumps(count: int, seed: int, dim: int = 6) -> Tensor:
    """Unit vectors, many of them near another one."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(1, count // 3), dim, generator=rng)
    x = centers[torch.randint(len(centers), (count,), generator=rng)] + 0.15 * torch.randn(count, dim, generator=rng)
    return F.normalize(x, dim=1)


# -- duplicates ------------------------------------------------------------------------------------------------------


def plain_duplicates(x: np.ndarray, threshold: float) -> list[int]:
    """Union-find, pair by pair."""
    parent = list(range(len(x)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if sum(a * b for a, b in zip(x[i], x[j], strict=True)) >= threshold:
                a, b = sorted((find(i), find(j)))
                parent[b] = a
    return [find(i) for i in range(len(x))]


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97, 0.995])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_duplicates_are_those_of_plain_union_find(count, threshold):
    x = clumps(count, seed=count).double()
    first, _, _ = group_duplicates(x, threshold)
    assert first.tolist() == plain_duplicates(x.numpy(), threshold)


def test_the_most_similar_other_image_is_that_of_plain_loops():
    x = clumps(23, seed=0).double()
    _, neighbor, similarity = group_duplicates(x, None)
    for i in range(23):
        others = {j: float(x[i] @ x[j]) for j in range(23) if j != i}
        assert neighbor[i] == max(others, key=others.__getitem__)
        assert similarity[i] == pytest.approx(max(others.values()), abs=1e-6)


def test_a_chain_is_one_group_though_its_ends_differ():
    """0 - 1 - 2 ... of 20 degrees each, given in an order in which groups must be joined late; one picture stands apart."""
    order = [0, 8, 4, 2, 6, 1, 7, 3, 5]
    angles = torch.tensor([20.0 * i for i in order] + [270.0]).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    first, _, _ = group_duplicates(x, float(np.cos(np.deg2rad(21))))
    assert first.tolist() == [0] * 9 + [9]
    assert float(x[0] @ x[1]) < 0


@given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=6), max_size=8))
def test_joined_groups_are_those_of_a_union_find(steps):
    groups, named = Groups(20), list(range(20))
    for pairs in steps:
        groups.join(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
        for i, j in pairs:
            first, other = sorted((named[i], named[j]))
            named = [first if name == other else name for name in named]
        assert groups.first().tolist() == named


def test_no_threshold_joins_nothing_and_a_pool_of_one_has_no_neighbor():
    assert group_duplicates(clumps(20, seed=1), None)[0].tolist() == list(range(20))
    assert [v.tolist() for v in group_duplicates(torch.ones(1, 1), 0.5)] == [[0], [-1], [-2.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.floats(0.5, 0.99), st.randoms())
def test_the_order_changes_nothing_but_which_of_a_group_is_first(count, seed, threshold, random):
    x = clumps(count, seed).double()
    order = list(range(count))
    random.shuffle(order)
    straight, shuffled = group_duplicates(x, threshold)[0], group_duplicates(x[order], threshold)[0]
    groups = {frozenset(np.flatnonzero(straight == f).tolist()) for f in straight}
    assert groups == {frozenset(order[i] for i in np.flatnonzero(shuffled == f)) for f in shuffled}
    assert all(f == min(np.flatnonzero(shuffled == f)) for f in shuffled)


# -- retrieval -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_samples_are_the_nearest_of_each_reference(neighbours):
    x, references = clumps(30, seed=2).double(), clumps(5, seed=3).double()
    kept = set()
    for r in references:
        kept |= set(sorted(range(30), key=lambda i: -sum(a * b for a, b in zip(r.tolist(), x[i].tolist(), strict=True)))[:neighbours])
    mask = retrieve(x, references, RetrievalSettings(source="x", neighbours=neighbours), seed=0)
    assert set(np.flatnonzero(mask).tolist()) == kept


@pytest.mark.parametrize("least", [1, 2, 4])
def test_clusters_are_kept_whole_that_enough_references_fall_into(least):
    x, references = clumps(40, seed=4).double(), clumps(9, seed=5).double()
    wanted = RetrievalSettings(source="x", by="clusters", clusters=6, least_references=least)
    centers = kmeans(x, 6, seed=3).tolist()

    def cluster(point: list[float]) -> int:
        return min(range(6), key=lambda c: sum((a - b) ** 2 for a, b in zip(point, centers[c], strict=True)))

    hits = [sum(cluster(r) == c for r in references.tolist()) for c in range(6)]
    assert retrieve(x, references, wanted, seed=3).tolist() == [hits[cluster(p)] >= least for p in x.tolist()]
    assert any(h >= least for h in hits)
    assert not all(h >= least for h in hits)


def test_duplicates_go_first_and_only_what_is_left_is_retrieved():
    """Were duplicates among the two nearest, the third picture would be missed."""
    angles = torch.tensor([0.0, 1.0, 2.0, 40.0, 180.0]).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    wanted = CurationSettings(data=["v"], backbone="b", duplicates=0.99, retrieve=RetrievalSettings(source="r", neighbours=2))
    choice = choose(x, x[:1], wanted)
    assert choice.kept.tolist() == [True, False, False, True, False]
    assert choice.unique.tolist() == [True, False, False, True, True]
    assert choice.reference_similarity == pytest.approx(angles.cos().numpy(), abs=1e-6)


# -- from a video to what is trained on ------------------------------------------------------------------------------

FPS, STILL, MOVING = 4.0, 10, 14


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> VideoReceipt:
    """2.5 seconds of a picture that hardly changes, a cut, and 3.5 seconds of another one passing by."""
    folder = tmp_path_factory.mktemp("walk")
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 120, (8, 8, 3)), np.ones((8, 8, 1)))
    street = np.kron(rng.integers(100, 255, (8, 64, 3)), np.ones((8, 8, 1)))
    frames = [still + rng.integers(0, 4, still.shape) for _ in range(STILL)] + [street[:, 32 * i : 32 * i + 64] for i in range(MOVING)]
    write_video(folder / "source.mp4", (f.astype(np.uint8) for f in frames), FPS)
    receipt = transcode(VideoSettings(source=str(folder / "source.mp4")), folder / "walk.mp4")
    assert receipt.cuts == (STILL,)
    return receipt


def curated(walk: VideoReceipt, out: Path, sources: list[Source] | None = None, **wanted) -> CuratedReceipt:
    backbone = create("vit_micro_patch16", seed=0).eval()
    chosen = CurationSettings.model_validate({"data": ["walk"], "backbone": "start", "spacing_seconds": 1 / FPS, "size": 64, **wanted})
    receipt = curate(chosen, sources or [Source("walk", walk)], backbone, backbone.cls, out, workers=0)
    write_receipt(out, receipt)
    return receipt


def test_of_what_stands_still_one_frame_is_kept_and_of_what_moves_all(walk, tmp_path):
    receipt = curated(walk, tmp_path / "pool.json", duplicates=0.999)
    moving = list(range(STILL, STILL + MOVING))
    assert receipt.sources["walk"].kept == (0, *moving)
    assert (receipt.pictures, receipt.kept, receipt.duplicates, receipt.largest_group) == (24, 15, 9, 10)
    table = pd.read_csv(tmp_path / "pool.csv")
    dropped = table[table["reason"] == "duplicate"]
    assert dropped["number"].tolist() == list(range(1, STILL))
    assert set(dropped["duplicate_of"]) == {"walk 0:00:00"}
    assert (dropped["similarity"] > 0.999).all()
    assert Image.open(tmp_path / "pool.png").width > 650  # a pair beside each other
    written = json.loads((tmp_path / "pool.json").read_text())
    assert written["sources"]["walk"] == {**walk.model_dump(mode="json"), "kept": [0, *moving]}
    assert read_receipt(tmp_path / "pool.json") == receipt


def test_training_sees_kept_frames_only(walk, tmp_path):
    curated(walk, tmp_path / "pool.json", duplicates=0.999)
    sources = job_inputs.read_sources(tmp_path / "pool.json", "pool")
    kept = [0, *range(STILL, STILL + MOVING)]
    frames = Dino.dataset(DinoSettings(epochs=1), sources).images.datasets[0]
    assert [frames.frame_indices(i) for i in range(len(frames))] == [[k] for k in kept]
    clips = Dora.dataset(DoraSettings(epochs=1, frames=3, spacing_seconds=0.5), sources).clips.datasets[0]
    assert [clips.frame_indices(i) for i in range(len(clips))] == [[k, k + 2, k + 4] for k in kept if k + 4 < 24]
    receipt = sources[0].receipt
    assert segments(receipt.model_copy(update={"kept": (3, 13)}), 1.0, 4) == [(0, 5), (13, 17)]
    with pytest.raises(UserError, match="no frame that the curation keeps begins a clip of 2"):
        VideoClips(walk.model_copy(update={"kept": (20,)}), 8, 0.25)


def test_images_and_frames_are_chosen_together_and_by_references(walk, tmp_path):
    """The reference is a frame of the still part: it is found, and of the folder only its copy."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "references").mkdir()
    frame = Image.fromarray(VideoClips(walk, 1, 1.0).read([4])[0].permute(1, 2, 0).numpy())
    frame.save(tmp_path / "references" / "wanted.png")
    frame.save(tmp_path / "pictures" / "b.png")
    Image.new("RGB", (40, 90), (250, 250, 0)).save(tmp_path / "pictures" / "a.png")
    pictures = check_images(ImagesSettings(source=str(tmp_path / "pictures")), "pictures")
    sources = [Source("walk", walk), Source("pictures", pictures)]
    retrieve = {"source": str(tmp_path / "references"), "neighbours": 2}
    receipt = curated(walk, tmp_path / "pool.json", sources, retrieve=retrieve)
    assert receipt.sources["pictures"].kept == (1,)
    assert receipt.sources["walk"].kept == (4,)
    assert receipt.not_retrieved == 24
    folder = open_image_folder(receipt.sources["pictures"])
    assert folder.names == ["b.png"]
    frame.save(tmp_path / "pictures" / "c.png")
    with pytest.raises(UserError, match="has changed since its images were chosen"):
        open_image_folder(receipt.sources["pictures"])


def test_what_cannot_be_chosen_from_is_one_clear_error(walk, tmp_path):
    with pytest.raises(UserError, match="size 60 is no multiple of the patch size"):
        curated(walk, tmp_path / "a.json", size=60, duplicates=0.9)
    with pytest.raises(UserError, match="nowhere does not exist"):
        curated(walk, tmp_path / "a.json", retrieve={"source": str(tmp_path / "nowhere")})
    broken = create("vit_micro_patch16", seed=0).eval()
    wanted = CurationSettings(data=["walk"], backbone="b", duplicates=0.9, size=64)
    with pytest.raises(UserError, match="features of the pool are not finite"):
        curate(wanted, [Source("walk", walk)], broken, lambda x: broken.cls(x) * torch.nan, tmp_path / "a.json", workers=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_drive_loses_its_wait_at_the_red_light(tmp_path):
    source = shared("data/videos/camvid_city_drive_171s.mp4")
    settings = VideoSettings(source=str(source), short_side=128)
    drive = transcode(settings, tmp_path / "drive.mp4")
    receipt = curated(drive, tmp_path / "pool.json", spacing_seconds=1.0, duplicates=0.99)
    kept = receipt.sources["walk"].kept
    assert [k for k in kept if 63 <= k <= 95] == [63], "the car stands from second 63 to 95"
    assert receipt.kept > 120, "and drives otherwise"


# -- the study -------------------------------------------------------------------------------------------------------

TINY = {"steps": 1, "batch_size": 2, "global_size": 32, "local_size": 16, "local_crops": 1, "out_dim": 16, "warmup_epochs": 0}


def study_with(**curation) -> dict:
    run = {"init": "random", "arch": "vit_nano_patch16", "settings": TINY}
    return {
        "study": "curated",
        "images": {"photos": {"source": "photos"}, "others": {"source": "photos"}},
        "checkpoints": {"start": {"file": "start.safetensors", "arch": "vit_nano_patch16"}},
        "curations": {"pool": {"data": ["photos"], "backbone": "start", "size": 32, "duplicates": 0.99, **curation}},
        "runs": {
            "chosen": {"method": "dino", "data": ["pool"], **run},
            "heir": {"method": "dino", "data": ["others"], "settings": TINY, "init": "chosen"},
            "apart": {"method": "dino", "data": ["others"], **run},
        },
        "execution": {"device": "cpu", "workers": 0},
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(1)
    for i in range(4):
        picture = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    Image.fromarray(picture).save(tmp_path / "photos" / "again.png")
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "start.safetensors", run="start", config_hash="0")
    return tmp_path


def test_a_run_is_trained_on_what_the_curation_kept(folder, monkeypatch):
    monkeypatch.chdir(folder)
    study = parse_study(study_with())
    prepare_images(ImagesSettings(source="photos"), Path("photos.json"))
    curate_job.curate(study.curation_spec("pool"), Path("start.safetensors"), [Path("photos.json")], Path("pool.json"), study.execution)
    assert json.loads(Path("pool.json").read_text())["sources"]["photos"]["kept"] == [0, 1, 2, 3], "not again.png, 3.png's twin"
    monkeypatch.setattr(train_job.loop, "train", lambda method, data, **_: pytest.skip("") if len(data) != 4 else _stop())
    with pytest.raises(StopIteration):
        train_job.make_backbone(
            study.run_spec("chosen", 0), None, [Path("pool.json")], Path("state"), Path("out"), Execution(device="cpu", workers=0)
        )


def _stop():
    raise StopIteration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duplicates": None}, "curations.pool: set duplicates, retrieve or both"),
        ({"data": ["walk"]}, "curations.pool.data: 'walk' is neither a video nor a folder of images; allowed: photos, others"),
        ({"data": ["photos", "photos"]}, "curations.pool.data: 'photos' stands there twice"),
        ({"backbone": "stort"}, r"'stort' is neither a checkpoint nor a run, did you mean start\?; allowed: start, chosen, heir, apart"),
        ({"backbone": "chosen"}, "a circle, chosen -> chosen"),
        ({"backbone": "heir"}, "a circle, chosen -> heir -> chosen"),
        ({"backbone": "apart", "seed": 3}, "curations.pool.seed: apart has no seed 3"),
    ],
)
def test_a_wrong_curation_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        parse_study(study_with(**change))


def test_a_curation_enters_the_hash_of_what_is_trained_on_it_only():
    before, after = parse_study(study_with()), parse_study(study_with(duplicates=0.9))
    assert before.run_spec("chosen", 0) != after.run_spec("chosen", 0)
    assert before.run_spec("heir", 0) != after.run_spec("heir", 0)
    assert before.run_spec("apart", 0) == after.run_spec("apart", 0)
    with_run = parse_study(study_with(backbone="apart"))
    assert with_run.curation_spec("pool").backbone.hash


@pytest.mark.slow
@pytest.mark.workflow
def test_the_rule_curates_and_reruns_descendants_only(folder):
    write_study(folder, study_with())
    runs = {f"results/{run}/s0/backbone.safetensors" for run in ("chosen", "heir", "apart")}
    wanted = [f"results/{run}/s0/backbone.safetensors" for run in ("heir", "apart")]
    assert planned(folder, *wanted) == {"results/data/photos.json", "results/data/others.json", "results/data/pool.json", *runs}
    snakemake(folder, "results/data/pool.json")
    assert pd.read_csv(folder / "results" / "data" / "pool.csv")["reason"].tolist() == ["kept"] * 4 + ["duplicate"]
    content = (folder / "start.safetensors").read_bytes()
    export_backbone(create("vit_nano_patch16", seed=1), folder / "start.safetensors", run="start", config_hash="0")
    assert "results/data/pool.json" in planned(folder, "results/data/pool.json"), "other weights compare the images"
    (folder / "start.safetensors").write_bytes(content)
    assert planned(folder, "results/data/pool.json") == set()
    write_study(folder, study_with(duplicates=0.9))
    assert planned(folder, *wanted) == {"results/data/pool.json", "results/data/others.json", *runs}, "not photos.json"
