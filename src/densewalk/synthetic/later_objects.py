"""Sequences of the generated city in YouTube-VOS's layout: objects that are there at first, and some that enter later.

    YouTube-VOS/valid/{JPEGImages,Annotations}/{sequence}/%05d.{jpg,png}, YouTube-VOS/valid/meta.json

Unlike the benchmark's own validation set, every frame has its mask, so that predictions can be scored.
"""

from pathlib import Path
from typing import Any

import numpy as np

from densewalk.core.files import write_json
from densewalk.data.benchmarks.video_objects import write_labels
from densewalk.synthetic.city.walk import Frame
from densewalk.synthetic.image_writer import write_image

STEP = 5  # between the numbers of frames, as in YouTube-VOS
MOST_LATER = 2  # objects
LEAST_AFTER = 2  # frames after the one in which an object enters


class LaterObjectsLayout:
    """Collects sequences; `finish` writes what names their objects."""

    def __init__(self, root: Path, categories: dict[int, str], least_pixels: int) -> None:
        self.base, self.categories, self.least_pixels = root / "YouTube-VOS/valid", categories, least_pixels
        self.videos: dict[str, Any] = {}
        self.later = 0

    def add(self, name: str, frames: list[Frame], objects: list[int]) -> None:
        """Write a sequence. objects: identities of those that are there at first."""
        first = dict.fromkeys(objects, 0) | self._entering(frames)
        masks = np.zeros((len(frames), *frames[0].instances.shape), np.uint8)
        for number, (identity, start) in enumerate(first.items(), start=1):
            for place in range(start, len(frames)):
                masks[place][frames[place].instances == identity] = number
        names = [f"{STEP * number:05d}" for number in range(len(frames))]
        for stem, frame in zip(names, frames, strict=True):
            write_image(self.base / f"JPEGImages/{name}/{stem}.jpg", frame.rgb)
        write_labels(self.base / "Annotations" / name, masks, names)
        found = {}
        for number, identity in enumerate(first, start=1):
            category = next(frame.coco[identity] for frame in frames if identity in frame.coco)
            shown = [stem for stem, mask in zip(names, masks, strict=True) if (mask == number).any()]
            found[str(number)] = {"category": self.categories[category], "frames": shown}
        self.videos[name] = {"objects": found}
        self.later += len(first) - len(objects)

    def _entering(self, frames: list[Frame]) -> dict[int, int]:
        """Identity of each object that is not in the first frame, and the frame in which it is large enough; the largest ones."""
        areas = np.stack([np.bincount(frame.instances.ravel(), minlength=_most(frames) + 1) for frame in frames])
        things = {identity for frame in frames for identity, category in frame.coco.items() if category}
        found = {}
        for identity in sorted(things):
            large = np.flatnonzero(areas[:, identity] >= self.least_pixels)
            if areas[0, identity] == 0 and len(large) and large[0] < len(frames) - LEAST_AFTER:
                found[identity] = int(large[0])
        chosen = sorted(found, key=lambda identity: (-int(areas[:, identity].sum()), identity))[:MOST_LATER]
        return {identity: found[identity] for identity in sorted(chosen, key=lambda identity: (found[identity], identity))}

    def finish(self) -> dict[str, int]:
        """Write meta.json."""
        write_json(self.base / "meta.json", {"videos": self.videos})
        return {"videos": len(self.videos), "objects_that_enter_later": self.later}


def _most(frames: list[Frame]) -> int:
    return max(int(frame.instances.max()) for frame in frames)
