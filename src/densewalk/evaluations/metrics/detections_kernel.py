"""The loops of COCO's evaluation: overlaps of boxes, matching, and precision at recalls. Arithmetic and its order are pycocotools'."""

import numpy as np

from densewalk.ops.cpu.compiled import compiled

MISS, HIT, IGNORED = 0, 1, 2  # what became of a detection
EPSILON = float(np.spacing(1))


@compiled()
def box_overlaps(
    objects: np.ndarray,
    crowd: np.ndarray,
    detections: np.ndarray,
    first_object: np.ndarray,
    first_detection: np.ndarray,
    first_overlap: np.ndarray,
    overlaps: np.ndarray,
) -> None:
    """IoU of the detections and objects of each pair of an image and a class; with a crowd, the part of the detection that it covers.

    Args:
        objects, detections: [objects, 4] and [detections, 4], x, y, width, height; sorted by pair. crowd: bool [objects].
        first_object, first_detection, first_overlap: [pairs + 1], where a pair's part begins.
        overlaps: filled; a pair's part is [detections, objects].
    """
    for pair in range(len(first_object) - 1):
        at = first_overlap[pair]
        for d in range(first_detection[pair], first_detection[pair + 1]):
            dx, dy, dw, dh = detections[d, 0], detections[d, 1], detections[d, 2], detections[d, 3]
            for g in range(first_object[pair], first_object[pair + 1]):
                gx, gy, gw, gh = objects[g, 0], objects[g, 1], objects[g, 2], objects[g, 3]
                width = np.fmin(dw + dx, gw + gx) - np.fmax(dx, gx)
                height = np.fmin(dh + dy, gh + gy) - np.fmax(dy, gy)
                overlap = 0.0
                if not (width <= 0 or height <= 0):
                    shared, area = width * height, dw * dh
                    overlap = shared / (area if crowd[g] else area + gw * gh - shared)
                overlaps[at] = overlap
                at += 1


@compiled()
def match(
    first_object: np.ndarray,
    first_detection: np.ndarray,
    first_overlap: np.ndarray,
    overlaps: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    outside: np.ndarray,
    thresholds: np.ndarray,
    found: np.ndarray,
) -> None:
    """Match the detections of each pair of an image and a class to its objects, by area range and IoU threshold.

        for each detection, by falling score:
            take the free object of largest IoU >= threshold (a later one where equal); without one, an ignored object
            a crowd stays free

    Args:
        first_object, first_detection, first_overlap, overlaps, crowd: as above; detections of a pair by falling score.
        ignored: bool [areas, objects], crowds among them. outside: bool [areas, detections], ignored if nothing is taken.
        thresholds: ascending.
        found: uint8 [detections, areas, thresholds], filled with MISS, HIT and IGNORED.
    """
    for pair in range(len(first_object) - 1):
        begin, end = first_detection[pair], first_detection[pair + 1]
        objects = first_object[pair + 1] - first_object[pair]
        order, taken, near = np.empty(objects, np.int64), np.empty(objects, np.bool_), np.zeros(end - begin, np.bool_)
        for d in range(end - begin):
            row = overlaps[first_overlap[pair] + d * objects : first_overlap[pair] + (d + 1) * objects]
            for g in range(objects):
                near[d] |= not row[g] < thresholds[0]
        for area in range(len(ignored)):
            own = ignored[area, first_object[pair] : first_object[pair + 1]]
            counted = _counted_first(own, order)
            for t in range(len(thresholds)):
                taken[:] = False
                for d in range(begin, end):
                    at = -1
                    if near[d - begin]:
                        start = first_overlap[pair] + (d - begin) * objects
                        own_crowd = crowd[first_object[pair] : first_object[pair + 1]]
                        at = _best(overlaps[start : start + objects], thresholds[t], order, counted, taken, own_crowd)
                    if at == -1:
                        found[d, area, t] = IGNORED if outside[area, d] else MISS
                    else:
                        taken[order[at]] = True
                        found[d, area, t] = HIT if at < counted else IGNORED


@compiled()
def _counted_first(ignored: np.ndarray, order: np.ndarray) -> int:
    """Fill `order` with the objects that count, then the ignored ones; return the number of the first."""
    counted = 0
    for g in range(len(ignored)):
        if not ignored[g]:
            order[counted] = g
            counted += 1
    at = counted
    for g in range(len(ignored)):
        if ignored[g]:
            order[at] = g
            at += 1
    return counted


@compiled()
def _best(overlaps: np.ndarray, threshold: float, order: np.ndarray, counted: int, taken: np.ndarray, crowd: np.ndarray) -> int:
    """The place in `order` of the object that a detection takes; -1: none."""
    best, at = min(threshold, 1 - 1e-10), -1
    for j in range(len(order)):
        g = order[j]
        if taken[g] and not crowd[g]:
            continue
        if -1 < at < counted <= j:
            break
        if overlaps[g] < best:
            continue
        best, at = overlaps[g], j
    return at


@compiled()
def accumulate(
    order: np.ndarray,
    first: np.ndarray,
    found: np.ndarray,
    rank: np.ndarray,
    most: np.ndarray,
    objects: np.ndarray,
    recalls: np.ndarray,
    precision: np.ndarray,
    recall: np.ndarray,
) -> None:
    """Fill precision at recalls, its envelope from the right, and the largest recall, where there are objects.

    Args:
        order: detections sorted by class, then by falling score; a class's part begins at `first` [classes + 1].
        found: as `match` fills it. rank: of each detection among those of its image and class.
        most: how many of an image and class are taken. objects: [classes, areas], that count.
        precision: [areas, most, thresholds, recalls, classes], recall: [areas, most, thresholds, classes].
    """
    thresholds = found.shape[2]
    for k in range(len(first) - 1):
        rows = order[first[k] : first[k + 1]]
        hit_precision = np.empty((thresholds, len(rows)))
        for area in range(len(precision)):
            if objects[k, area] == 0:
                continue
            for m in range(len(most)):
                hits, misses = np.zeros(thresholds, np.int64), np.zeros(thresholds, np.int64)
                for d in rows:
                    if rank[d] < most[m]:
                        for t in range(thresholds):
                            if found[d, area, t] == HIT:
                                right = float(hits[t] + 1)
                                hit_precision[t, hits[t]] = right / (float(misses[t]) + right + EPSILON)
                                hits[t] += 1
                            elif found[d, area, t] == MISS:
                                misses[t] += 1
                for t in range(thresholds):
                    recall[area, m, t, k] = hits[t] / objects[k, area]
                    _envelope(hit_precision[t, : hits[t]], objects[k, area], recalls, precision[area, m, t, :, k])


@compiled()
def _envelope(precision: np.ndarray, objects: int, recalls: np.ndarray, envelope: np.ndarray) -> None:
    """The best precision at each recall or more; `precision`: at each hit, between which recall stays and precision falls."""
    best, at = 0.0, len(precision)
    for r in range(len(recalls) - 1, -1, -1):
        while at > 0 and at / objects >= recalls[r]:
            best = max(best, precision[at - 1])
            at -= 1
        envelope[r] = best
