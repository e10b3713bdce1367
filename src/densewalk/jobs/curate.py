"""Choose what runs are trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densewalk.core import distributed
from densewalk.core.hashing import file_sha256
from densewalk.curation.select import curate as choose
from densewalk.curation.settings import CurationSettings
from densewalk.jobs.inputs import feature_cache, read_backbone, read_sources
from densewalk.training.execution import Execution

# -- curation --------------------------------------------------------------------------------------------------------


def curate(spec: dict[str, Any], backbone: Path, receipts: Sequence[Path], out: Path, execution: Execution) -> None:
    """Choose what runs are to be trained on.

    Args:
        spec: `Study.curation_spec`.
        backbone: what compares pictures. receipts: of the data, in the specification's order.
        out: the receipt; the list of all pictures and the sheet lie beside it.
    """
    network = read_backbone(spec["backbone"], spec["arch"], backbone).eval().to(distributed.local_device(execution.device))
    sources = [source for path, name in zip(receipts, spec["data"], strict=True) for source in read_sources(path, name)]
    cls = feature_cache(execution).wrap(network.cls, f"cls {file_sha256(backbone)} {spec['backbone'].get('key')}")
    choose(CurationSettings.model_validate(spec["settings"]), sources, network, cls, out, workers=execution.workers)
