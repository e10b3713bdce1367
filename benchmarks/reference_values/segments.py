"""Reference values of segmentation by frozen features: the refinement of label maps, and STEGO's losses."""

from typing import Any

import torch
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import children, compare, has, relative

from densewalk.evaluations.stego import losses
from densewalk.ops import pamr as refinement


def pamr(values: Any) -> Rows:
    """Every recorded refinement."""
    for number in children(values, "cases"):
        case = f"cases/{number}"
        images, scores = (torch.from_numpy(values[f"{case}/{key}"]) for key in ("image", "mask"))
        dilations = values[f"{case}/dilations"].reshape(-1).tolist()
        if has(values, f"{case}/std"):
            deviation = refinement.color_deviation(images, dilations)
            yield compare("pamr", case, "standard deviation", deviation[:, :, None], values[f"{case}/std"], 1e-5)
        refined = refinement.pamr(images, scores, iterations=int(values[f"{case}/iterations"]), dilations=dilations)
        yield compare("pamr", case, "refined", refined, values[f"{case}/refined"], 1e-4)


def stego(values: Any) -> Rows:
    """Every recorded correspondence, cluster probe and contrastive CRF."""
    for number in children(values, "correlation"):
        yield from correlation(values, f"correlation/{number}")
    for number in children(values, "cluster_probe"):
        yield from cluster_probe(values, f"cluster_probe/{number}")
    for case in ["crf"] if has(values, "crf/codes") else [f"crf/{number}" for number in children(values, "crf")]:
        yield from crf(values, case)


def correlation(values: Any, case: str) -> Rows:
    """Losses of the three kinds of pairs, cosines of codes, the weighted loss and its gradients."""

    def setting(name: str) -> Any:
        return values[f"{case}/config/{name}"].item()

    centering = losses.Centering(setting("pointwise"), 0.0 if setting("zero_clamp") else -torch.inf, setting("clamp_above"))
    features = [torch.from_numpy(values[f"{case}/{key}"]) for key in ("feats", "feats_knn")]
    codes = [torch.from_numpy(values[f"{case}/{key}"]).requires_grad_() for key in ("codes", "codes_knn")]
    places = losses.Places(*(torch.from_numpy(values[f"{case}/{key}"]) for key in ("coords1", "coords2")))
    shifts = setting("shift_self"), setting("shift_knn"), setting("shift_random")
    negatives = torch.from_numpy(values[f"{case}/permutations"])
    found = losses.correspondence_losses((features[0], features[1]), (codes[0], codes[1]), places, negatives, shifts, centering)
    own, other = losses.sample_maps(codes[0], places.own), losses.sample_maps(codes[1], places.other)
    for name, loss, pair in (("self", found.own, (own, own)), ("knn", found.knn, (own, other))):
        yield compare("stego", case, f"loss, {name}", loss.item(), values[f"{case}/loss_{name}"], 1e-5)
        recorded = values[f"{case}/corr_{name}"]
        yield compare("stego", case, f"cosines of codes, {name}", losses.cosines(*pair).detach().reshape(recorded.shape), recorded, 1e-5)
    yield compare("stego", case, "losses, random", found.random.detach(), values[f"{case}/losses_random"], 1e-5)
    total = setting("weight_self") * found.own + setting("weight_knn") * found.knn + setting("weight_random") * found.random.mean()
    yield compare("stego", case, "loss", total.item(), values[f"{case}/loss"], 1e-5)
    for key, gradient in zip(("codes", "codes_knn"), torch.autograd.grad(total, codes), strict=True):
        yield relative("stego", case, f"gradient to {key}, relative", gradient, values[f"{case}/grad_{key}"], 1e-4)


def cluster_probe(values: Any, case: str) -> Rows:
    """Shares, loss and gradient to the centers; a sharpness that is NaN is a hard assignment."""
    alpha = values[f"{case}/alpha"].item()
    sharpness = None if alpha != alpha else alpha
    codes, centers = torch.from_numpy(values[f"{case}/x"]), torch.from_numpy(values[f"{case}/clusters"]).requires_grad_()
    scores = losses.cluster_scores(codes, centers)
    yield compare("stego", case, "shares", losses.cluster_shares(scores, sharpness).detach(), values[f"{case}/probs"], 1e-5)
    if has(values, f"{case}/log_probs") and sharpness is not None:
        logarithms = (sharpness * scores).log_softmax(1).detach()
        yield compare("stego", case, "log shares", logarithms, values[f"{case}/log_probs"], 1e-5)
    loss = losses.cluster_loss(codes, centers, sharpness)
    yield compare("stego", case, "loss", loss.item(), values[f"{case}/loss"], 1e-5)
    (gradient,) = torch.autograd.grad(loss, centers)
    yield relative("stego", case, "gradient to clusters, relative", gradient, values[f"{case}/grad_clusters"], 1e-4)


def crf(values: Any, case: str) -> Rows:
    """Loss and gradient on the recorded pixels."""
    weights = losses.CrfWeights(*(values[f"{case}/{key}"].item() for key in ("alpha", "beta", "gamma", "w1", "w2", "shift")))
    codes = torch.from_numpy(values[f"{case}/codes"]).requires_grad_()
    pixels = torch.stack([torch.from_numpy(values[f"{case}/{key}"]).reshape(-1) for key in ("rows", "cols")])
    loss = losses.crf_loss(torch.from_numpy(values[f"{case}/guidance"]), codes, pixels, weights)
    yield compare("stego", case, "loss", loss.item(), values[f"{case}/loss"], 1e-5)
    (gradient,) = torch.autograd.grad(loss, codes)
    yield relative("stego", case, "gradient, relative", gradient, values[f"{case}/grad"], 1e-4)
