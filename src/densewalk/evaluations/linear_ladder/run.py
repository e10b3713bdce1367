"""Train and score linear probes between two protocols; the frozen features of a crop or a test image are computed once for all of them.

    results = score(mixtures, backbone_path, job)

Probes whose crops and steps are the same learn side by side from one pass over the features. Those that are only tested in another way
are one trained head. Each test image passes the backbone once for each way of preparing it. Other crops are other features: nothing can
be shared there.

    job.state/{hash}/step-*.pt          the heads of one stream of crops: every few minutes, on a signal and at its end
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from densewalk.core.hashing import config_hash, file_sha256
from densewalk.core.progress import Progress, log
from densewalk.data.fingerprint import fingerprint
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, Result
from densewalk.evaluations.common.periodic_saver import PeriodicSaver
from densewalk.evaluations.linear_ladder.parts import STREAM, Mixture
from densewalk.evaluations.linear_ladder.probe import Probe
from densewalk.evaluations.linear_ladder.streams import Source, TestImage, is_reduced
from densewalk.evaluations.metrics.image_counts import Counted, ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import mean_iou
from densewalk.training.progress_files import How
from densewalk.training.signals import stop_signals
from densewalk.training.state import State

SAVE_SECONDS = 300.0
Head = tuple[bool, ...]


def score(mixtures: Sequence[Mixture], backbone_path: Path, job: Job) -> list[Result]:
    """The mIoU of each probe, of the same two protocols, with what it is made of."""
    source = Source(mixtures[0].toolbox, mixtures[0].own, backbone_path, job)
    streams: dict[tuple[bool, ...], dict[Head, Mixture]] = defaultdict(dict)
    for mixture in mixtures:
        streams[mixture.chosen(STREAM)].setdefault(mixture.head, mixture)
    heads: dict[Head, Probe] = {}
    for number, (stream, chosen) in enumerate(streams.items()):
        log.info("stream %d/%d: %d heads learn side by side", number + 1, len(streams), len(chosen))
        heads |= train(source, stream, chosen, backbone_path)
    return test(source, mixtures, heads)


def train(source: Source, stream: tuple[bool, ...], chosen: dict[Head, Mixture], backbone_path: Path) -> dict[Head, Probe]:
    """Train the heads of one stream of crops side by side, from the newest intact checkpoint if there is one."""
    job, device = source.job, torch.device(source.job.device)
    probes = {head: start(source, mixture) for head, mixture in chosen.items()}
    own_crops, own_amount = stream
    batches, done = source.batches(own_amount=own_amount), 0
    hashes = [mixture.hash for mixture in chosen.values()]
    inputs = {
        "backbone": file_sha256(backbone_path),
        "settings": config_hash([hashes, job.seed]),
        "data": job.data or fingerprint(source.own.data_paths).sha256,
    }
    with State(job.state / config_hash(hashes), inputs, how=How(device=job.device)) as state, stop_signals() as stop:
        if (content := state.newest(device)) is not None:
            for probe, saved in zip(probes.values(), content["heads"], strict=True):
                probe.load(saved)
            done = content["step"]
        saver = PeriodicSaver(state, stop, len(batches), seconds=SAVE_SECONDS, device=device)
        progress = Progress("train", len(batches), done=done)
        for at, (maps, labels) in enumerate(source.crops(batches[done:], own=own_crops), start=done):
            losses = [probe.step(maps, labels, at, len(batches)) for probe in probes.values()]
            progress.advance(f"loss {min(losses):.4f} to {max(losses):.4f}")
            if saver.is_due(at + 1):
                saver.save(at + 1, {"step": at + 1, "heads": [probe.state() for probe in probes.values()]})
        progress.close()
    return probes


def start(source: Source, mixture: Mixture) -> Probe:
    """The head of a mixture before its first step."""
    outputs = source.own.label_values if mixture.is_own("outputs") else len(source.toolbox.rule.values)
    weights = None if mixture.is_own("start") else source.pieces.first_head(outputs)
    return Probe(mixture, source.network.dim, source.job.seed, weights, torch.device(source.job.device))


@torch.inference_mode()
def test(source: Source, mixtures: Sequence[Mixture], heads: dict[Head, Probe]) -> list[Result]:
    """Score every probe on all test images."""
    own = source.own
    found: list[list[Counted]] = [[] for _ in mixtures]
    for own_images in sorted({mixture.is_own("scored_images") for mixture in mixtures}):
        members = [i for i, mixture in enumerate(mixtures) if mixture.is_own("scored_images") == own_images]
        progress = Progress("validation", len(source.validation))
        for image in source.test_images(own=own_images):
            probes = [(mixtures[i], heads[mixtures[i].head]) for i in members]
            for i, entries in zip(members, count(source, image, probes), strict=True):
                found[i].append(entries)
            progress.advance()
        progress.close()
    results = []
    for mixture, counts in zip(mixtures, found, strict=True):
        images = ImageCounts.of(counts, own.label_values, own.label_values)
        zero = mixture.is_own("absent_classes") and bool(own.count_absent_classes)
        absent: Literal["skip", "zero"] = "zero" if zero else "skip"
        dense_features.require_labelled(own, bool(images.matrix.any()), len(source.validation), "validation")
        units = dense_features.image_units(own, source.validation, {"mIoU": images.mean_iou(absent)})
        value = 100 * mean_iou(images.matrix, absent=absent)
        results.append(Result({"mIoU": value}, n=len(source.validation), unit="images", units=units))
    return results


def count(source: Source, image: TestImage, probes: Sequence[tuple[Mixture, Probe]]) -> list[Counted]:
    """Pixels of each label with each predicted one, for each probe; a head's prediction is made once."""
    own, targets = source.own, source.targets(image.number)
    predictions: dict[tuple[Head, bool], torch.Tensor] = {}
    counts = []
    for mixture, probe in probes:
        key = mixture.head, is_reduced(mixture)
        if key not in predictions:
            scores = probe.logits(image.maps)
            for size in ((own.mask_size, own.mask_size),) if key[1] else image.sizes:
                scores = F.interpolate(scores, size, mode="bilinear")
            predictions[key] = probe.values[scores[0].argmax(0)]
        counts.append(counted(targets[key[1]], predictions[key], own.label_values, own.label_values, ignore=own.ignored))
    return counts
