"""Landmark retrieval: the released scores, formulas as loops, whole evaluations of a few images, and bad ground truth."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.retrieval import evaluate as retrieval
from densewalk.evaluations.retrieval.data import read_landmarks
from densewalk.evaluations.retrieval.scores import CUTS, DIFFICULTIES, average_precision, positions, precision_at, rank
from densewalk.evaluations.retrieval.settings import RetrievalSettings
from tests.fixtures.dense import MeanColors
from tests.fixtures.helpers import shared
from tests.fixtures.landmarks import ground_truth, write_landmarks

RECORDED = "parity/eval_retrieval.npz"


def settings_for(root, **changes):
    return RetrievalSettings(root=str(root), dataset="squares", **{"layout": "roxford5k", "size": 64, **changes})


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [0, 1])
def test_rankings_and_scores_equal_the_release(case):
    values = np.load(shared(RECORDED))
    database, queries = (torch.from_numpy(values[f"{case}/{name}"]) for name in ("database", "queries"))
    rankings = np.stack([rank(database, query) for query in queries])
    np.testing.assert_array_equal(rankings.T, values[f"{case}/ranks"])
    for difficulty, (positives, junk) in DIFFICULTIES.items():
        found = []
        for q, ranking in enumerate(rankings):
            wanted, removed = (np.concatenate([values[f"{case}/gnd/{q}/{kind}"] for kind in kinds]) for kinds in (positives, junk))
            found.append(positions(ranking, wanted, removed))
        precisions = np.array([average_precision(p) for p in found])
        np.testing.assert_allclose(100 * precisions, values[f"{case}/{difficulty}/AP"], rtol=0, atol=1e-9)
        assert 100 * np.nanmean(precisions) == pytest.approx(float(values[f"{case}/{difficulty}/mAP"]), abs=1e-9)
        at = [100 * np.nanmean([precision_at(p, cut) for p in found]) for cut in CUTS]
        np.testing.assert_allclose(at, values[f"{case}/{difficulty}/mP"], rtol=0, atol=1e-9)


def loop_ap(ranking, positives, junk):
    """The definition, one image of the ranking after the other."""
    total, seen, place = 0.0, 0, 0
    for image in ranking:
        if image in junk:
            continue
        if image in positives:
            before = seen / place if place else 1.0
            total += (before + (seen + 1) / (place + 1)) / 2
            seen += 1
        place += 1
    return total / seen


def test_average_precision_is_its_definition():
    generator = np.random.default_rng(0)
    for _ in range(30):
        ranking = generator.permutation(20)
        chosen = generator.permutation(20)
        positives, junk = chosen[: generator.integers(1, 8)], chosen[10 : 10 + generator.integers(0, 6)]
        found = average_precision(positions(ranking, positives, junk))
        assert found == pytest.approx(loop_ap(ranking.tolist(), positives.tolist(), junk.tolist()), abs=1e-12)


def test_junk_is_removed_and_the_best_ranking_scores_one():
    assert positions(np.array([4, 2, 0, 3, 1]), np.array([0, 1]), np.array([4, 3])).tolist() == [1, 2]
    assert average_precision(np.array([0, 1, 2])) == 1
    assert precision_at(np.array([0, 1]), 10) == 1, "no further than the last positive"
    assert np.isnan(average_precision(np.array([], dtype=int)))


def test_equally_similar_images_keep_their_order():
    assert rank(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]), torch.tensor([0.0, 1])).tolist() == [1, 3, 0, 2]


# -- features ----------------------------------------------------------------------------------------------------------


class Moments(MeanColors):
    """Mean and standard deviation of each channel, as the reference values' stand-in for a network."""

    def __init__(self, multiple=1):
        super().__init__()
        self.multiple, self.sizes = multiple, []

    def require_size(self, height, width):
        self.sizes.append((height, width))

    def pooled(self, x):
        return torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], dim=1)


def test_several_scales_equal_the_release(tmp_path):
    values = np.load(shared(RECORDED))
    network = Moments()
    found = retrieval.multi_scale(network, torch.from_numpy(values["multi_scale/x"]), [1.0, 2**-0.5, 0.5], tmp_path)
    np.testing.assert_allclose(found.numpy(), values["multi_scale/out"], rtol=0, atol=1e-4)
    assert network.sizes == [tuple(size) for size in values["multi_scale/sizes"].tolist()]


def test_images_are_fitted():
    wide = Image.fromarray(np.full((30, 120, 3), 200, np.uint8))
    assert retrieval.fit(wide, 60, "thumbnail").size == (60, 15)
    assert retrieval.fit(wide, 240, "thumbnail").size == (120, 30), "never enlarged"
    square = np.asarray(retrieval.fit(wide, 60, "square"))
    assert square.shape == (60, 60, 3)
    assert (square[:22] == 0).all()
    assert (square[23:37] == 200).all()
    assert (square[38:] == 0).all()
    assert np.asarray(retrieval.fit(wide, 240, "square")).shape == (240, 240, 3)


def test_what_is_left_over_by_whole_patches_is_cut_off_below_and_on_the_right(tmp_path):
    network = Moments(multiple=16)
    image = torch.zeros(1, 3, 40, 50)
    image[..., 32:, :], image[..., 48:] = 9, 9
    assert retrieval.multi_scale(network, image, [1.0], tmp_path).abs().max() == 0
    with pytest.raises(UserError, match=r"narrow\.jpg has 5x4 pixels after it was resized"):
        retrieval.multi_scale(network, image, [0.1], tmp_path / "narrow.jpg")


# -- whole evaluations -------------------------------------------------------------------------------------------------


def evaluate(root, out, monkeypatch, **changes):
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    return retrieval.evaluate(settings_for(root, **changes), root, Job(out=out, state=out))


@pytest.mark.parametrize("preset", ["dino", "dinov3"])
def test_landmarks_of_one_color_are_found_first(tmp_path, monkeypatch, preset):
    write_landmarks(tmp_path)
    result = evaluate(tmp_path, tmp_path / "out", monkeypatch, preset=preset)
    assert {name: result.metrics[f"mAP_{name}"] for name in DIFFICULTIES} == {"easy": 100, "medium": 100, "hard": 100}
    assert result.metrics["mP10_hard"] == 100
    assert result.metrics["mAP_medium_constant"] < 100
    assert (result.n, result.unit, result.details["images"]) == (2, "queries", 9)
    assert result.details["hard"]["queries"] == 2
    assert result.units is not None
    assert len(result.units.ids) == 2
    assert (tmp_path / "out/strip.png").is_file()
    assert read_json(tmp_path / "out/ground_truth.json") == ground_truth()


def test_queries_without_an_image_to_find_leave_the_mean(tmp_path, monkeypatch):
    truth = ground_truth()
    truth["gnd"][0]["hard"] = []
    write_landmarks(tmp_path, truth=truth)
    result = evaluate(tmp_path, tmp_path / "out", monkeypatch)
    assert result.metrics["mAP_hard"] == 100
    assert result.details["hard"]["queries"] == 1
    truth["gnd"][1]["hard"] = []
    (tmp_path / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    result = evaluate(tmp_path, tmp_path / "out", monkeypatch)
    assert np.isnan(result.metrics["mAP_hard"])
    assert "mAP_hard" not in result.units.statistics


def test_wrong_rankings_score_less(tmp_path, monkeypatch):
    truth = ground_truth()
    truth["qimlist"].reverse()
    write_landmarks(tmp_path, truth=truth)
    assert evaluate(tmp_path, tmp_path / "out", monkeypatch).metrics["mAP_medium"] < 50


def test_queries_are_cut_to_their_box(tmp_path):
    write_landmarks(tmp_path)
    query = tmp_path / "roxford5k/jpg/tower_query.jpg"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[8:40, 16:48] = 250
    Image.fromarray(picture).save(query, quality=100)
    whole, cut = (
        retrieval.Fitted([(query, box)], settings_for(tmp_path), MeanColors().statistics)[0] for box in (None, (16.0, 8.0, 48.0, 40.0))
    )
    assert whole.shape == (3, 48, 64)
    assert cut.shape == (3, 32, 32)
    assert cut.min() > whole.mean()


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0.0, 0.0, 64.0, 48.0), (48, 64)),
        ((-1.0, -0.6, 65.0, 48.7), (48, 64)),  # at most a pixel beyond the border, where nothing black is added
        ((3.4, 3.6, 10.4, 9.6), (6, 7)),
    ],
)
def test_a_box_is_cut_at_the_border(tmp_path, box, size):
    truth = ground_truth()
    truth["gnd"][0]["bbx"] = list(box)
    write_landmarks(tmp_path, truth=truth)
    settings = settings_for(tmp_path, crop_query=True)
    query = retrieval.find_landmarks(settings).queries[0]
    Image.fromarray(np.full((48, 64, 3), 250, np.uint8)).save(query.path, quality=100)
    cut = retrieval.Fitted([(query.path, query.box)], settings, MeanColors().statistics)[0]
    assert cut.shape == (3, *size)
    assert (cut.amin((1, 2)) > 1).all(), "a black pixel"


def test_the_ground_truth_s_hash_does_not_depend_on_how_it_is_written(tmp_path):
    found = []
    for i, protocol in enumerate((0, 2, 4)):
        truth = ground_truth()
        if i:
            truth["gnd"] = [{**entry, "easy": np.array(entry["easy"]), "bbx": np.array(entry["bbx"])} for entry in truth["gnd"]]
        write_landmarks(tmp_path / str(i), protocol=protocol, truth=truth)
        found.append(read_landmarks(tmp_path / str(i), "roxford5k").sha256)
    assert len(set(found)) == 1


# -- bad ground truth --------------------------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it calls a shell."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def without(key):
    return lambda truth: truth.pop(key)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("imlist"), "is no ground truth of retrieval"),
        (lambda t: t["imlist"].append("tower_0"), "imlist names tower_0 twice"),
        (lambda t: t["imlist"].__setitem__(0, 5), r"imlist\[0\] is no name but int"),
        (lambda t: t["imlist"].__setitem__(0, "../../etc/passwd"), "no file inside its folder"),
        (lambda t: t["gnd"].pop(), "has 2 queries in qimlist, but 1 in gnd"),
        (lambda t: t["gnd"][0].pop("hard"), r"gnd\[0\] \(tower_query\): hard is no list"),
        (lambda t: t["gnd"][0].update(easy=[0, 99]), "easy holds 99; allowed: 0 to 8"),
        (lambda t: t["gnd"][0].update(easy=[-1]), "easy holds -1"),
        (lambda t: t["gnd"][0].update(easy=["a"]), "is no list of at most 9 numbers"),
        (lambda t: t["gnd"][0].update(easy=np.array([0.5])), "is no list of at most 9 numbers"),
        (lambda t: t["gnd"][0].update(hard=[0]), "names an image twice"),
        (lambda t: t["gnd"][0].update(bbx=[1, 2, 3]), "bbx is no box"),
        (lambda t: t["gnd"][0].update(bbx=[9, 2, 3, 4]), "is empty"),
        (lambda t: t["qimlist"].__setitem__(0, "tower_0"), "is in imlist, too: it would find itself"),
        (lambda t: [entry.update(easy=[], hard=[]) for entry in t["gnd"]], "no query has an image to find"),
        (lambda t: t.update(more=Hostile("touch executed")), r"names posix\.system, which is no plain data"),
    ],
)
def test_bad_ground_truth_is_refused_before_the_backbone_is_loaded(tmp_path, monkeypatch, damage, said):
    write_landmarks(tmp_path)
    monkeypatch.chdir(tmp_path)
    truth = ground_truth()
    damage(truth)
    (tmp_path / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(UserError, match=said) as error:
        retrieval.evaluate(settings_for(tmp_path), tmp_path / "no.safetensors", Job(out=tmp_path / "out", state=tmp_path))
    assert "gnd_roxford5k.pkl" in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([4, 4, 600, 440], r"the box 4, 4, 600, 440 leaves the image of 64x48, .*bridge_query\.jpg; allowed: left, top, right, bottom"),
        ([4, 4, 40, 60], "leaves the image"),  # x and y swapped
        ([-500, 4, 60, 44], "leaves the image"),
        ([4, 4, 60, 49.1], "leaves the image"),
        ([70, 4, 80, 44], "leaves the image"),
        ([4, 48, 60, 49], r"the box 4, 48, 60, 49 holds no pixel of the image of 64x48"),
        ([10.1, 4, 10.4, 44], "holds no pixel"),
        (None, "is missing; allowed: a box for every query; to do: leave out `crop_query`"),
    ],
)
def test_a_query_that_cannot_be_cut_is_refused_before_the_backbone_is_loaded(tmp_path, box, said):
    truth = ground_truth()
    truth["gnd"][1]["bbx"] = box
    write_landmarks(tmp_path, truth=truth)
    with pytest.raises(UserError, match=rf"gnd_roxford5k\.pkl: gnd\[1\] \(bridge_query\): bbx.*{said}"):
        retrieval.evaluate(settings_for(tmp_path, crop_query=True), tmp_path / "no", Job(out=tmp_path / "out", state=tmp_path))
    assert len(retrieval.find_landmarks(settings_for(tmp_path)).queries) == 2, "boxes of queries that are not cut do not count"


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_query_that_is_turned_has_no_box(tmp_path, orientation):
    write_landmarks(tmp_path)
    path, tags = tmp_path / "roxford5k/jpg/tower_query.jpg", Image.Exif()
    tags[0x0112] = orientation
    Image.open(path).save(path, exif=tags)
    said = (
        rf"tower_query\.jpg has the EXIF orientation {orientation}, and nothing tells whether .*\.pkl: gnd\[0\] \(tower_query\): bbx fits"
    )
    with pytest.raises(UserError, match=said):
        retrieval.find_landmarks(settings_for(tmp_path, crop_query=True))
    assert len(retrieval.find_landmarks(settings_for(tmp_path)).queries) == 2


def test_a_missing_image_is_named(tmp_path):
    write_landmarks(tmp_path)
    (tmp_path / "roxford5k/jpg/bridge_1.jpg").unlink()
    with pytest.raises(UserError, match=r"roxford5k/jpg/bridge_1\.jpg does not exist"):
        retrieval.find_landmarks(settings_for(tmp_path))
    with pytest.raises(UserError, match=r"rparis6k does not exist.*gnd_rparis6k\.pkl"):
        retrieval.find_landmarks(settings_for(tmp_path, layout="rparis6k"))


def test_settings():
    dinov3 = RetrievalSettings(root=".", dataset="ROxford5k", layout="roxford5k", preset="dinov3")
    assert (dinov3.fit, dinov3.size) == ("square", 224)
    assert dinov3.published_protocol == "CLS cosine 224 (DINOv3)"
    dino = RetrievalSettings(root=".", dataset="ROxford5k", layout="roxford5k")
    assert dino.published_protocol is None
    assert dino.protocol != dinov3.protocol
    for changes in ({"size": 512}, {"crop_query": True}, {"scales": [1.0, 0.5]}, {"fit": "thumbnail"}, {"dataset": "squares"}):
        changed = RetrievalSettings.model_validate(dinov3.model_dump() | changes)
        assert changed.published_protocol is None
        assert changed.protocol != dinov3.protocol or "dataset" in changes
