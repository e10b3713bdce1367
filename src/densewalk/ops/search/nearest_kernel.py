"""The inner loop of the exact search: the nearest entries so far take in the similarities of further ones."""

# numba infers the types inside
# mypy: allow-untyped-defs, no-check-untyped-defs

import numpy as np

from densewalk.ops.cpu.compiled import compiled

LANES = 512  # columns whose maxima are taken together


@compiled()
def take_in(similarity: np.ndarray, start: int, found: int, values: np.ndarray, index: np.ndarray) -> None:
    """Put the largest similarities of each row into its `values`, descending, of equal ones the earlier entry first.

    Column c belongs to the lane c mod lanes. A row is passed once, for the maxima of all lanes; afterwards only lanes are looked at that
    can hold one of the k largest. At first the bound is the k-th largest of the maxima of groups of lanes: so many columns reach it.

    Args:
        similarity: float32 [rows, columns], of the entries `start`, `start` + 1, ...; no NaN.
        found: how many values of each row there are already, of earlier entries.
        values, index: [rows, k], changed in place.
    """
    columns, k = similarity.shape[1], values.shape[1]
    lanes, groups = LANES, 64
    while groups < 2 * k:
        groups *= 2
    lanes = max(lanes, groups)
    while lanes > columns:
        lanes //= 2
    maxima, of_groups = np.empty(lanes, np.float32), np.empty(min(groups, lanes), np.float32)
    for row in range(len(similarity)):
        x, best, at, n = similarity[row], values[row], index[row], found
        _lane_maxima(x, maxima)
        low = np.float32(-np.inf)
        if n == k:
            low = best[k - 1]
        elif n == 0 and len(of_groups) >= k:
            _lane_maxima(maxima, of_groups)
            low = _largest_but(k - 1, of_groups)
        for lane in range(lanes):
            if maxima[lane] < low:
                continue
            for column in range(lane, columns, lanes):
                if x[column] >= low:
                    n = insert(best, at, n, x[column], start + column)
                    low = best[k - 1] if n == k else low


@compiled()
def _lane_maxima(x, maxima):
    """maxima[j] = max of x[j], x[j + lanes], x[j + 2 lanes], ...; x is at least as long as `maxima`."""
    lanes = len(maxima)
    maxima[:] = x[:lanes]
    for start in range(lanes, len(x), lanes):
        part = x[start : start + lanes]
        for j in range(len(part)):
            maxima[j] = max(part[j], maxima[j])


@compiled()
def _largest_but(number, x):
    """The largest of `x` but for so many larger ones; by Hoare's selection, which reorders `x`. numba's own takes 6 s to compile."""
    low, high = 0, len(x) - 1
    while low < high:
        pivot, i, j = x[(low + high) // 2], low, high
        while i <= j:
            while x[i] > pivot:
                i += 1
            while x[j] < pivot:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i, j = i + 1, j - 1
        if number <= j:
            high = j
        elif number >= i:
            low = i
        else:
            break
    return x[number]


@compiled()
def insert(best, at, n, value, entry):
    """Insert an entry into the first `n` of a row's best, if it is one of as many as fit there; return their number."""
    j = n
    while j > 0 and (best[j - 1] < value or (best[j - 1] == value and at[j - 1] > entry)):
        j -= 1
    if j == len(best):
        return n
    n = min(n + 1, len(best))
    for i in range(n - 1, j, -1):
        best[i], at[i] = best[i - 1], at[i - 1]
    best[j], at[j] = value, entry
    return n
