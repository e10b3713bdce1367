"""Propagate labels through a video by feature similarity (Time-Tuning, DAVIS).

    affinity(t, s) = exp(<f_t, f_s> / temperature)   if |row_t - row_s| <= radius and |column_t - column_s| <= radius, else 0
    kept(t)        = { s : affinity(t, s) >= the top_k-th largest affinity of t over the whole context }         (ties stay)
    label(t)       = sum_{s in kept(t)} affinity(t, s) label(s) / sum_{s in kept(t)} affinity(t, s)

f are L2-normalized patch features; the context of a frame is the first frame and up to `context` frames before it. Radius 0 is no
window, as in the released codes, which look at it only where it is above 0. DINOv3's window is a circle: the squares of both distances
add up to radius^2 at most. Sources: DINO's video segmentation (https://arxiv.org/abs/2104.14294, section 4.2.2), which follows
https://arxiv.org/abs/2006.14613, appendix F; Time-Tuning (https://arxiv.org/abs/2308.11796, section 3) uses the same rule on a clip's
soft cluster assignment.

The result is exact, but no [targets, sources] matrix is built: the target grid is cut into tiles, and each tile is compared only with
the keys in its window. The k best sources of a target lie on the k positions whose best frame is best, so a maximum over the frames
comes before any sorting. Memory grows with the window, not with the square of the grid. On a CPU it is the keys that are cut, into blocks,
and a compiled loop takes the best out of the similarities; little more than the products takes time (benchmarks/davis.py).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from densewalk.ops.cpu.linear import product
from densewalk.ops.cpu.switch import use_cpu_kernels

TILE = (10, 13)  # most target rows and columns: small enough to skip keys outside the window, large enough for fast products
BLOCK = 128  # keys of a block in the compiled search: few places of a frame, large enough for fast products
BUDGET = 1 << 22  # similarities at once (16 MiB), as far as a batch can be split
COMPILED_FROM = 1 << 22  # similarities: with fewer, loading numba (0.3 s) would take longer than it saves


@dataclass(frozen=True)
class Rule:
    """Settings of the propagation."""

    grid: tuple[int, int]  # rows and columns of patches
    radius: int | None  # half-width of the square window in patches; 0, as in the released codes, or None for no limit
    top_k: int  # sources kept per target
    context: int  # frames before the target's, in addition to the first
    temperature: float = 0.1
    circle: bool = False  # the window is a circle of this radius (DINOv3), not a square

    @property
    def reach(self) -> int:
        """The radius, or the whole grid."""
        return self.radius or max(self.grid)


def follow(
    frames: Iterable[Float[Tensor, "batch patches dim"]],
    first: Float[Tensor, "batch classes patches"],
    rule: Rule,
    later: Mapping[int, Float[Tensor, "batch classes patches"]] | None = None,
) -> Iterator[Float[Tensor, "batch classes patches"]]:
    """Yield the soft labels of the second, third, ... frame, which are propagated further.

    frames: features of every frame, including the first; not necessarily normalized. first: its labels, hard or soft.
    later: labels of objects that enter, by the number of their frame, the first being 0: where they are above 0, they replace those that
    were propagated to this frame.
    """
    iterator = iter(frames)
    anchor = (F.normalize(next(iterator), dim=-1), first)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=rule.context)
    for number, features in enumerate(iterator, start=1):
        features = F.normalize(features, dim=-1)
        context = [anchor, *recent]
        labels = propagate([f for f, _ in context], [s for _, s in context], features, rule)
        if later and number in later:
            labels = torch.where(later[number].sum(dim=1, keepdim=True) > 0, later[number], labels)
        recent.append((features, labels))
        yield labels


@torch.no_grad()
def propagate(
    context: Sequence[Float[Tensor, "batch patches dim"]],
    labels: Sequence[Float[Tensor, "batch classes patches"]],
    target: Float[Tensor, "batch patches dim"],
    rule: Rule,
) -> Float[Tensor, "batch classes patches"]:
    """One frame's soft labels from those of its context; features are L2-normalized.

    Equals, for every target t and all patches s of all context frames:
        a = [exp(f_t . f_s / temperature) if s is inside t's window else 0 for s]
        a = [a_s if a_s >= sorted(a)[-top_k] else 0 for s]
        label[:, t] = sum(a_s label[:, s]) / sum(a)
    """
    similarity, source = best_sources(context, target, rule)
    table = torch.stack([s.transpose(1, 2) for s in labels], dim=1).flatten(1, 2)  # [batch, context * patches, classes]
    weights = _weights(similarity, rule).to(table.dtype)
    result = _mix(table, source, weights)
    unsure = _has_more_ties(similarity, rule)  # in a still video or a constant image
    for item in unsure.any(dim=1).nonzero().flatten().tolist():
        rows = unsure[item].nonzero().flatten()
        outside = _outside(rows, torch.arange(target.shape[1], device=target.device), rule)
        everything = torch.cat([(target[item, rows] @ f[item].T).masked_fill_(outside, -math.inf) for f in context], dim=-1)
        result[item, rows] = _weights(everything, rule).to(table.dtype) @ table[item]
    return result.transpose(1, 2)


@torch.no_grad()
def best_sources(
    context: Sequence[Float[Tensor, "batch patches dim"]], target: Float[Tensor, "batch patches dim"], rule: Rule
) -> tuple[Float[Tensor, "batch patches kept"], Int[Tensor, "batch patches kept"]]:
    """The largest similarities of every target in its window, descending, and their sources.

    A source is frame * patches + patch. Twice `top_k` of them (or all, if fewer), to include ties; -inf if a window holds less.
    """
    window = math.prod(min(size, 2 * rule.reach + 1) for size in rule.grid)
    if _is_compiled(target, len(context) * window):
        items = [_compiled_sources([f[item] for f in context], target[item], rule) for item in range(len(target))]
        return torch.stack([similarity for similarity, _ in items]), torch.stack([source for _, source in items])
    most = max(1, BUDGET // (len(context) * window * math.prod(TILE)))
    parts = [slice(start, start + most) for start in range(0, len(target), most)]
    found = [_best_sources([f[part] for f in context], target[part], rule) for part in parts]
    return torch.cat([similarity for similarity, _ in found]), torch.cat([source for _, source in found])


def _best_sources(context: list[Tensor], target: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """`best_sources` for as many items as fit into memory."""
    grids, queries = [f.unflatten(1, rule.grid) for f in context], target.unflatten(1, rule.grid)
    strips = [
        _strip(grids, queries, columns, reach, rule)
        for columns, reach in _spans(rule.grid[1], rule.reach, _tile(rule.grid[1], rule.reach, TILE[1]))
    ]
    similarity, source = (torch.cat(parts, dim=2).flatten(1, 2) for parts in zip(*strips, strict=True))
    return similarity, source


def _is_compiled(target: Tensor, keys: int) -> bool:
    """True for a search on a CPU that is worth the compiled loop."""
    return use_cpu_kernels(target.device) and target.dtype == torch.float32 and target.shape[1] * keys >= COMPILED_FROM


def _compiled_sources(
    context: list[Float[Tensor, "patches dim"]], target: Float[Tensor, "patches dim"], rule: Rule
) -> tuple[Float[Tensor, "patches kept"], Int[Tensor, "patches kept"]]:
    """`best_sources` of one item, by blocks of few keys, those of all frames at the same places, and all targets that have them in reach.

    Few places at a time, so that little is multiplied outside of windows of 25 x 25: a fifth of the products, where tiles of targets
    have half. Similarities of a block are in the processor's cache when the compiled loop takes them in.
    """
    from densewalk.ops.search.propagation_kernel import take_in_block  # late: numba is slow to load

    grids, queries = [f.unflatten(0, rule.grid) for f in context], target.unflatten(0, rule.grid)
    kept = min(2 * rule.top_k, len(context) * len(target))
    values, sources = target.new_full((len(target), kept), -math.inf), torch.zeros(len(target), kept, dtype=torch.int64)
    facts = (*rule.grid, rule.reach, bool(rule.circle and rule.radius))
    width = max(4, math.isqrt(BLOCK // len(context)))
    for columns, reach in _spans(rule.grid[1], rule.reach, width):
        keys = torch.stack([g[:, slice(*columns)] for g in grids], dim=1)  # [rows, frames, columns, dim]
        tile = queries[:, slice(*reach)].contiguous()
        for rows, within in _spans(rule.grid[0], rule.reach, max(1, BLOCK // (len(context) * width))):
            similarity = product(tile[slice(*within)].flatten(0, 1), keys[slice(*rows)].flatten(0, 2)).numpy()
            take_in_block(similarity, (*within, *reach), (*rows, *columns), len(context), facts, values.numpy(), sources.numpy())
    return values, sources


def _strip(
    grids: list[Tensor], queries: Tensor, columns: tuple[int, int], reach: tuple[int, int], rule: Rule
) -> tuple[Float[Tensor, "batch rows columns kept"], Int[Tensor, "batch rows columns kept"]]:
    """`_best_sources` for some columns of targets, whose windows `reach` covers.

    A separate function, so that a strip's copy of the keys, the largest tensor here, is freed before the next one is made.
    """
    height, width = rule.grid
    positions = torch.arange(height * width, device=queries.device).view(height, width)[:, slice(*reach)]
    keys = [g[:, :, slice(*reach)].flatten(1, 2) for g in grids]  # [batch, height * reach, dim], rows of a tile are adjacent
    tiles = []
    for (y0, y1), (top, bottom) in _spans(height, rule.reach, _tile(height, rule.reach, TILE[0])):
        within = positions[top:bottom].flatten()
        rows = slice(top * positions.shape[1], bottom * positions.shape[1])
        wanted = positions[y0:y1, columns[0] - reach[0] : columns[1] - reach[0]]
        outside = _outside(wanted, within, rule)
        tile = queries[:, y0:y1, slice(*columns)].flatten(1, 2)
        similarity, frame, key = _search(
            tile, [k[:, rows] for k in keys], outside, rule.top_k, min(2 * rule.top_k, len(keys) * height * width)
        )
        source = frame * (height * width) + within[key]
        tiles.append((similarity.unflatten(1, wanted.shape), source.unflatten(1, wanted.shape)))
    similarity, source = (torch.cat(parts, dim=1) for parts in zip(*tiles, strict=True))
    return similarity, source


def _search(
    queries: Tensor, keys: list[Tensor], outside: Bool[Tensor, "queries keys"], top_k: int, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity, frame and key, [batch, queries, kept], of each query's 2 top_k best keys; -inf where there are fewer."""
    similarity = queries.new_empty(len(keys), len(queries), queries.shape[1], keys[0].shape[1])
    for frame, key in enumerate(keys):
        torch.bmm(queries, key.transpose(1, 2), out=similarity[frame])
    best_frame = similarity.amax(dim=0).masked_fill_(outside, -math.inf)
    places, place = best_frame.topk(min(2 * top_k, best_frame.shape[-1]), dim=-1)
    candidates = similarity.gather(3, place.expand(len(keys), -1, -1, -1)).masked_fill_(places.isinf(), -math.inf)
    candidates = candidates.permute(1, 2, 3, 0).flatten(2)  # place after place, each with all frames
    best, index = candidates.topk(min(2 * top_k, candidates.shape[-1]), dim=-1)
    missing = (0, kept - best.shape[-1])  # a tile at the border may have fewer keys
    return F.pad(best, missing, value=-math.inf), F.pad(index % len(keys), missing), F.pad(place.gather(2, index // len(keys)), missing)


def _weights(similarity: Float[Tensor, "*batch sources"], rule: Rule) -> Float[Tensor, "*batch sources"]:
    """Softmax over the sources that reach the top_k-th similarity; -inf gets no weight."""
    threshold = similarity.topk(min(rule.top_k, similarity.shape[-1]), dim=-1).values[..., -1:]
    return (similarity / rule.temperature).masked_fill(similarity < threshold, -math.inf).softmax(dim=-1)


def _mix(table: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    """result[b, t] = sum_k weights[b, t, k] table[b, source[b, t, k]], in little memory."""
    batch, targets, kept = source.shape
    offset = torch.arange(batch, device=source.device)[:, None, None] * table.shape[1]
    rows = F.embedding_bag((source + offset).view(-1, kept), table.flatten(0, 1), per_sample_weights=weights.reshape(-1, kept), mode="sum")
    return rows.view(batch, targets, -1)


def _has_more_ties(similarity: Tensor, rule: Rule) -> Bool[Tensor, "batch targets"]:
    """Targets whose last candidate equals the top_k-th: more ties may have been left out."""
    if similarity.shape[-1] <= rule.top_k:
        return torch.zeros(similarity.shape[:-1], dtype=torch.bool, device=similarity.device)
    last = similarity[..., -1]
    return (last == similarity[..., rule.top_k - 1]) & last.isfinite()


def _spans(size: int, reach: int, part: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut `size` rows or columns into even parts: [start, end) of each, and with all that is in its reach."""
    count = math.ceil(size / part)
    edges = [round(i * size / count) for i in range(count + 1)]
    return [((a, b), (max(0, a - reach), min(size, b + reach))) for a, b in pairwise(edges)]


def _tile(size: int, reach: int, tile: int) -> int:
    """The side of a tile: all rows or columns if a window covers nine tenths of them, since there is too little to skip."""
    return size if 2 * reach + 1 >= 0.9 * size else tile


def _outside(targets: Int[Tensor, "..."], keys: Int[Tensor, "..."], rule: Rule) -> Bool[Tensor, "targets keys"]:
    """True for each key outside the target's window; positions count row by row."""
    t, s, width = targets.flatten()[:, None], keys.flatten()[None, :], rule.grid[1]
    # short integers: of 64 bits, a twentieth of the whole search would be spent here
    rows, columns = ((a.short() - b.short()).abs_() for a, b in ((t // width, s // width), (t % width, s % width)))
    if rule.circle and rule.radius:
        return rows.int().square() + columns.int().square() > rule.radius**2
    return (rows > rule.reach) | (columns > rule.reach)
