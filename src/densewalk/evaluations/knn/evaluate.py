"""k-NN classification with frozen features: DINO's protocol, and DINOv2's.

    densewalk evaluate --spec '{"protocol": "knn", ...}' --backbone backbone.safetensors --state DIR --out FILE

Every picture becomes its CLS token after the final norm, L2-normalised. A test picture takes the class with the largest sum of
weights among its k nearest training pictures,

    score(c) = sum_{i in kNN, y_i = c} exp(cos(f, f_i) / temperature),

for k = 10, 20, 100 and 200. Sources: DINO (https://arxiv.org/abs/2104.14294, section 4.2.1, after Wu et al.,
https://arxiv.org/abs/1805.01978), DINOv2 (https://arxiv.org/abs/2304.07193).

One search serves all k: the 200 nearest come in falling order, so the votes of a smaller k are a prefix of those of a larger
one. Test pictures are searched as their features come; memory holds the training features and one block of similarities. Any
number of test pictures will do (the released code cannot split fewer than 100). A k of more than there are training pictures
has no value.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.benchmarks.classification import ClassifiedImages, list_imagenet
from densewalk.evaluations.common.base import Job, Result, require_finite
from densewalk.evaluations.common.image_features import BATCH, CentreCrops, describe_classification, require_multiple
from densewalk.evaluations.knn.settings import NEIGHBOURS, KnnSettings
from densewalk.models.backbone import Backbone
from densewalk.models.loading import load
from densewalk.ops.nearest_neighbors import nearest

log = logging.getLogger("densewalk")


def evaluate(settings: KnnSettings, backbone_path: Path, job: Job) -> Result:
    """Score one backbone.

    Raises:
        UserError: a split, a class or a picture is missing or damaged; the message names it.
    """
    training, validation = list_imagenet(settings.root, settings.training, settings.validation)
    ks = usable(len(training))
    backbone = load(backbone_path).eval().to(job.device)
    require_multiple(settings.size, backbone)
    memory = torch.empty(len(training), backbone.dim, device=job.device)  # filled in place: concatenating would need it twice
    rows = iter(memory.split(BATCH))
    for batch, _ in features(backbone, training, settings, job, "training features"):
        next(rows).copy_(batch)
    labels = torch.tensor(training.targets, device=memory.device)
    correct = torch.zeros(len(ks), dtype=torch.int64, device=memory.device)
    for batch, targets in features(backbone, validation, settings, job, "k-NN"):
        similarity, index = nearest(memory, batch, ks[-1])
        correct += (vote(similarity, labels[index], len(training.names), ks, settings.temperature) == targets).sum(1)
    accuracy = dict(zip(ks, (100 * correct.double() / len(validation)).tolist(), strict=True))
    return Result(
        metrics={f"top1_k{k}": accuracy.get(k, math.nan) for k in NEIGHBOURS},
        n=len(validation),
        unit="images",
        details={"classes": len(training.names), "training_images": len(training), "validation_images": len(validation)},
    )


def describe_data(settings: KnnSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    return describe_classification(settings.root, settings.training, settings.validation)


def usable(pictures: int) -> list[int]:
    """The numbers of neighbours that a training set of this size has.

    Raises:
        UserError: it has not even the smallest.
    """
    ks = [k for k in NEIGHBOURS if k <= pictures]
    if not ks:
        raise UserError(f"{pictures} training pictures are fewer than the smallest number of neighbours, {NEIGHBOURS[0]}")
    if len(ks) < len(NEIGHBOURS):
        log.warning("%d training pictures: no value for k = %s", pictures, ", ".join(map(str, NEIGHBOURS[len(ks) :])))
    return ks


def vote(
    similarity: Float[Tensor, "queries neighbours"],
    labels: Int[Tensor, "queries neighbours"],
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Int[Tensor, "ks queries"]:
    """The class that the first k neighbours of each query vote for, for every k of the ascending `ks`.

    for q in queries:
        for k in ks:
            score = zeros(classes)
            for i in range(k):
                score[labels[q, i]] += exp(similarity[q, i] / temperature)
            prediction[k, q] = argmax(score)
    """
    weights = ((similarity - 1) / temperature).exp()  # a common factor: no temperature overflows
    scores = weights.new_zeros(len(weights), classes)
    predictions = []
    for start, stop in pairwise([0, *ks]):
        scores.scatter_add_(1, labels[:, start:stop], weights[:, start:stop])
        predictions.append(scores.argmax(1))
    return torch.stack(predictions)


def features(
    backbone: Backbone, split: ClassifiedImages, settings: KnnSettings, job: Job, label: str
) -> Iterator[tuple[Float[Tensor, "batch dim"], Int[Tensor, " batch"]]]:
    """L2-normalised CLS tokens and classes, batch by batch in the split's order.

    Raises:
        UserError: a picture cannot be read, or its features are not finite.
    """
    loader = DataLoader(CentreCrops(split, settings.resize, settings.size), batch_size=BATCH, num_workers=job.workers)
    for images, targets, numbers in track(loader, label):
        with torch.inference_mode():
            cls = backbone.cls(images.to(job.device))
        require_finite(cls, [split.paths[i] for i in numbers.tolist()], backbone.source)
        yield F.normalize(cls, dim=1), targets.to(job.device)
