"""Choose what runs are trained on.

results/data/{curation}.json, .csv, .png
"""

from collections.abc import Sequence
from pathlib import Path

from densewalk.core import distributed
from densewalk.core.hashing import file_sha256
from densewalk.core.machine import usable_workers
from densewalk.curation.select import curate as choose
from densewalk.data.contents import contents_of
from densewalk.data.receipts import write_receipt
from densewalk.jobs.inputs import feature_cache, read_backbone, read_data
from densewalk.models.origin import CheckpointFile
from densewalk.study.specs import CurationSpec
from densewalk.training.execution import Execution


def curate(spec: CurationSpec, backbone: Path, receipts: Sequence[Path], out: Path, execution: Execution) -> None:
    """Choose what runs are trained on.

    Args:
        backbone: compares the images. receipts: of the data, in the specification's order.
        out: the receipt, written last; the list of all images and the contact sheet are written beside it.
    """
    sha256 = file_sha256(backbone)
    network = read_backbone(spec.backbone, spec.arch, backbone, spec.code).eval().to(distributed.local_device(execution.device))
    sources = read_data(receipts, spec.data or {})
    key = spec.backbone.key if isinstance(spec.backbone, CheckpointFile) else None
    cls = feature_cache(execution).wrap(network.pooled, f"cls {sha256} {key}")
    receipt = choose(spec.settings, sources, network, cls, out, workers=usable_workers(execution.workers))
    contents = tuple(content for source in sources for content in contents_of(source.receipt))
    write_receipt(out, receipt.model_copy(update={"config_hash": spec.hash, "contents": contents, "backbone_sha256": sha256}))
