"""Which views of an object are compared with each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.object_views import ObjectView
from densewalk.evaluations.geometric_correspondence.settings import GeometricCorrespondenceSettings


@dataclass(frozen=True)
class ViewPair:
    """Two views of one object. angle: degrees by which they are turned against each other."""

    source: ObjectView
    target: ObjectView
    angle: float

    @property
    def name(self) -> str:
        """The object and both images."""
        return f"{self.source.name}/{self.target.image.stem}"


def choose_pairs(views: Sequence[ObjectView], settings: GeometricCorrespondenceSettings) -> tuple[list[ViewPair], int]:
    """A partner for every `every`-th view, and how many of these views have none.

    A partner is drawn from the object's views with 0 < angle <= max_angle. The draws of an object depend on its name and its own views.

    Raises:
        UserError: no view has a partner.
    """
    partners: list[ViewPair | None] = []
    for thing, members in groupby(views, key=lambda view: view.thing):
        partners += _draw(list(members), settings.max_angle, np.random.default_rng([settings.pair_seed, *thing.encode()]))
    chosen = partners[:: settings.every]
    pairs = [pair for pair in chosen if pair is not None]
    if not pairs:
        raise UserError(
            f"none of {len(chosen)} views has a partner: another view of its object that is turned by up to {settings.max_angle:g} degrees",
            todo="complete the data or raise max_angle",
        )
    return pairs, len(chosen) - len(pairs)


def _draw(views: list[ObjectView], max_angle: float, generator: np.random.Generator) -> list[ViewPair | None]:
    """Each view's partner."""
    angles = turned_by(np.stack([view.rotation for view in views]))
    found: list[ViewPair | None] = []
    for i, view in enumerate(views):
        near = (angles[i] > 0) & (angles[i] <= max_angle)
        near[i] = False
        place = generator.random()  # one draw for every view, whatever the others are
        others = np.flatnonzero(near)
        other = others[int(place * len(others))] if len(others) else None
        found.append(None if other is None else ViewPair(view, views[other], float(angles[i, other])))
    return found


def turned_by(rotations: Float[np.ndarray, "views 3 3"]) -> Float[np.ndarray, "views views"]:
    """Angles in degrees between all rotations: arccos((trace(A B^T) - 1) / 2)."""
    flat = rotations.reshape(len(rotations), 9)
    return np.degrees(np.arccos(np.clip((flat @ flat.T - 1) / 2, -1, 1)))
