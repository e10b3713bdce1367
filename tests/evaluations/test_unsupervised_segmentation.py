"""Fully unsupervised segmentation: each formula against plain loops, the whole on features that are the answer, bad data."""

import json
import math
from itertools import chain, permutations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.overcluster import evaluate as overcluster
from densewalk.evaluations.overcluster.settings import OverclusterSettings
from densewalk.evaluations.unsupervised_segmentation import evaluate as module
from densewalk.evaluations.unsupervised_segmentation import foreground as cbfe
from densewalk.evaluations.unsupervised_segmentation.communities import cooccurrence
from densewalk.evaluations.unsupervised_segmentation.evaluate import cluster_foreground, count, evaluate, find_objects, match
from densewalk.evaluations.unsupervised_segmentation.foreground import (
    Split,
    choose_threshold,
    cluster_patches,
    cluster_precisions,
    jaccard,
    with_attention,
)
from densewalk.evaluations.unsupervised_segmentation.settings import UnsupervisedSegmentationSettings
from densewalk.models.feature_cache import FeatureCache
from densewalk.models.loading import load
from tests.fixtures.dense import write_backbone, write_masks, write_voc


def settings_of(root=".", layout="masks", **changes):
    own = {"images": "images", "masks": "masks", "num_classes": 4, "val_every": 2, "val_offset": 1, "train_every": 2}
    small = {"input_size": 64, "mask_size": 8, "iterations": 20, "restarts": 2, "repeats": 2, "community_repeats": 2}
    few = {"foreground_clusters": 4, "community_clusters": 3}
    return UnsupervisedSegmentationSettings(
        **{"root": str(root), "dataset": "toy", "layout": layout, **(own if layout == "masks" else {}), **small, **few, **changes}
    )


def job_in(folder, **changes):
    return Job(out=folder / "out", state=folder / "state", **changes)


def random_split(seed=0, images=3, side=6):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(images, side, side, 5, generator=generator)
    attended = torch.rand(images, side, side, generator=generator) < 0.4
    masks = torch.randint(0, 5, (images, 8, 8), generator=generator)
    return Split(points, attended, masks)


# -- the foreground ----------------------------------------------------------------------------------------------------


def test_precisions_against_their_loop():
    split = random_split()
    assigned = torch.randint(0, 6, split.attended.shape, generator=torch.Generator().manual_seed(1))
    assigned[0][assigned[0] == 2] = 3  # cluster 2 occurs in two of three images, 6 and 7 in none
    expected = []
    for k in range(8):
        shares = []
        for labels, mask in zip(assigned.tolist(), split.attended.tolist(), strict=True):
            cells = [inside for label, inside in zip(chain(*labels), chain(*mask), strict=True) if label == k]
            if cells:
                shares.append(sum(cells) / len(cells))
        expected.append(sum(shares) / len(shares) if shares else 0.0)
    assert cluster_precisions(assigned, split.attended, 8).tolist() == pytest.approx(expected, abs=1e-12)


def jaccard_by_loops(foreground, masks, background, ignore):
    values = []
    for cells, mask in zip(foreground.tolist(), masks.tolist(), strict=True):
        both = either = 0
        for i, row in enumerate(mask):
            for j, label in enumerate(row):
                if label == ignore:
                    continue
                found, truth = cells[i * len(cells) // len(mask)][j * len(cells[0]) // len(row)], label != background
                both, either = both + (found and truth), either + (found or truth)
        values.append(both / either if either else 1.0)
    return sum(values) / len(values)


@pytest.mark.parametrize(("background", "ignore"), [(0, None), (0, 4), (2, 4)])
def test_jaccard_against_its_loop(background, ignore):
    split = random_split()
    settings = settings_of(num_classes=5, background=background, ignore=ignore)
    assert float(jaccard(settings, split.attended, split.masks).mean()) == pytest.approx(
        jaccard_by_loops(split.attended, split.masks, background, ignore), abs=1e-12
    )
    nothing = torch.full_like(split.masks, background)
    assert (jaccard(settings, torch.zeros_like(split.attended), nothing) == 1.0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_against_its_loop(seed):
    split = random_split(seed)
    settings = settings_of(num_classes=5, ignore=4, foreground_clusters=20)
    assigned = cluster_patches(settings, split, 0)
    precision = cluster_precisions(assigned, split.attended, 20).tolist()
    ascending = sorted(range(20), key=lambda k: precision[k])
    best = None
    for cut in range(11, 16):  # 55 to 75 % of 20
        chosen = set(ascending[cut:])
        foreground = torch.tensor([[[k in chosen for k in row] for row in image] for image in assigned.tolist()])
        value = jaccard_by_loops(foreground, split.masks, 0, 4)
        if best is None or value > best[0]:
            best = (value, precision[ascending[cut]])
    assert choose_threshold(settings, split, 0) == pytest.approx(round(best[1] / 0.05) * 0.05)


def test_clusters_are_spherical():
    """Points of one direction are one cluster, however long."""
    directions = torch.eye(5)[:4].repeat_interleave(9, 0)
    lengths = torch.linspace(0.1, 30, 36)[torch.randperm(36, generator=torch.Generator().manual_seed(0))]
    split = Split(
        (directions * lengths[:, None]).view(1, 6, 6, 5), torch.zeros(1, 6, 6, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.int64)
    )
    assigned = cluster_patches(settings_of(), split, 0).flatten().tolist()
    assert [len(set(assigned[9 * k : 9 * k + 9])) for k in range(4)] == [1] * 4
    assert len(set(assigned)) == 4


# -- parts and objects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistyped", [False, True])
def test_cooccurrence_against_its_loop(mistyped):
    """Both directions, distance 2, diagonals twice; itself, the background and the border left out; images weigh the same."""
    labels = torch.randint(0, 5, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    labels[1][labels[1] == 4] = 0
    offsets = []
    for distance in (1, 2):
        for eighth in range(8):
            angle = 4 * math.pi / 3 if mistyped and eighth == 5 else eighth * math.pi / 4
            offsets.append((round(distance * math.sin(angle)), round(distance * math.cos(angle))))
    assert offsets.count((1, 1)) == 2
    assert offsets.count((0, 2)) == 1
    assert (offsets.count((-1, -1)), offsets.count((-2, -1))) == ((1, 1) if mistyped else (2, 0))
    totals, counts = np.zeros((6, 6)), np.zeros(6)
    for image in labels.tolist():
        met = np.zeros((6, 6))
        for i in range(5):
            for j in range(7):
                for down, right in offsets:
                    if 0 <= i + down < 5 and 0 <= j + right < 7 and image[i][j] and image[i + down][j + right]:
                        met[image[i][j] - 1, image[i + down][j + right] - 1] += 1
        for k in range(6):
            met[k, k] = 0
            if met[k].sum():
                totals[k] += met[k] / met[k].sum()
                counts[k] += 1
    expected = totals / np.maximum(counts, 1)[:, None]
    assert counts.tolist() == [3, 3, 3, 2, 0, 0]
    found = cooccurrence(labels, 6, mistyped_angle=mistyped)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert not found.diagonal().any()
    np.testing.assert_allclose(found[:4].sum(1), 1, atol=1e-12)


def test_a_cluster_that_meets_itself_often_is_linked_to_its_neighbor_all_the_same(monkeypatch):
    """Two large squares side by side share one border: most of each one's neighbors are its own, and count for nothing."""
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[0, :, :6], labels[0, :, 6:] = 1, 2
    np.testing.assert_allclose(cooccurrence(labels, 2), [[0, 1], [1, 0]])
    monkeypatch.setattr(module, "cluster_foreground", lambda *_: labels)
    joined = settings_of(community_clusters=2, communities=1, edge_threshold=0.9)
    assert len(find_objects(joined, random_split(), labels > 0, 0).unique()) == 1


def test_the_mistyped_angle_follows_compat(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "cluster_foreground", lambda *_: torch.zeros(1, 2, 2, dtype=torch.int64))
    monkeypatch.setattr(module, "cooccurrence", lambda *_, **changes: (seen.append(changes), np.zeros((2, 2)))[1])
    for compat in ("paper", "released"):
        settings = settings_of(community_clusters=2, compat=compat).resolved()
        find_objects(settings, random_split(), torch.ones(1, 2, 2, dtype=torch.bool), 0)
    assert seen == [{"mistyped_angle": False}, {"mistyped_angle": True}]


def test_parts_of_one_object_become_one(monkeypatch):
    """Clusters 1 and 2 lie side by side, 3 and 4 likewise, in images of their own."""
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    labels[0, 1:5, 1:3], labels[0, 1:5, 3:5] = 1, 2
    labels[1, 1:5, 1:3], labels[1, 1:5, 3:5] = 3, 4
    monkeypatch.setattr(module, "cluster_foreground", lambda *_: labels)
    found = find_objects(settings_of(community_clusters=4, communities=2), random_split(), labels > 0, 0)
    assert torch.equal(found, torch.where(labels > 2, 2, (labels > 0).long()))


def test_a_part_that_sees_little_of_another_is_not_linked_to_it(monkeypatch):
    """Stripes 1, 2, 3 side by side: 1 and 3 have 2 alone for a neighbor, but 2 has both."""
    labels = torch.tensor([1, 1, 2, 2, 3, 3]).expand(1, 6, 6)
    np.testing.assert_allclose(cooccurrence(labels, 3), [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    monkeypatch.setattr(module, "cluster_foreground", lambda *_: labels)
    for threshold, found in ((0.5, 1), (0.51, 3)):
        settings = settings_of(community_clusters=3, communities=1, edge_threshold=threshold)
        assert len(find_objects(settings, random_split(), labels > 0, 0).unique()) == found


def test_an_edge_needs_both_directions(monkeypatch):
    share = np.array([[0.9, 0.1], [0.5, 0.5]])
    seen = []
    monkeypatch.setattr(module, "cluster_foreground", lambda *_: torch.zeros(1, 2, 2, dtype=torch.int64))
    monkeypatch.setattr(module, "cooccurrence", lambda *_, **__: share)
    monkeypatch.setattr(module, "find_communities", lambda weights, **_: (seen.append(weights.tolist()), np.array([0, 1]))[1])
    for threshold in (0.1, 0.2):
        find_objects(settings_of(community_clusters=2, edge_threshold=threshold), random_split(), torch.ones(1, 2, 2, dtype=torch.bool), 0)
    assert [weights[0][1] for weights in seen] == [0.1, 0]
    assert seen[0][1][0] == 0.1


def test_k_means_sees_patches_as_often_as_they_have_pixels(monkeypatch):
    split, foreground, seen = random_split(), random_split(1).attended, []
    original = module.kmeans
    monkeypatch.setattr(module, "kmeans", lambda x, *a, **k: (seen.append(x), original(x, *a, **k))[1])
    labels = cluster_foreground(settings_of(), split, foreground, 3, 0)
    expected = [
        split.points[n, i * 6 // 8, j * 6 // 8].tolist()
        for n in range(3)
        for i in range(8)
        for j in range(8)
        if foreground[n, i * 6 // 8, j * 6 // 8]
    ]
    assert seen[0].tolist() == expected
    assert torch.equal(labels > 0, foreground)
    assert labels.unique().tolist() == [0, 1, 2, 3]


# -- scores ------------------------------------------------------------------------------------------------------------


def test_match_against_all_assignments():
    """More labels than classes: each class takes one, the others become background."""
    rng = np.random.default_rng(0)
    segmented, masks = rng.integers(0, 6, (2, 4, 4)), rng.integers(0, 4, (2, 8, 8))
    settings = settings_of(num_classes=4, ignore=3, background=1)
    counts = np.zeros((4, 6), dtype=int)
    for n in range(2):
        for i in range(8):
            for j in range(8):
                if masks[n, i, j] != 3:
                    counts[masks[n, i, j], segmented[n, i // 2, j // 2]] += 1

    def iou_of(label, cluster):
        return counts[label, cluster] / (counts[label].sum() + counts[:, cluster].sum() - counts[label, cluster])

    best = max(permutations(range(6), 3), key=lambda chosen: sum(iou_of(label, cluster) for label, cluster in enumerate(chosen)))
    expected = np.zeros((4, 4), dtype=int)
    for cluster in range(6):
        expected[:, best.index(cluster) if cluster in best else 1] += counts[:, cluster]
    confusion, assignment = match(settings, count(settings, torch.from_numpy(segmented), torch.from_numpy(masks)).matrix)
    assert confusion.tolist() == expected.tolist()
    assert assignment.tolist() == [best.index(cluster) if cluster in best else 1 for cluster in range(6)]


# -- the whole ---------------------------------------------------------------------------------------------------------


def write_squares(root, count=8):
    """Label 0 all around squares of labels 1 to 3, in the middle of the image."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    colors = np.array([[10, 10, 10], [220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=np.uint8)
    for i in range(count):
        labels = np.zeros((96, 96), np.uint8)
        labels[32:64, 32:64] = 1 + i // 2 % 3
        Image.fromarray(colors[labels]).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(labels).save(root / "masks" / f"{i:03d}.png")


def test_ground_truth_as_features_scores_one_hundred(tmp_path, monkeypatch):
    """Colors are the features, and the attention is on all that is no background."""
    write_squares(tmp_path, 12)

    def seen(images):
        small = F.avg_pool2d(images, 8)
        attention = (small.amax(1, keepdim=True) > 0).float() + 1e-4
        return torch.cat([small, attention], dim=1)

    monkeypatch.setattr(Job, "cached", lambda *_: seen)
    settings = settings_of(tmp_path, input_size=96, mask_size=24, community_clusters=3, restarts=5)
    result = evaluate(settings, write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path))
    assert result.metrics == {"mIoU": 100.0, "mIoU_cbfe": 100.0, "J_foreground": 100.0}
    assert result.n == 6


def test_it_repeats_itself_with_and_without_the_cache(tmp_path):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    cache = FeatureCache(tmp_path / "cache", 2**24)
    cached = evaluate(settings_of(tmp_path), backbone, job_in(tmp_path, cache=cache))
    assert evaluate(settings_of(tmp_path), backbone, job_in(tmp_path)) == cached
    assert cached.n == 4
    assert cached.metrics.keys() == UnsupervisedSegmentationSettings.METRICS.keys()
    assert Image.open(tmp_path / "out/strip.png").size[0] > 500
    json.dumps(cached.details, allow_nan=False)


def test_features_without_the_attention_are_not_taken_for_these(tmp_path):
    """`overcluster` keeps its features of the same pictures and backbone in the same cache."""
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    alone = evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))
    cache = FeatureCache(tmp_path / "cache", 2**24)
    job = job_in(tmp_path, cache=cache)
    data = {"root": str(tmp_path), "dataset": "toy", "layout": "masks", "images": "images", "masks": "masks", "num_classes": 4}
    same_pictures = {"val_every": 2, "val_offset": 1, "input_size": 64}
    overcluster.evaluate(OverclusterSettings(**data, **same_pictures, repeats=1, restarts=1), backbone, job)
    assert evaluate(settings_of(tmp_path), backbone, job) == alone


def test_features_and_attention_are_the_backbone_s(tmp_path):
    backbone = load(write_backbone(tmp_path / "b.safetensors")).eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, plain, last = with_attention(backbone)(images), backbone.dense(images), backbone.last_block(images)
    torch.testing.assert_close(maps[:, :-1], plain)
    for n in range(2):
        for p in range(6):
            assert float(maps[n, -1, p // 3, p % 3]) == pytest.approx(float(last.cls_attention[n, :, p].mean()))


def test_a_given_threshold_needs_no_training_images(tmp_path, monkeypatch):
    write_voc(tmp_path, training=2, validation=4)
    backbone = write_backbone(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"train.txt does not exist"):
        evaluate(settings_of(tmp_path, "voc"), backbone, job_in(tmp_path))
    result = evaluate(settings_of(tmp_path, "voc", threshold=0.3), backbone, job_in(tmp_path))
    assert result.details["threshold"] == 0.3


def test_no_foreground_at_all_is_background_everywhere(tmp_path, monkeypatch):
    write_squares(tmp_path)
    monkeypatch.setattr(cbfe, "cluster_precisions", lambda assigned, attended, clusters: torch.zeros(clusters))
    result = evaluate(settings_of(tmp_path, threshold=0.5), write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path))
    background = 8 / 9  # of each image
    assert result.metrics["J_foreground"] == 0
    assert result.metrics["mIoU"] == result.metrics["mIoU_cbfe"]
    assert result.metrics["mIoU"] < 100 * background
    assert result.details["communities_per_run"] == [0, 0]


def test_seeds_of_the_runs_follow_from_the_job_s(tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone, seeds = write_backbone(tmp_path / "b.safetensors"), []
    original = module.cluster_foreground
    monkeypatch.setattr(module, "cluster_foreground", lambda *a: (seeds.append(a[-1]), original(*a))[1])
    for seed in (0, 1):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path, seed=seed))
    assert len(set(seeds)) == 8
    assert seeds[0] == derive_seed(0, "parts", 0)


# -- bad input, settings -----------------------------------------------------------------------------------------------


def test_pictures_of_too_few_patches(tmp_path):
    write_masks(tmp_path)
    with pytest.raises(UserError, match="input_size 48 has fewer than 4 patches of 16 px in a row; to do: raise it to 64"):
        evaluate(settings_of(tmp_path, input_size=48), write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path))


def test_bad_data_names_what_is_wrong(tmp_path):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    for number in range(0, 8, 2):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / f"masks/{number:03d}.png")
    with pytest.raises(UserError, match=r"no pixel of the 4 training images in .* is foreground; to do: check `background`"):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))
    for number in range(1, 8, 2):
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / f"masks/{number:03d}.png")
    with pytest.raises(UserError, match=r"no pixel of the 4 validation images in .* is labelled"):
        evaluate(settings_of(tmp_path, ignore=255, threshold=0.5), backbone, job_in(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "ade20k", "images": None, "masks": None, "num_classes": None}, "ade20k has no background class; allowed: voc, masks"),
        ({"background": 4}, "background 4 is no class; allowed: 0 to 3"),
        ({"background": 3, "ignore": 3}, "background 3 is no class"),
        ({"num_classes": 2, "background": 0, "ignore": 1}, "beside the background there is no class"),
        ({"val_offset": 2}, "both train and val"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(**changes)


def test_the_protocol_says_what_is_not_as_published():
    plain = UnsupervisedSegmentationSettings(root=".", dataset="PascalVOC", layout="voc")
    assert "Louvain" in plain.protocol
    assert "threshold by training masks" in plain.protocol
    assert plain.published_protocol is None
    changed = [{"threshold": 0.4}, {"mass": 0.6}, {"community_clusters": 109}, {"edge_threshold": 0.07}, {"communities": 30}]
    protocols = {plain.model_copy(update=change).protocol for change in changed}
    assert len(protocols | {plain.protocol}) == len(changed) + 1
