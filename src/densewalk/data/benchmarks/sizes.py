"""How many images benchmarks have, as their authors publish it. Free of torch."""

from pathlib import Path

from densewalk.data.storage.places import members_below

# training and validation images
IMAGES = {
    "voc": (10_582, 1_449),  # trainaug and val
    "ade20k": (20_210, 2_000),
    "cityscapes": (2_975, 500),
    "coco": (118_287, 5_000),
    "coco_things": (118_287, 5_000),
    "coco_stuff": (118_287, 5_000),
    "imagenet": (1_281_167, 50_000),
}
# LOST's data sets
DISCOVERY = {"VOC07": 5_011, "VOC12": 11_540, "COCO20k": 19_817}
# training and scored images with depth. NYUv2 and KITTI: the BTS lists without the lines that have no depth; of the 697 images of KITTI's
# Eigen split 45 have no improved ground truth (cleinc/bts issue 92). SUN RGB-D: the official 5,285 + 5,050
DEPTH = {"NYUv2": (24_231, 654), "KITTI": (23_158, 652), "SUN RGB-D (from NYUv2)": (24_231, 5_050)}
SPAIR_IMAGES = 1_800  # of all splits
SPAIR_PAIRS = {"trn": 53_340, "val": 5_384, "test": 12_234}
NAVI_VIEWS = 2_298  # of all wild sets, README of github.com/google/navi
NAVI_PAIRS = -(-NAVI_VIEWS // 4)  # a partner of every fourth view
# images and queries of the revisited landmark benchmarks
LANDMARKS = {"roxford5k": (4_993, 70), "rparis6k": (6_322, 70)}
# frames of video benchmarks
DAVIS = {(2016, "val"): 1_376, (2016, "train"): 2_079, (2017, "val"): 1_999, (2017, "train"): 4_209}
YOUTUBE_VOS_TRAIN = 94_588
YOUTUBE_VOS_SEQUENCES = 3_471
GOT10K = {"val": 21_007}
# end of a folder's path -> images
FOLDERS = {
    "coco/train2017": 118_287,
    "train2017": 118_287,
    "ILSVRC2012/train": 1_281_167,
    "imagenet/train": 1_281_167,
    "train/JPEGImages": YOUTUBE_VOS_TRAIN,
}


def files_in(folder: Path) -> int | None:
    """Files of a folder, not of its subfolders; None if there is none."""
    if (members := members_below(folder)) is not None:
        return sum("/" not in name for name, _ in members)
    return sum(1 for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else None


def images_below(source: str) -> int | None:
    """Images of a folder of a public data set, by the end of its path; None of any other."""
    path = Path(source).as_posix().removesuffix(".tar").removesuffix(".zip")
    return next((count for end, count in FOLDERS.items() if path.endswith(end)), None)
