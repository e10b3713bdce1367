"""In-context segmentation against loops, the released implementation, and the truth."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.data.benchmarks.label_maps import Example, load_class_names, read_example
from densewalk.data.image_files import read_mask
from densewalk.data.palette import palette
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.dense_features import DenseFeatures, SquareImages, iou_details, label_names, resize
from densewalk.evaluations.incontext.evaluate import (
    augment,
    build_memory,
    evaluate,
    list_splits,
    prepare,
    remember,
    sample_memory,
    score,
    score_queries,
    summarize,
)
from densewalk.evaluations.incontext.retrieval import Memory, Store, choose_patches, mix_labels, patch_labels, predict, retrieve
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import Confusion, hungarian, reassign
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.ops.search.nearest_neighbors import nearest
from tests.fixtures.helpers import shared

PARITY = "parity/hummingbird.npz"


def query_transform(settings, size=32, seed=None):
    return partial(prepare, settings=settings.resolved(), size=size, statistics=IMAGENET, seed=seed)


def images_of(settings, examples, size, seed=None):
    return SquareImages(examples, query_transform(settings, size, seed))


def settings_of(layout="masks", **changes):
    common = {"root": ".", "dataset": "toy", "input_size": 32, "augmentation_epochs": 0, "memory_size": None}
    own = {} if layout in ("voc", "ade20k") else {"images": "images", "masks": "masks", "num_classes": 4}
    return IncontextSettings(layout=layout, **{**common, **own, **changes})


# -- the released implementation -------------------------------------------------------------------------------------


class Released:
    """One case of the reference values, with the recorded patch choice."""

    def __init__(self, name):
        data = np.load(shared(PARITY))
        self.case = {
            k.removeprefix(f"cases/{name}/"): torch.from_numpy(data[k])
            for k in data.files
            if k.startswith(f"cases/{name}/") and data[k].dtype.kind != "U"
        }
        self.settings = settings_of("voc", compat="released", input_size=112).resolved()

    def dense(self, images):
        return F.conv2d(images, self.case["fake_weight"], stride=16)

    def batches(self, split):
        for i in range(len({k.split("/")[1] for k in self.case if k.startswith(f"{split}/")})):
            yield self.dense(self.case[f"{split}/{i}/0"]), (self.case[f"{split}/{i}/1"][:, 0] * 255).round().int()

    def chosen(self, epoch, batch):
        recorded = self.case.get(f"sampled_indices/{3 * epoch + batch}")
        return recorded if recorded is not None else torch.arange(49).expand(2, 49)

    def memory(self):
        store = Store(480)
        for epoch in range(int(self.case["augmentation_epoch"])):
            for batch, (maps, masks) in enumerate(self.batches("train")):
                labels = patch_labels(torch.where(masks == 255, 0, masks), 16, 21, ignore=None)
                for image, chosen in enumerate(self.chosen(epoch, batch)):
                    store.add(Memory(F.normalize(maps[image].flatten(1).T[chosen], dim=1), labels[image][chosen]))
        return store.memory()


@pytest.mark.parametrize("name", ["voc_unbounded", "voc_bounded_2aug"])
def test_parity_with_open_hummingbird(name):
    released = Released(name)
    case, memory = released.case, released.memory()
    torch.testing.assert_close(memory.features, case["feature_memory"])
    torch.testing.assert_close(memory.labels, case["label_memory"])
    confusion = Confusion(21, ignore=255)
    number = 0
    for maps, masks in released.batches("val"):
        for features, mask in zip(maps, masks, strict=True):
            queries = F.normalize(features.flatten(1).T, dim=1)
            mixture = mix_labels(memory, *nearest(memory.features, queries, 30), 0.02)
            torch.testing.assert_close(mixture, case["label_hat"][number], atol=2e-6, rtol=0)
            prediction = retrieve(memory, features, released.settings, (112, 112))
            assert torch.equal(prediction, predict(mixture, (7, 7), (112, 112)))
            assert torch.equal(prediction.to(torch.uint8), case["pred"][number])
            confusion.add(mask, prediction)
            number += 1
    assert score(confusion.matrix, released.settings) / 100 == pytest.approx(float(case["miou_identity"]), abs=1e-9)
    matched = reassign(confusion.matrix, hungarian(confusion.matrix))
    assert score(matched, released.settings) / 100 == pytest.approx(float(case["miou_hungarian"]), abs=1e-9)


def test_the_released_memory_equals_what_remember_makes():
    """All patches, ignored pixels as class 0: the very function the evaluation calls."""
    released = Released("voc_unbounded")
    expected = iter(released.memory().labels.split(49))
    for maps, masks in released.batches("train"):
        for features, mask in zip(maps, masks, strict=True):
            part = remember(features, mask, 16, released.settings, 49, torch.Generator())
            torch.testing.assert_close(part.labels, next(expected))
            torch.testing.assert_close(part.features, F.normalize(features.flatten(1).T, dim=1))


def test_parity_of_the_transforms(tmp_path):
    data = np.load(shared(PARITY))
    image, mask = Image.fromarray(data["transforms/image"]), torch.from_numpy(data["transforms/mask"]).int()
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.from_numpy(data["transforms/std"]).float()[:, None, None]
    for name, (x, labels) in {"val": resize(image, mask, 64), "train": augment(image, mask, 64, int(data["transforms/seed"]))}.items():
        torch.testing.assert_close((x - mean) / std, torch.from_numpy(data[f"transforms/{name}/img"]), atol=1e-6, rtol=0)
        assert np.array_equal(labels, (data[f"transforms/{name}/mask"][0] * 255).round())
    Image.fromarray(data["transforms/image"]).save(tmp_path / "a.png")
    Image.fromarray(data["transforms/mask"]).save(tmp_path / "m.png")
    settings = settings_of("voc", compat="released").resolved()
    through_the_data_set = images_of(settings, [Example(tmp_path / "a.png", tmp_path / "m.png", settings.rule)], 64)[0][0]
    torch.testing.assert_close(through_the_data_set, torch.from_numpy(data["transforms/val/img"]), atol=1e-6, rtol=0)


def test_the_paper_s_normalization_has_no_bluish_std(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "m.png")
    settings = settings_of().resolved()
    x = images_of(settings, [Example(tmp_path / "a.png", tmp_path / "m.png", settings.rule)], 16)[0][0]
    expected = (torch.ones(3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(x[:, 0, 0], expected)


# -- the steps against loops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore", [None, 255, 2])
def test_patch_labels_equal_the_loop(ignore):
    masks = torch.randint(0, 5, (2, 12, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    if ignore == 255:
        masks[0, :5] = 255
    expected = np.zeros((2, 6, 5))
    for b, y, x in np.ndindex(2, 12, 8):
        label = int(masks[b, y, x])
        if label != ignore:
            expected[b, y // 4 * 2 + x // 4, label] += 1 / 16
    np.testing.assert_allclose(patch_labels(masks, 4, 5, ignore=ignore), expected)


def test_mixture_equals_the_loop():
    rng = torch.Generator().manual_seed(0)
    memory = Memory(F.normalize(torch.randn(40, 6, generator=rng), dim=1), torch.rand(40, 3, generator=rng))
    queries = F.normalize(torch.randn(5, 6, generator=rng), dim=1)
    found = mix_labels(memory, *nearest(memory.features, queries, 4), 0.1)
    for q, row in zip(queries.double().numpy(), found, strict=True):
        cosines = memory.features.double().numpy() @ q
        best = sorted(range(40), key=lambda j: -cosines[j])[:4]
        weights = np.exp(cosines[best] / 0.1) / np.exp(cosines[best] / 0.1).sum()
        np.testing.assert_allclose(row, sum(w * memory.labels[j].double().numpy() for w, j in zip(weights, best, strict=True)), atol=1e-6)


def test_leaving_out_classes_without_a_vote_changes_no_pixel():
    mixture = torch.zeros(12, 40)
    mixture[:, [3, 17, 39]] = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(mixture.T.unflatten(1, (3, 4))[None], (24, 32), mode="bilinear")[0].argmax(0)
    assert torch.equal(predict(mixture, (3, 4), (24, 32)), full)


def test_patches_with_rare_classes_are_chosen_more_often():
    labels = torch.zeros(100, 3)
    labels[:, 0] = 1.0
    labels[:5] = torch.tensor([0.0, 1.0, 0.0])  # five patches of a rare class, all its own
    labels[99] = 0.0  # and one without any label
    rng = torch.Generator().manual_seed(0)
    counts = torch.zeros(100)
    for _ in range(200):
        chosen = choose_patches(labels, 10, rng)
        assert len(set(chosen.tolist())) == 10
        counts[chosen] += 1
    assert (counts[:5] / 200).min() > 0.9
    assert 0.02 < (counts[5:99] / 200).mean() < 0.08
    assert counts[99] == 0


def test_a_memory_larger_than_the_images_keeps_every_patch():
    labels = torch.eye(4)[[0, 1, 2, 1]]
    assert sorted(choose_patches(labels, 10_240_000, torch.Generator().manual_seed(0)).tolist()) == [0, 1, 2, 3]


def test_identity_and_hungarian_are_two_numbers():
    """Classes that swapped their names: wrong as classes, right as clusters."""
    counts = ImageCounts.of([counted(torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 1, 0, 2, 3]), 4, 4)], 4, 4)
    settings = settings_of().resolved()
    result = summarize(settings, [counts], [Example(Path(settings.root) / "a.png", Path("a.png"), settings.rule)], {})
    assert result.metrics == {"mIoU": 50.0, "mIoU_hungarian": 100.0}
    result.units.require_scores(result.metrics)
    assert result.units.ids == ["a.png"]


def test_score_rule_equals_the_loop():
    labels = patch_labels(torch.randint(0, 4, (1, 32, 32), generator=torch.Generator().manual_seed(3)) // 2, 4, 4, ignore=1)[0]
    draws = torch.rand(64, generator=torch.Generator().manual_seed(5))
    frequency = [sum(bool(p[c] > 0) for p in labels) for c in range(4)]
    scores = [float(u) * sum(frequency[c] for c in range(4) if p[c] > 0) for p, u in zip(labels, draws, strict=True)]
    expected = sorted(range(64), key=lambda i: scores[i])[:9]
    assert choose_patches(labels, 9, torch.Generator().manual_seed(5)).tolist() == expected


# -- whole evaluations -----------------------------------------------------------------------------------------------


def write_pairs(root, count=8, *, size=32, classes=4, mode="L"):
    """Images whose colour is their label in every 16 x 16 patch."""
    rng = np.random.default_rng(0)
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [220, 220, 40]], np.uint8)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        labels = rng.integers(0, classes, (size // 16, size // 16)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        labels[:16, :16], labels[:16, 16:32] = i % classes, (i + 1) % classes
        Image.fromarray(colours[labels]).save(root / "images" / f"{i:03d}.png")
        mask = Image.fromarray(labels)
        if mode == "P":
            mask.putpalette(palette().tobytes())
        mask.save(root / "masks" / f"{i:03d}.png")


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path)
    return settings_of(root=str(tmp_path), memory_every=2, query_every=2, query_offset=1, neighbours=3)


def one_hot_features(images):
    """The ground truth as features: a patch's mean colour tells its label."""
    mean = F.avg_pool2d(images, 16)
    return torch.stack([mean[:, 0] - mean[:, 1], mean[:, 1] - mean[:, 0], mean[:, 2], mean[:, 0] + mean[:, 1] - mean[:, 2]], dim=1).relu()


def test_ground_truth_as_features_scores_one_hundred(pairs, tmp_path):
    """Through the very functions of the evaluation; scored on whole patches, where interpolation cannot blur the truth."""
    memory_set, query_set = list_splits(pairs)
    features = DenseFeatures(pairs, one_hot_features, Path(), 32, IMAGENET, Job(out=tmp_path, state=tmp_path), 4)
    memory = build_memory(pairs.resolved(), features, memory_set, 16, seed=0)
    assert len(memory.labels) == 4 * 4
    confusion = Confusion(4)
    for maps, mask, _ in features.maps(query_set, "queries", query_transform(pairs)):
        confusion.add(mask[8::16, 8::16], retrieve(memory, maps, pairs, (2, 2)))
    assert score(confusion.matrix, settings_of().resolved()) == 100.0
    assert score(confusion.matrix, settings_of(compat="released").resolved()) == 100.0
    assert score(score_queries(pairs.resolved(), features, memory, query_set)[0].matrix, settings_of().resolved()) > 80


def test_evaluation_end_to_end(pairs, tmp_path):
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "b.safetensors", run="r", config_hash="0")
    job = Job(out=tmp_path / "out", state=tmp_path)
    result = evaluate(pairs, tmp_path / "b.safetensors", job)
    assert result.metrics.keys() == pairs.METRICS.keys()
    assert result.n == 4
    assert result.metrics["mIoU_hungarian"] >= result.metrics["mIoU"] > 50
    assert result.details["memory_patches"] == [16]
    assert result.details["memory_images"] == 4
    assert Image.open(job.out / "strip.png").size[0] > 500
    json.dumps(result.details, allow_nan=False)
    again = evaluate(pairs, tmp_path / "b.safetensors", job)
    assert again == result


def test_fractions_augmentation_and_bounded_memory_end_to_end(pairs, tmp_path):
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "b.safetensors", run="r", config_hash="0")
    bounded = pairs.model_copy(
        update={"fraction": "1/8", "fraction_seeds": [1, 2, 3], "augmentation_epochs": 2, "memory_size": 6, "memory_every": 1}
    )
    result = evaluate(bounded, tmp_path / "b.safetensors", Job(out=tmp_path / "out", state=tmp_path))
    assert result.details["memory_patches"] == [6, 6, 6]  # one image, two views, three of four patches each
    assert result.metrics["mIoU"] == pytest.approx(np.mean(result.details["mIoU_per_sample"]))


def test_released_and_paper_count_absent_classes_differently(pairs, tmp_path):
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "b.safetensors", run="r", config_hash="0")
    job = Job(out=tmp_path / "out", state=tmp_path)
    wide = pairs.model_copy(update={"num_classes": 8})
    paper = evaluate(wide, tmp_path / "b.safetensors", job).metrics["mIoU"]
    released = evaluate(wide.model_copy(update={"compat": "released"}), tmp_path / "b.safetensors", job).metrics["mIoU"]
    assert released == pytest.approx(paper / 2, rel=0.2)


def test_ignored_pixels_are_neither_memory_nor_score(tmp_path):
    write_pairs(tmp_path)
    settings = settings_of(root=str(tmp_path), ignore=0, memory_every=2, query_every=2, query_offset=1, neighbours=3)
    features = DenseFeatures(settings, one_hot_features, Path(), 32, IMAGENET, Job(out=tmp_path, state=tmp_path), 4)
    memory = build_memory(settings.resolved(), features, list_splits(settings)[0], 16, seed=0)
    assert (memory.labels[:, 0] == 0).all()
    assert (memory.labels.sum(1) == 1).all()
    assert len(memory.labels) < 16
    found = score_queries(settings.resolved(), features, memory, list_splits(settings)[1])[0].matrix
    assert found[0].sum() == 0
    assert found[:, 0].sum() == 0


def test_each_deviation_can_be_studied_alone():
    ignored, features = torch.full((16, 16), 255, dtype=torch.int32), torch.ones(3, 1, 1)
    for changes, remembered in (({}, 0), ({"remember_ignored": True}, 1), ({"compat": "released", "remember_ignored": False}, 0)):
        part = remember(features, ignored, 16, settings_of("voc", **changes).resolved(), 1, torch.Generator())
        assert len(part.labels) == remembered
    assert part.labels.shape[1] == 21
    confusion = torch.diag(torch.tensor([5, 5, 0, 0]))
    for changes, value in (({}, 100), ({"count_absent_classes": True}, 50), ({"compat": "released", "count_absent_classes": False}, 100)):
        assert score(confusion, settings_of(**changes).resolved()) == value
    white = Image.fromarray(np.full((8, 8, 3), 255, np.uint8)), torch.zeros(8, 8, dtype=torch.int32)
    x, _ = query_transform(settings_of(blue_std=0.255), 16)(*white, 0)
    torch.testing.assert_close(x[:, 0, 0], (torch.ones(3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.255]))


def test_augmented_views_depend_on_their_seed_alone(pairs, tmp_path):
    memory_set, _ = list_splits(pairs.model_copy(update={"augmentation_epochs": 1}))
    torch.manual_seed(1)
    first = images_of(pairs, memory_set, 32, seed=7)[2][0]
    torch.manual_seed(2)
    assert torch.equal(first, images_of(pairs, memory_set, 32, seed=7)[2][0])
    assert not torch.equal(first, images_of(pairs, memory_set, 32, seed=8)[2][0])


# -- data ------------------------------------------------------------------------------------------------------------


def test_names_beside_the_masks_are_for_readers_and_no_key_of_a_record(tmp_path):
    settings, values = settings_of(root=str(tmp_path)), torch.tensor([0.5, torch.nan, 0.25, 1.0])
    keys = [f"class {number}" for number in range(4)]
    (tmp_path / "masks").mkdir()
    before = iou_details(settings, values)
    assert (label_names(settings), before) == (keys, {"IoU": dict(zip(keys, (50.0, None, 25.0, 100.0), strict=True))})
    for text, names in {
        "sky\nroad\ncar\n": keys,
        "sky\nsky\ncar\nroad": keys,
        "sky\nroad\ncar\n tree \n\n": ["sky", "road", "car", "tree"],
    }.items():
        (tmp_path / "masks/classes.txt").write_text(text)
        assert label_names(settings) == names
    assert iou_details(settings, values) == {**before, "class_names": dict(zip(keys, names, strict=True))}
    given = settings_of(root=str(tmp_path), class_names=["a", "b", "c", "d"])
    assert list(iou_details(given, values)) == ["IoU"]
    assert list(iou_details(given, values)["IoU"]) == label_names(given) == ["a", "b", "c", "d"]


def test_real_layouts_are_read_as_they_are():
    ade = settings_of("ade20k", root=str(shared("data/ade20k")))
    memory, queries = list_splits(ade)
    assert [len(memory), len(queries)] == [2, 2]
    mask = read_example(memory[0])[1]
    assert mask.max() == 150
    assert load_class_names(ade.root, "ade20k", 151)[:4] == ["other", "wall", "building", "sky"]
    voc = settings_of("voc", root=str(shared("data/voc")), memory_list="train")
    memory, queries = list_splits(voc)
    assert [len(memory), len(queries)] == [13, 12]
    found = {int(v) for example in memory + queries for v in np.unique(read_example(example)[1])}
    assert max(found) == 255  # a palette read as colours would give other numbers
    assert max(found - {255}) <= 20


def test_city_drive_split():
    root = shared("data/camvid").parent
    settings = settings_of(
        "video", root=str(root), images="videos/camvid_city_drive_171s.mp4", masks="camvid/Seq05VD/annot", num_classes=12, ignore=11
    )
    memory, queries = list_splits(settings)
    assert [len(memory), len(queries)] == [43, 21]
    assert not {e.frame for e in memory} & {e.frame for e in queries}
    image, mask = read_example(memory[3])
    assert image.size == (480, 360)
    assert memory[3].frame == 12
    assert mask.shape == (360, 480)


def test_published_sample_sizes():
    settings = settings_of("voc", fraction="1/64")
    everything = [Example(f"{i}.jpg", f"{i}.png", settings.rule) for i in range(10_582)]  # type: ignore[arg-type]
    found = list(sample_memory(settings, everything))
    assert [len(examples) for _, examples in found] == [160] * 5
    assert found[0][1] != found[1][1]
    assert found[0] == next(sample_memory(settings, everything))
    assert len(next(sample_memory(settings, everything[:640]))[1]) == 10


def broken(tmp_path, how):
    write_pairs(tmp_path, mode="P" if how == "palette" else "L")
    mask, image = tmp_path / "masks" / "002.png", tmp_path / "images" / "002.png"
    if how == "label":
        Image.fromarray(np.full((32, 32), 9, np.uint8)).save(mask)
    if how == "size":
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(mask)
    if how == "colour":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(mask)
    if how == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:60])
    if how == "truncated image":
        image.write_bytes(image.read_bytes()[:60])
    if how == "no image":
        image.unlink()
    if how == "no masks":
        for path in (tmp_path / "masks").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("label", r"002.png holds label 9; allowed: 0 to 3"),
        ("size", r"002.png is 16x16, but .*002.png is 32x32"),
        ("colour", r"002.png is a color image \(RGB\)"),
        ("truncated mask", r"masks/002.png cannot be read"),
        ("truncated image", r"images/002.png cannot be read"),
        ("no image", r"masks/002.png has no image"),
        ("no masks", r"images/000\.png has no mask"),
    ],
)
def test_bad_data_names_the_file(tmp_path, how, message):
    broken(tmp_path, how)
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "b.safetensors", run="r", config_hash="0")
    settings = settings_of(root=str(tmp_path), memory_every=2, query_every=2, query_offset=1)
    with pytest.raises(UserError, match=message):
        evaluate(settings, tmp_path / "b.safetensors", Job(out=tmp_path / "out", state=tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_palette_is_not_a_color(tmp_path):
    broken(tmp_path, "palette")
    assert read_mask(tmp_path / "masks" / "002.png").max() <= 3
    assert Image.open(tmp_path / "masks" / "002.png").convert("L").getextrema()[1] > 3


def test_missing_folders_and_lists(tmp_path):
    with pytest.raises(UserError, match="ADEChallengeData2016"):
        list_splits(settings_of("ade20k", root=str(tmp_path / "nowhere")))
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"trainaug.txt does not exist; allowed: train"):
        list_splits(settings_of("voc", root=str(tmp_path)))
    with pytest.raises(UserError, match=r"lists a, but .*JPEGImages/a.jpg does not exist"):
        list_splits(settings_of("voc", root=str(tmp_path), memory_list="train"))


def test_features_that_are_not_numbers_name_the_image(pairs, tmp_path):
    features = DenseFeatures(pairs, one_hot_features, Path(), 32, IMAGENET, Job(out=tmp_path, state=tmp_path), 4)

    def sick(images):
        maps = one_hot_features(images)
        maps[2] = torch.nan
        return maps

    with pytest.raises(UserError, match=r"004.png are not finite"):
        build_memory(pairs.resolved(), replace(features, compute=sick), list_splits(pairs)[0], 16, seed=0)


def test_a_memory_smaller_than_the_images_is_refused(pairs, tmp_path):
    with pytest.raises(UserError, match="less than one patch for each of 4 views"):
        next(sample_memory(pairs.model_copy(update={"memory_size": 3}), list_splits(pairs)[0]))


# -- settings --------------------------------------------------------------------------------------------------------


def test_published_protocol_only_where_everything_agrees():
    def published(**changes):
        return IncontextSettings(
            **{"root": ".", "layout": "voc", "dataset": "PascalVOC", "compat": "released", **changes}
        ).published_protocol

    assert published() == "dense NN, fraction 1"
    assert published(fraction="1/128") == "dense NN, fraction 1/128"
    assert published(layout="ade20k", dataset="ADE20K") == "dense NN, fraction 1"
    for change in (
        {"compat": "paper"},
        {"dataset": "mini"},
        {"neighbours": 20},
        {"input_size": 448},
        {"memory_list": "train"},
        {"temperature": 0.1},
    ):
        assert published(**change) is None


def test_protocol_names_tell_settings_apart():
    names = {
        settings_of(**change).protocol
        for change in ({}, {"neighbours": 5}, {"compat": "released"}, {"memory_every": 2, "query_offset": 5}, {"memory_size": 9})
    }
    assert len(names) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "masks", "num_classes": None}, "needs num_classes"),
        ({"layout": "voc", "num_classes": 5}, "knows its own num_classes"),
        ({"layout": "ade20k", "masks": "x"}, "knows its own masks"),
        ({"memory_every": 4, "query_every": 6, "query_offset": 2}, "both memory and query"),
        ({"class_names": ["a"]}, "1 class_names for num_classes 4"),
    ],
)
def test_contradictory_settings(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(**changes)
