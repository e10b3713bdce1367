"""NYUv2's layout: images, depth in millimeters, and a list of each split."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from densewalk.core.files import atomic_write
from densewalk.synthetic.city.walk import Frame
from densewalk.synthetic.image_writer import write_image

FOCAL = "518.8579"  # the third column of NYUv2's lists, which nothing reads


class DepthLayout:
    """One split; each walk is a scene."""

    def __init__(self, root: Path, split: str) -> None:
        self.base, self.split = root / "nyu", split
        self.lines: list[str] = []
        self.known: list[float] = []

    def add(self, walk: int, number: int, frame: Frame) -> None:
        """Write an image and its depth."""
        scene = f"{self.split}_walk_{walk:02d}"
        stored = millimeters(frame.depth)
        names = f"{scene}/rgb_{number:05d}.jpg", f"{scene}/sync_depth_{number:05d}.png"
        write_image(self.base / names[0], frame.rgb)
        write_image(self.base / names[1], stored)
        self.lines.append(f"{names[0]} {names[1]} {FOCAL}\n")
        self.known.append(float((stored > 0).mean()))

    def finish(self) -> dict[str, Any]:
        """Write the list; images, and the share of their pixels with a depth."""
        name = {"training": "nyu_train.txt", "validation": "nyu_test.txt"}[self.split]
        with atomic_write(self.base / name) as temporary:
            temporary.write_text("".join(self.lines))
        return {"images": len(self.lines), "known": round(float(np.mean(self.known)), 6)}


def millimeters(depth: Float[np.ndarray, "height width"]) -> UInt16[np.ndarray, "height width"]:
    """Depth as 16 bits hold it, rounded; 0 where there is none, or more than 65.535 m."""
    stored = np.round(depth.astype(np.float64) * 1000)
    return np.where(stored < 2**16, stored, 0).astype(np.uint16)
