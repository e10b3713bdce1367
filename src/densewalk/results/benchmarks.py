"""What the benchmarks of the published numbers hold: a data set's name alone makes no published value comparable. Free of torch.

    BENCHMARKS["davis", "DAVIS-2017"]       by table and name of the data
    dataset_name(record)                    "DAVIS-2017 (9 objects, the benchmark has 61)"

The count of what was scored must be the benchmark's, and where names are known, so must they be. A benchmark that is not here has no
published values in the tables.
"""

import hashlib
from dataclasses import dataclass

from densewalk.data.benchmarks.sizes import DEPTH, DISCOVERY, IMAGES, LANDMARKS, NAVI_PAIRS, SPAIR_PAIRS
from densewalk.results.records import ResultRecord


@dataclass(frozen=True)
class Benchmark:
    """units: of the list, and what the released code scores of it if that is less. names: sha256 of the sorted names, a line each."""

    units: tuple[int, ...]
    names: str | None = None


VALIDATION = {name: validation for name, (_, validation) in IMAGES.items()}
VOC = VALIDATION["voc"]
# PascalVOC, two counts: `compat: released` leaves out the last incomplete batch, of 128 or 32 images
BENCHMARKS = {
    ("davis", "DAVIS-2017"): Benchmark((61,), "e1645e2050bbe05871aa41863e99cf5865afabbe7b9e9537911981fb2fcd6fd2"),
    ("classification", "ImageNet-1k"): Benchmark((VALIDATION["imagenet"],)),
    ("ade20k", "ADE20K"): Benchmark((VALIDATION["ade20k"],)),
    ("incontext", "PascalVOC"): Benchmark((VOC,)),
    ("incontext", "ADE20K"): Benchmark((VALIDATION["ade20k"],)),
    ("linear_segmentation", "PascalVOC"): Benchmark((VOC, VOC // 128 * 128)),
    ("linear_segmentation", "ADE20K"): Benchmark((VALIDATION["ade20k"],)),
    ("overcluster", "PascalVOC"): Benchmark((VOC, VOC // 32 * 32)),
    ("coco", "COCO"): Benchmark((VALIDATION["coco"],)),
    ("correspondence", "SPair-71k"): Benchmark((SPAIR_PAIRS["test"],)),
    ("geometric_correspondence", "NAVI"): Benchmark((NAVI_PAIRS,)),
    ("discovery", "VOC12 val"): Benchmark((VOC,)),  # the list of segmentation
    **{("discovery", name): Benchmark((images,)) for name, images in DISCOVERY.items()},
    **{("depth", name): Benchmark((scored,)) for name, (_, scored) in DEPTH.items()},
    ("retrieval", "ROxford5k"): Benchmark((LANDMARKS["roxford5k"][1],)),
    ("retrieval", "RParis6k"): Benchmark((LANDMARKS["rparis6k"][1],)),
}


def is_benchmark(record: ResultRecord) -> bool:
    """True where a record scored the whole list of the benchmark that its data is named after."""
    known = BENCHMARKS.get((record.task, record.dataset))
    if known is None or listed(record) not in known.units:
        return False
    return known.names is None or known.names == names_sha256(record)


def dataset_name(record: ResultRecord) -> str:
    """The data set as a table names it: under a benchmark's name, but with another content, with what was scored of how many."""
    known = BENCHMARKS.get((record.task, record.dataset))
    says_names = known is not None and (known.names is None or "sequences" in record.details)  # not in a record of an earlier version
    if known is None or is_benchmark(record) or (listed(record) in known.units and not says_names):
        return record.dataset
    found, whole = listed(record), known.units[0]
    if found in known.units:
        return f"{record.dataset} (not the benchmark's list)"
    return f"{record.dataset} ({found:,} {record.unit}, the benchmark has {whole:,})"


def listed(record: ResultRecord) -> int:
    """Units of the list: those that were scored, and images that have no object or no depth to score."""
    return record.n + sum(int(record.details.get(f"images_without_{thing}", 0)) for thing in ("object", "depth"))


def names_sha256(record: ResultRecord) -> str:
    """The sha256 of the sorted names of the sequences, a line each."""
    return hashlib.sha256("\n".join(sorted(record.details.get("sequences", {}))).encode()).hexdigest()
