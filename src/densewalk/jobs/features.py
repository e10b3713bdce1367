"""Draw the features of one run's backbone.

results/{run}/s{seed}/features.json, features/*.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densewalk.core import distributed
from densewalk.jobs.inputs import initial_backbone, read_sources
from densewalk.models.loading import load
from densewalk.visualization.settings import PictureSettings

# -- pictures --------------------------------------------------------------------------------------------------------


def features(
    spec: dict[str, Any], init: Path | None, backbone: Path, receipts: Sequence[Path], settings: PictureSettings, out: Path, device: str
) -> None:
    """Draw what one run's backbone makes of a few pictures, beside what it was trained from.

    Args:
        spec: `Study.run_spec`. init: as in `run`. receipts: of the data whose pictures are shown.
    """
    from densewalk.visualization.features import draw_features

    sources = [source for path in receipts for source in read_sources(path, path.stem)]
    where = distributed.local_device(device)
    before = initial_backbone(spec, init).eval().to(where) if spec["method"] != "none" else None
    draw_features(load(backbone).eval().to(where), before, sources, settings, out)
