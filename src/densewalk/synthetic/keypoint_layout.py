"""SPair-71k's layout: pairs of images of one rigid thing, with points that both show."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng

from densewalk.core.files import atomic_write
from densewalk.synthetic.city.correspondence import Places, Sight, follow, rigid_things, sight_of, viewpoint
from densewalk.synthetic.city.walk import Frame, Walk
from densewalk.synthetic.image_writer import write_image

FEWEST = 4  # points of a pair
SHORTEST = 16  # longer side of a thing in pixels, in both images
VIEWPOINTS = (5.0, 15.0)  # degrees from which on the viewpoint differs in the second and third degree


class KeypointLayout:
    """The list `test`. A category's image is written once, however many things and pairs it is in.

    The same thing of a walk is the source and the target, so that its points are the same points, exactly: no annotator's guess. Places
    are x and y in pixels from the image's top left corner, not rounded to whole pixels as those of SPair-71k are.
    """

    def __init__(self, root: Path, names: Mapping[int, str], most: int) -> None:
        """Start a list; names: of COCO's categories. most: points of a pair."""
        self.base, self.names, self.most = root / "SPair-71k", {i: name.replace(" ", "_") for i, name in names.items()}, most
        self.lines: list[str] = []
        self.points = 0
        self.written: set[Path] = set()

    def add(self, sequence: str, walk: Walk, start: int, frames: Sequence[Frame]) -> None:
        """Pairs of a sequence's frames that lie half of it apart, forward and backward."""
        steps = len(frames) - 1
        for first in sorted({0, steps // 4, steps - steps // 2}):
            apart = max(1, steps // 2)
            if first + apart > steps:
                continue
            order = (first, first + apart) if first != steps // 4 else (first + apart, first)
            self._add_pair(sequence, walk, start, frames, *order)

    def _add_pair(self, sequence: str, walk: Walk, start: int, frames: Sequence[Frame], source: int, target: int) -> None:
        for identity in rigid_things(walk, frames[source]):
            sights = [sight_of(walk, start + number, frames[number], identity) for number in (source, target)]
            if min(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (sight.box for sight in sights)) < SHORTEST:
                continue
            places, found, seen = follow(*sights)
            if seen.sum() < FEWEST:
                continue
            rng = default_rng((*walk.seed, start + source, start + target, identity))
            chosen = np.sort(rng.permutation(np.flatnonzero(seen))[: self.most])
            category = self.names[frames[source].coco[identity]]
            images = []
            for number in (source, target):
                images.append(f"{sequence}_{number:05d}")
                self._write_image(category, images[-1], frames[number])
            self._write_pair(category, images, sights, [places[chosen], found[chosen]])

    def _write_image(self, category: str, name: str, frame: Frame) -> None:
        path = self.base / "JPEGImages" / category / f"{name}.jpg"
        if path not in self.written:
            self.written.add(path)
            write_image(path, frame.rgb)

    def _write_pair(self, category: str, images: Sequence[str], sights: Sequence[Sight], points: Sequence[Places]) -> None:
        line = f"{len(self.lines):06d}-{images[0]}-{images[1]}:{category}"
        content: dict[str, Any] = {"pair_id": len(self.lines), "category": category, "kps_ids": [str(i) for i in range(len(points[0]))]}
        for side, image, sight, places in zip(("src", "trg"), images, sights, points, strict=True):
            content |= {f"{side}_imname": f"{image}.jpg", f"{side}_imsize": [sight.camera.width, sight.camera.height, 3]}
            content |= {f"{side}_bndbox": list(sight.box), f"{side}_kps": np.round(places, 3).tolist()}
        content["viewpoint_variation"] = int(np.searchsorted(VIEWPOINTS, viewpoint(*sights), side="right"))
        with atomic_write(self.base / f"PairAnnotation/test/{line}.json") as temporary:
            temporary.write_text(json.dumps(content))
        self.lines.append(line)
        self.points += len(points[0])

    def finish(self) -> dict[str, Any]:
        """Write the list, if there is a pair; pairs by category, and how many points they have."""
        if self.lines:
            with atomic_write(self.base / "Layout/large/test.txt") as temporary:
                temporary.write_text("".join(f"{line}\n" for line in self.lines))
        counts = Counter(line.partition(":")[2] for line in self.lines)
        return {"pairs": dict(sorted(counts.items())), "points": self.points, "images": len(self.written)}
