"""Which features a study's jobs share: the same images, prepared alike, of the same backbone."""

import copy

from densewalk.study.config import parse_study

VIDEO = {"root": "data", "dataset": "toy", "layout": "video", "images": "walk.mp4", "masks": "walk_masks", "num_classes": 22}
PROTOCOLS = ("incontext", "overcluster", "linear_segmentation", "unsupervised_segmentation")
STUDY = {
    "study": "toy",
    "runs": {"a": {"method": "none", "init": "random", "arch": "vit_micro_patch16"}},
    "evaluations": {name: {"protocol": name, "settings": {**VIDEO, "input_size": 192}} for name in PROTOCOLS},
}


def shared(evaluation, change=None, run="a"):
    """Split -> the names of the other evaluations that read its features."""
    config = copy.deepcopy(STUDY)
    if change:
        change(config)
    found = parse_study(config).shared_features(run, 0, evaluation)
    return {split: {(r, e) for r, _, e in jobs} for split, jobs in found.items()}


def test_evaluations_share_the_images_that_all_of_them_see_plain():
    assert shared("incontext") == {"queries": {("a", "overcluster"), ("a", "linear_segmentation")}}
    assert shared("overcluster") == {"validation": {("a", "incontext"), ("a", "linear_segmentation")}}
    assert shared("unsupervised_segmentation") == {}  # the attention is with them


def test_another_size_another_choice_of_images_and_another_normalization_share_nothing():
    for name, value in (("input_size", 96), ("query_offset", 2), ("query_every", 4), ("compat", "released")):
        assert shared("incontext", lambda config, key=(name, value): config["evaluations"]["incontext"]["settings"].update([key])) == {}


def test_two_numbers_of_clusters_share_all_and_twins_of_one_backbone_too():
    def more(config):
        config["evaluations"] = {
            f"k{k}": {"protocol": "overcluster", "settings": {**VIDEO, "clusters": k}, "runs": ["a", "b"]} for k in (300, 500)
        }
        config["evaluations"]["objects"] = {"protocol": "unsupervised_segmentation", "settings": VIDEO}
        config["evaluations"]["others"] = {"protocol": "unsupervised_segmentation", "settings": {**VIDEO, "communities": 5}}
        config["runs"] |= {"b": {"method": "none", "init": "random", "arch": "vit_micro_patch16", "seeds": [1]}}

    assert shared("k300", more) == {"validation": {("a", "k500")}}
    assert shared("objects", more) == {split: {("a", "others")} for split in ("training", "validation")}


def test_plain_memories_are_shared_and_augmented_ones_are_not():
    def memories(augmentation_epochs):
        def change(config):
            settings = {**VIDEO, "augmentation_epochs": augmentation_epochs}
            for name, neighbours in (("near", 10), ("far", 30)):
                config["evaluations"][name] = {"protocol": "incontext", "settings": {**settings, "neighbours": neighbours}}

        return change

    assert set(shared("near", memories(0))) == {"queries", "memory"}
    assert set(shared("near", memories(2))) == {"queries"}


def test_the_released_default_of_the_normalization_is_the_same_as_the_number():
    def explicit(config):
        for name, settings in (("one", {"compat": "released"}), ("two", {"blue_std": 0.255})):
            config["evaluations"][name] = {"protocol": "incontext", "settings": {**VIDEO, **settings}}

    assert shared("one", explicit) == {"queries": {("a", "two")}}
