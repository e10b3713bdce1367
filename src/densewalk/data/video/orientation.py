"""How a video's stored frames are to be turned and mirrored, by their display matrix."""

import struct
from dataclasses import dataclass
from pathlib import Path

import av
from av.sidedata.sidedata import Type

from densewalk.core.errors import UserError


@dataclass(frozen=True)
class Orientation:
    """How a stored frame becomes upright.

    turn: degrees to turn it by, clockwise (0, 90, 180, 270). mirrored: left and right are then exchanged.
    """

    turn: int = 0
    mirrored: bool = False

    def __str__(self) -> str:
        turned = [f"turned by {self.turn} degrees"] if self.turn else []
        return " and ".join(turned + (["mirrored"] if self.mirrored else [])) or "upright"

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height are exchanged."""
        return self.turn % 180 != 0


# Signs of the display matrix' a, b, c, d. A pixel p to the right and q down is shown at x = a p + c q, y = b p + d q
# (ISO/IEC 14496-12, 6.2.2). These eight are all that map rows and columns to rows and columns.
ORIENTATIONS = {
    (1, 0, 0, 1): Orientation(0),
    (0, 1, -1, 0): Orientation(90),
    (-1, 0, 0, -1): Orientation(180),
    (0, -1, 1, 0): Orientation(270),
    (-1, 0, 0, 1): Orientation(0, mirrored=True),
    (0, 1, 1, 0): Orientation(90, mirrored=True),
    (1, 0, 0, -1): Orientation(180, mirrored=True),
    (0, -1, -1, 0): Orientation(270, mirrored=True),
}
# FFmpeg's filters for each
FILTERS = {
    Orientation(0): [],
    Orientation(90): [("transpose", "clock")],
    Orientation(180): [("hflip", ""), ("vflip", "")],
    Orientation(270): [("transpose", "cclock")],
    Orientation(0, mirrored=True): [("hflip", "")],
    Orientation(90, mirrored=True): [("transpose", "cclock_flip")],
    Orientation(180, mirrored=True): [("vflip", "")],
    Orientation(270, mirrored=True): [("transpose", "clock_flip")],
}


def frame_orientation(frame: av.VideoFrame, path: str | Path) -> Orientation:
    """Read a frame's orientation.

    Raises:
        UserError: it is turned by another angle, skewed or stretched.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # by type, which PyAV's stubs do not know
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    size = max(abs(a), abs(b), abs(c), abs(d), 1)
    signs = tuple(round(entry / size, 3) for entry in (a, b, c, d))  # a thousandth is rounding
    if signs not in ORIENTATIONS:
        matrix = ", ".join(f"{entry / 65536:g}" for entry in (a, b, c, d))
        angle = round(-frame.rotation) % 360
        raise UserError(
            f"{path} is to be shown turned by {angle} degrees, skewed or stretched (display matrix {matrix})",
            allowed="turns of 0, 90, 180 and 270 degrees, mirrored or not",
            todo="re-encode it upright",
        )
    return ORIENTATIONS[signs]
