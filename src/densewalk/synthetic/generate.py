"""The generated city walk: images with exact ground truth, from one seed, in the layouts of the real benchmarks.

    generate(Path("data/city"), SyntheticSettings(seed=1))                  # writes the tree below
    walk = Walk(1, seconds=64, fps=4, width=320, height=192)
    frame = walk.frame(17)                                                  # rgb, semantic, instances; any frame, in any order

    SYNTHETIC.txt                                   says what this folder is
    walk.mp4                                        the walk
    walk_masks/%05d.png, classes.txt                dense masks of every k-th frame, named by frame; value n is line n + 1 of classes.txt
    ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_{train,val}_%08d.{jpg,png}
    coco/{train2017,val2017}/%012d.jpg, coco/annotations/instances_{train,val}2017.json
    DAVIS/{JPEGImages,Annotations}/480p/{sequence}/%05d.{jpg,png}, DAVIS/ImageSets/2017/{train,val}.txt
    YouTube-VOS/valid/{JPEGImages,Annotations}/{sequence}/%05d.{jpg,png}, YouTube-VOS/valid/meta.json      objects enter later
    GOT-10k/val/{sequence}/{%08d.jpg,groundtruth.txt,cover.label,absence.label}, GOT-10k/val/list.txt      one object of each of these
    nyu/{walk}/rgb_%05d.jpg, nyu/{walk}/sync_depth_%05d.png, nyu/nyu_{train,test}.txt      depth in millimeters, 0 for none
    SPair-71k/{JPEGImages,PairAnnotation,Layout}   rigid things of the DAVIS sequences in two frames each, and points that both show
    navi_v1/{object}/wild_set/{annotations.json,images,depth,masks}      toys of vehicles and benches, seen from all sides
    imagenet/{train,val}/{category}/%05d.JPEG       the things of the photographs, cut out; categories seen in both splits
    receipt.json                                    counts and class shares; written last

The city itself is in `densewalk.synthetic.city`.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, write_json
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.data.video.encode import write_video
from densewalk.ops.optical_flow import one_opencv_thread
from densewalk.synthetic.city.items import ADE
from densewalk.synthetic.city.raster import Labels, Rgb
from densewalk.synthetic.city.walk import Frame, Walk
from densewalk.synthetic.depth_layout import DepthLayout
from densewalk.synthetic.image_writer import write_image
from densewalk.synthetic.keypoint_layout import KeypointLayout
from densewalk.synthetic.later_objects import LaterObjectsLayout
from densewalk.synthetic.object_layout import ObjectLayout
from densewalk.synthetic.settings import SyntheticSettings

# https://cocodataset.org: supercategory, then id and name of its categories
COCO_SUPERCATEGORIES = """
person: 1 person
vehicle: 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat
outdoor: 10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench
animal: 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe
accessory: 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase
sports: 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard
sports: 42 surfboard, 43 tennis racket
kitchen: 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl
food: 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake
furniture: 62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet
electronic: 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone
appliance: 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator
indoor: 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush
"""
PHOTOS_PER_WALK = 4
PHOTO_SECONDS = 24.0
MIN_PIXELS = 24  # smaller visible pieces of an object are not annotated
DAVIS_OBJECTS = 3
DAVIS_STARTS = (0.0, 8.0, 16.0)
BACKGROUND_SECONDS = (0.0, 8.0, 16.0)
MARKER = "SYNTHETIC.txt"
FOLDERS = ("walk_masks", "ADEChallengeData2016", "coco", "DAVIS", "YouTube-VOS", "GOT-10k", "nyu", "SPair-71k", "navi_v1", "imagenet")
CROP_PIXELS = 64  # smaller visible pieces of a thing are not cut out
CROP_MARGIN = 1.2  # side of the square that is cut out, over the thing's longer side


# -- the data set ----------------------------------------------------------------------------------------------------


def generate(root: Path, settings: SyntheticSettings) -> dict[str, Any]:
    """Write the whole data set below `root` and return its receipt (also `root/receipt.json`, which appears last).

    The same settings give the same masks and JSON files, byte for byte. What an earlier call wrote there is replaced.

    Raises:
        UserError: `root` holds folders of these names that this function did not write.
    """
    root = Path(root)
    _clear(root)
    crops = _ImageNetLayout(root)
    with one_opencv_thread():  # images this small are only slowed down by several
        receipt = {
            "name": "synthetic city walk",
            "settings": settings.model_dump(),
            "video": _write_walk(root, settings),
            "training": _write_photos(root, settings, "training", settings.ade_train, settings.coco_train, crops),
            "validation": _write_photos(root, settings, "validation", settings.ade_val, settings.coco_val, crops),
            "imagenet": crops.finish(),
            "davis": _write_davis(root, settings),
            "navi": _write_objects(root, settings),
        }
    write_json(root / "receipt.json", receipt)
    return receipt


def _clear(root: Path) -> None:
    present = [name for name in (*FOLDERS, "walk.mp4") if (root / name).exists()]
    if present and not (root / MARKER).exists():
        raise UserError(f"{root} already holds {', '.join(present)}, which were not generated", todo="choose an empty folder")
    (root / "receipt.json").unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
    with atomic_write(root / MARKER) as temporary:
        temporary.write_text(
            "Images of a generated city. Numbers measured on them say nothing about ADE20K, COCO, DAVIS, GOT-10k or ImageNet.\n"
        )


SPLITS = ("video", "training", "validation", "davis", "objects")


def _walk(settings: SyntheticSettings, split: str, number: int, seconds: float) -> Walk:
    seed = (settings.seed, SPLITS.index(split), number)
    return Walk(seed, seconds=seconds, fps=settings.fps, width=settings.width, height=settings.height)


def _write_walk(root: Path, settings: SyntheticSettings) -> dict[str, Any]:
    walk = _walk(settings, "video", 0, settings.seconds)
    indices = np.zeros(256, np.uint8)
    indices[list(ADE.values())] = np.arange(len(ADE))
    masks: list[Labels] = []

    def frames() -> Iterator[Rgb]:
        for number in range(settings.frames):
            frame = walk.frame(number)
            if number % settings.mask_stride == 0:
                write_image(root / f"walk_masks/{number:05d}.png", indices[frame.semantic])
                masks.append(frame.semantic)
            yield frame.rgb

    write_video(root / "walk.mp4", frames(), settings.fps)
    with atomic_write(root / "walk_masks/classes.txt") as temporary:
        temporary.write_text("\n".join(ADE) + "\n")
    return {"frames": settings.frames, "masks": len(masks), "shares": _shares(masks)}


def _photos(settings: SyntheticSettings, split: str, count: int) -> Iterator[Frame]:
    """Single images, a few from each walk, far apart on it."""
    for number in range(count):
        walk_number, stop = divmod(number, PHOTOS_PER_WALK)
        if stop == 0:
            walk = _walk(settings, split, walk_number, PHOTO_SECONDS * PHOTOS_PER_WALK)
        yield walk.frame(round(PHOTO_SECONDS * stop * settings.fps))


def _write_photos(root: Path, settings: SyntheticSettings, split: str, ade: int, coco: int, crops: "_ImageNetLayout") -> dict[str, Any]:
    """The same images in the layouts of ADE20K, COCO and NYUv2; a split of the one shares no walk with the other split of either."""
    ade20k, coco2017, nyu = _AdeLayout(root, split), _CocoLayout(root, split), DepthLayout(root, split)
    depth = {"training": settings.depth_train, "validation": settings.depth_val}[split] or ade
    for number, frame in enumerate(_photos(settings, split, max(ade, coco, depth)), start=1):
        if number <= depth:
            nyu.add((number - 1) // PHOTOS_PER_WALK, number, frame)
        if number <= ade:
            ade20k.add(number, frame)
        if number <= coco:
            coco2017.add(number, frame)
        crops.add(split, frame)
    return {"ade20k": ade20k.finish(), "coco": coco2017.finish(), "nyu": nyu.finish()}


class _AdeLayout:
    def __init__(self, root: Path, split: str) -> None:
        self.base, self.split = root / "ADEChallengeData2016", split
        self.masks: list[Labels] = []

    def add(self, number: int, frame: Frame) -> None:
        name = f"ADE_{'train' if self.split == 'training' else 'val'}_{number:08d}"
        write_image(self.base / f"images/{self.split}/{name}.jpg", frame.rgb)
        write_image(self.base / f"annotations/{self.split}/{name}.png", frame.semantic)
        self.masks.append(frame.semantic)

    def finish(self) -> dict[str, Any]:
        return {"pairs": len(self.masks), "shares": _shares(self.masks)}


class _CocoLayout:
    def __init__(self, root: Path, split: str) -> None:
        self.base, self.split = root / "coco", "train2017" if split == "training" else "val2017"
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, number: int, frame: Frame) -> None:
        name = f"{number:012d}.jpg"
        write_image(self.base / self.split / name, frame.rgb)
        height, width = frame.semantic.shape
        self.images.append({"id": number, "file_name": name, "width": width, "height": height})
        for annotation in coco_annotations(frame):
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": number, **annotation})

    def finish(self) -> dict[str, Any]:
        categories = coco_categories()
        content = {"info": {"description": "synthetic city walk"}, "licenses": [], "images": self.images}
        content |= {"annotations": self.annotations, "categories": categories}
        with atomic_write(self.base / f"annotations/instances_{self.split}.json") as temporary:
            temporary.write_text(json.dumps(content))
        counts = Counter(annotation["category_id"] for annotation in self.annotations)
        return {"images": len(self.images), "instances": {c["name"]: counts[c["id"]] for c in categories if counts[c["id"]]}}


class _ImageNetLayout:
    """Images are held back until both splits have been seen: a category of one split only would have nothing to compare."""

    def __init__(self, root: Path) -> None:
        self.base = root / "imagenet"
        self.crops: dict[str, dict[int, list[np.ndarray]]] = {"training": defaultdict(list), "validation": defaultdict(list)}

    def add(self, split: str, frame: Frame) -> None:
        for identity, category in sorted(frame.coco.items()):
            mask = frame.instances == identity
            if category and mask.sum() >= CROP_PIXELS:
                self.crops[split][category].append(_cut_out(frame.rgb, mask))

    def finish(self) -> dict[str, Any]:
        common = self.crops["training"].keys() & self.crops["validation"].keys()
        names = {c["id"]: c["name"].replace(" ", "_") for c in coco_categories() if c["id"] in common}
        for folder, split in (("train", "training"), ("val", "validation")):
            for category, name in names.items():
                for number, crop in enumerate(self.crops[split][category], start=1):
                    write_image(self.base / folder / name / f"{number:05d}.JPEG", crop)
        return {name: {split: len(of[category]) for split, of in self.crops.items()} for category, name in names.items()}


def _cut_out(image: Rgb, mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """A square around the mask, moved or cut where it leaves the image."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = round(CROP_MARGIN * max(width, height))
    left, top = (
        max(0, min(start + (length - side) // 2, whole - side))
        for start, length, whole in ((x, width, mask.shape[1]), (y, height, mask.shape[0]))
    )
    return image[top : top + side, left : left + side]


def _write_davis(root: Path, settings: SyntheticSettings) -> dict[str, Any]:
    names = [f"walk-{number:02d}" for number in range(settings.davis_sequences)]
    categories = {c["id"]: c["name"] for c in coco_categories()}
    pairs = KeypointLayout(root, categories, settings.keypoints)
    later = LaterObjectsLayout(root, categories, 2 * MIN_PIXELS)
    objects = {name: _write_sequence(root, name, settings, number, pairs, later) for number, name in enumerate(names)}
    cut = len(names) // 3
    for split, members in {"train": names[:cut], "val": names[cut:]}.items():
        with atomic_write(root / f"DAVIS/ImageSets/2017/{split}.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in members))
    with atomic_write(root / "GOT-10k/val/list.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))
    made = {"spair": pairs.finish(), "youtube_vos": later.finish()}
    return {"sequences": len(names), "frames": settings.davis_frames, "objects": objects, **made}


def _write_sequence(
    root: Path, name: str, settings: SyntheticSettings, number: int, pairs: KeypointLayout, later: LaterObjectsLayout
) -> int:
    """One sequence, for DAVIS with the objects that are there throughout, for YouTube-VOS with those that enter, too.

    For GOT-10k with the box of the most prominent. Returns DAVIS's number of objects.

    pairs: takes pairs of its frames.
    """
    davis = root / "DAVIS"
    walk = _walk(settings, "davis", number, settings.davis_frames / settings.fps + DAVIS_STARTS[-1])
    start, objects = _prominent(walk, settings)
    values = np.zeros(2 * len(walk.items) + 2, np.uint8)
    values[objects] = np.arange(1, len(objects) + 1)
    frames = [walk.frame(start + position) for position in range(settings.davis_frames)]
    for position, frame in enumerate(frames):
        write_image(davis / f"JPEGImages/480p/{name}/{position:05d}.jpg", frame.rgb)
    write_labels(davis / "Annotations/480p" / name, np.stack([values[frame.instances] for frame in frames]))
    later.add(name, frames, objects)
    _write_track(root / "GOT-10k/val" / name, frames, objects[0])
    pairs.add(name.replace("-", "_"), walk, start, frames)
    return len(objects)


def _write_objects(root: Path, settings: SyntheticSettings) -> dict[str, Any]:
    """Toys before pictures of a walk of their own."""
    walk = _walk(settings, "objects", 0, BACKGROUND_SECONDS[-1])
    backgrounds = [walk.frame(round(seconds * settings.fps)).rgb for seconds in BACKGROUND_SECONDS]
    toys = ObjectLayout(root, walk.seed, (settings.height, settings.width))
    for _ in range(settings.objects):
        toys.add(walk, settings.object_views, backgrounds)
    return toys.finish()


def _write_track(folder: Path, frames: list[Frame], identity: int) -> None:
    """GOT-10k's files: images from number 1 on, boxes x,y,width,height, whether there is something to see (8) or not (0)."""
    boxes = [cv2.boundingRect((frame.instances == identity).astype(np.uint8)) for frame in frames]
    for number, frame in enumerate(frames, start=1):
        write_image(folder / f"{number:08d}.jpg", frame.rgb)
    lines = {
        "groundtruth.txt": [",".join(f"{value:.4f}" for value in box) for box in boxes],
        "cover.label": ["8" if box[2] else "0" for box in boxes],
        "absence.label": ["0" if box[2] else "1" for box in boxes],
    }
    for name, content in lines.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in content))


def _prominent(walk: Walk, settings: SyntheticSettings) -> tuple[int, list[int]]:
    """The start, of some along the walk, with the largest objects that are in both the first and the last frame; and these objects."""
    best: tuple[int, int, list[int]] = (0, 0, [])
    for seconds in DAVIS_STARTS:
        start = round(seconds * settings.fps)
        first, last = (_areas(walk.frame(start + offset)) for offset in (0, settings.davis_frames - 1))
        stay = {identity: min(area, last[identity]) for identity, area in first.items() if identity in last}
        chosen = sorted(stay, key=lambda identity: (-stay[identity], identity))[:DAVIS_OBJECTS]
        best = max(best, (sum(stay[identity] for identity in chosen), start, chosen))
    if not best[2]:
        raise UserError("no object stays in view for a whole DAVIS sequence", todo="choose fewer davis_frames or another seed")
    return best[1], best[2]


def _areas(frame: Frame) -> dict[int, int]:
    """Pixels of every thing that is large enough to be annotated."""
    counts = np.bincount(frame.instances.ravel(), minlength=1)
    return {i: int(counts[i]) for i, category in frame.coco.items() if category and counts[i] >= 2 * MIN_PIXELS}


def _shares(masks: list[Labels]) -> dict[str, float]:
    """Share of all pixels, by class."""
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)
    return {name: round(float(counts[value] / counts.sum()), 6) for name, value in ADE.items()}


# -- file formats ----------------------------------------------------------------------------------------------------


def coco_categories() -> list[dict[str, Any]]:
    """The 80 official categories in the official order."""
    lines = (line.split(": ") for line in COCO_SUPERCATEGORIES.strip().splitlines())
    entries = ((group, entry.split(" ", 1)) for group, names in lines for entry in names.split(", "))
    return [{"supercategory": group, "id": int(number), "name": name} for group, (number, name) in entries]


def coco_annotations(frame: Frame) -> list[dict[str, Any]]:
    """The frame's visible things as COCO stores them; `area` counts pixels, the polygons rasterize to the same pixels."""
    annotations = []
    for identity, category in sorted(frame.coco.items()):
        mask = frame.instances == identity
        if not category or (area := int(mask.sum())) < MIN_PIXELS:
            continue
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box, shape = [x, y, width, height], mask_polygons(mask)
        annotations.append({"category_id": category, "bbox": box, "area": area, "iscrowd": 0, "segmentation": shape})
    return annotations


def mask_polygons(mask: Bool[np.ndarray, "height width"]) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] that cover exactly the mask's pixel centers.

    COCO polygons cannot have holes: the mask is cut by vertical lines through its holes first. Contours are taken at
    twice the size, so that they run a quarter of a pixel inside the pixels' borders and one pixel still has an outline.
    """
    double = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = [contour for contour, parent in zip(contours, hierarchy[0, :, 3], strict=True) if parent >= 0]
    middles = {2 * round(float(hole[:, 0, 0].min() + hole[:, 0, 0].max()) / 4) for hole in holes}
    cuts = sorted(middles | {0, double.shape[1]})
    polygons = []
    for left, right in pairwise(cuts):
        pieces, _ = cv2.findContours(np.ascontiguousarray(double[:, left:right]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        polygons += [((piece[:, 0] + (left + 0.5, 0.5)) / 2).ravel().tolist() for piece in pieces]
    return polygons
