"""Where the street runs: from street coordinates (`s` meters along its center line, `d` meters to the right of it) to the world and back.

Headings turn clockwise from north.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator

STRAIGHT = 1e-6  # curvature; the formulas of a circle hold and nobody sees it
BEHIND, AHEAD = 12.0, 80.0  # what is drawn, in meters of street from the walker
TREE_SPACING = 9.0
MATERIALS = {  # of the ground: name -> class
    "lawn": "grass",
    "soil": "earth",
    "slabs": "sidewalk",
    "curb": "sidewalk",
    "asphalt": "road",
    "paint": "road",
}


class Street:
    """A center line of circular arcs, in turn nearly straight, right, nearly straight, left, and the widths of its strips.

    Row i of the table holds where arc i begins: `start` along the line, curvature (1/m, positive to the right), heading, x, z.
    """

    def __init__(self, arcs: Float[np.ndarray, "arcs 5"], *, road: float, pavement: float, zebra: float, verge: bool) -> None:
        self.arcs = arcs
        self.road, self.facade = road, road + pavement  # to where they reach from the center line
        self.walkway = road + 0.55 * pavement
        self.zebra = zebra  # meters from one crossing to the next
        self.verge = verge  # whether grass grows along the curb

    @classmethod
    def random(cls, rng: Generator, length: float) -> "Street":
        """A street from BEHIND the start to `length`, and on to where the last thing can be seen."""
        rows, bend = [np.array([-2 * BEHIND, STRAIGHT, rng.uniform(0, 2 * np.pi), 0.0, 0.0])], float(rng.choice([-1, 1]))
        while rows[-1][0] < length + AHEAD:
            size = rng.uniform(18, 40)
            if len(rows) % 2 == 0:
                curvature, bend = bend * rng.uniform(1 / 45, 1 / 26), -bend
                rows[-1][1], size = curvature, rng.uniform(0.5, 1.2) / abs(curvature)
            here = cls(rows[-1][None], road=0.0, pavement=0.0, zebra=1.0, verge=False)
            end = rows[-1][0] + size
            rows.append(np.array([end, STRAIGHT, here.heading(end), *here.world(end, 0.0)]))
        road, pavement, zebra, verge = rng.uniform(4.9, 5.8), rng.uniform(4.0, 5.2), rng.uniform(38, 60), bool(rng.random() < 0.4)
        return cls(np.stack(rows), road=road, pavement=pavement, zebra=zebra, verge=verge)

    def straight(self, start: float, end: float) -> bool:
        """Whether the street does not turn at either of two places."""
        return bool(np.abs(self._arc(np.array([start, end]))[1]).max() < 1e-3)

    def _arc(self, s: Any) -> Any:
        return self.arcs[np.maximum(np.searchsorted(self.arcs[:, 0], s, side="right") - 1, 0)].T

    def heading(self, s: Any) -> Any:
        """Direction of the center line at `s`."""
        start, curvature, heading, _, _ = self._arc(s)
        return heading + curvature * (s - start)

    def world(self, s: Any, d: Any) -> tuple[Any, Any]:
        """World x and z of a point `s` along the street and `d` to the right of its center line."""
        _, curvature, heading, x, z = self._arc(s)
        now = self.heading(s)
        x = x + (np.cos(heading) - np.cos(now)) / curvature + d * np.cos(now)
        return x, z + (np.sin(now) - np.sin(heading)) / curvature - d * np.sin(now)

    def locate(
        self, x: Float[np.ndarray, " points"], z: Float[np.ndarray, " points"], near: float
    ) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """The inverse of `world` for points of the street not far from `s = near`; other points get s = x and d = z + 1e4.

        Seen from an arc's center, the point lies at distance |d - 1/curvature| and at angle curvature * (s - start).
        """
        found_s, found_d, left = x.copy(), z + 1e4, np.arange(len(x))
        ends = np.append(self.arcs[1:, 0], np.inf)
        for (start, curvature, heading, x0, z0), end in zip(self.arcs, ends, strict=True):
            if end < near - BEHIND or start > near + 1.5 * AHEAD:
                continue
            sin, cos, outward = np.sin(heading), np.cos(heading), -np.sign(curvature)
            east, north = x[left] - x0, z[left] - z0
            ahead, right = east * sin + north * cos, east * cos - north * sin - 1 / curvature
            if curvature == STRAIGHT:
                s, d = start + ahead, right + 1 / curvature
            else:
                s = start + np.arctan2(-outward * ahead, outward * right) / curvature
                d = 1 / curvature + outward * np.hypot(ahead, right)
            here = (s >= start) & (s < end) & (np.abs(d) < self.facade + 1)
            found_s[left[here]], found_d[left[here]] = s[here], d[here]
            left = left[~here]
        return found_s.astype(np.float32), found_d.astype(np.float32)

    def material(self, s: Float[np.ndarray, " points"], d: Float[np.ndarray, " points"]) -> Int[np.ndarray, " points"]:
        """Index into MATERIALS of the ground at a place."""
        side = np.abs(d)
        material = np.where(side < self.facade + 0.6, np.int32(2), np.int32(0))
        pit = (np.abs(side - self.road - 0.9) < 0.55) & (np.abs(s % TREE_SPACING - TREE_SPACING / 2) < 0.55)
        if self.verge:
            material[(side < self.road + 1.5) & (s % self.zebra > 5)] = 0
        material[pit] = 1
        material[side < self.road + 0.18] = 3
        road = np.flatnonzero(side < self.road)
        s, d, side = s[road], d[road], side[road]
        crossing = s % self.zebra
        dashes = (side < 0.07) & (s % 6 < 3) & (crossing > 5)
        bays = (np.abs(side - self.road + 2.15) < 0.05) & (s % 1.2 < 0.6) & (crossing > 5)
        stripes = (crossing < 3.4) & ((d + 0.25) % 1.0 < 0.5) & (side < self.road - 0.3)
        material[road] = np.where(dashes | bays | stripes, 5, 4)
        return material
