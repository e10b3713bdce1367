"""Draw the features of one run's backbone.

results/{run}/s{seed}/features.json, features/*.png
"""

from collections.abc import Sequence
from pathlib import Path

from densewalk.core import distributed
from densewalk.core.hashing import file_sha256
from densewalk.jobs.inputs import initial_backbone, read_sources
from densewalk.models.loading import load
from densewalk.study.specs import RunSpec
from densewalk.visualization.features import draw_features
from densewalk.visualization.record import drawing_hash
from densewalk.visualization.settings import PictureSettings


def features(
    spec: RunSpec, init: Path | None, backbone: Path, receipts: Sequence[Path], settings: PictureSettings, out: Path, device: str
) -> None:
    """Draw the features of one run's backbone on a few images, and of what it was trained from.

    Args:
        init: the initial backbone's file, unless it is random. receipts: of the data whose images are shown.
    """
    sources = [source for path in receipts for source in read_sources(path, path.stem)]
    where = distributed.local_device(device)
    before = initial_backbone(spec, init).eval().to(where) if spec.method != "none" else None
    marks = {"config_hash": drawing_hash(spec.hash, settings), "backbone_sha256": file_sha256(backbone)}
    draw_features(load(backbone).eval().to(where), before, sources, settings, out, **marks)
