"""What `colors.py` does to one image, compiled: row by row, so that its pixels stay in the processor's cache.

Formulas and roundings are those of colors.py.
"""

# numba infers the types inside
# mypy: allow-untyped-defs, no-check-untyped-defs

import math

import numpy as np

from densewalk.data.augmentation.colors import GRAY, SOLARIZE_FROM
from densewalk.data.augmentation.draws import CONTRAST, HUE, NOTHING, SATURATION, Distortion
from densewalk.ops.cpu.compiled import compiled, fused_multiply_add

ZERO, ONE, TWO, FOUR, SIX, LEVELS = (np.float32(value) for value in (0, 1, 2, 4, 6, 255))
RED, GREEN, BLUE = (np.float32(weight) for weight in GRAY)
BRIGHT, LEAST_CHROMA = np.float32(SOLARIZE_FROM), np.float32(1e-12)
# columns of a row of draws.py; the amounts of a jitter's changes come in the order of their numbers
FLIP, FIRST, _, _, FOURTH, AMOUNTS, _, _, _, TO_GRAY, RADIUS, TO_SOLARIZE = range(len(Distortion._fields))


@compiled()
def start(images: np.ndarray, drawn: np.ndarray, x: np.ndarray) -> None:
    """Levels / 255, flipped, and what the jitter does before it changes the contrast, which needs the mean of the luma.

    Args:
        images: uint8 [images, 3, height, width]. drawn: float64 [images, columns], rows of draws.py.
        x: float32 [images, 4, height, width], filled; the fourth channel is the luma, if the contrast is changed.
    """
    values = np.arange(256).astype(np.float32) / LEVELS
    for i in range(len(images)):
        _load(images[i], drawn[i, FLIP] != 0, values, x[i])
        contrast = _place_of_contrast(drawn[i])
        for row in range(x.shape[2]):
            for place in range(FIRST, contrast):
                _adjust(x[i], row, drawn[i, place], drawn[i], ZERO)
            if contrast <= FOURTH:
                _luma(x[i], row)


@compiled()
def finish_normalized(
    center: np.ndarray, scale: np.ndarray, x: np.ndarray, drawn: np.ndarray, means: np.ndarray, weights: np.ndarray, result: np.ndarray
) -> None:
    """All that is left, and (x - center) / scale.

    Args:
        center, scale: float32 [3]. x, drawn: as in `start`; x is changed. means: float32 [images], of the lumas.
        weights: float32 [images, taps], of the blur; of radius r, the first 2 ceil(3 r) + 1. result: float32, filled.
    """
    line = np.empty(x.shape[3], np.float32)
    for i in range(len(result)):
        first, end = _color(x[i], drawn[i], means[i], False)
        kernel = _kernel(weights[i], drawn[i])
        for channel in range(first, end):
            for row in range(x.shape[2]):
                changed = _last_changes(x[i, channel], row, drawn[i], kernel, line)
                for target in range(3):
                    if channel in (target, 3):
                        values = result[i, target, row]
                        for j in range(len(values)):
                            values[j] = (changed[j] - center[target]) / scale[target]


@compiled()
def finish_levels(x: np.ndarray, drawn: np.ndarray, means: np.ndarray, weights: np.ndarray, result: np.ndarray) -> None:
    """All that is left, as on 8-bit images; arguments as above, result: uint8, filled."""
    line = np.empty(x.shape[3], np.float32)
    for i in range(len(result)):
        first, end = _color(x[i], drawn[i], means[i], True)
        kernel = _kernel(weights[i], drawn[i])
        for channel in range(first, end):
            for row in range(x.shape[2]):
                changed = _last_changes(x[i, channel], row, drawn[i], kernel, line)
                for target in range(3):
                    if channel in (target, 3):
                        values = result[i, target, row]
                        for j in range(len(values)):
                            values[j] = np.uint8(np.rint(changed[j] * LEVELS))


@compiled()
def _color(x, drawn, mean, eight_bit):
    """What is left of the jitter, and gray. Returns the first of the channels that count and the one after them: the fourth if gray."""
    contrast, to_gray = _place_of_contrast(drawn), drawn[TO_GRAY] != 0
    rounded = eight_bit and (to_gray or (drawn[FIRST] != NOTHING and drawn[RADIUS] != 0))  # else, the end is the only rounding
    for row in range(x.shape[1]):
        for place in range(contrast, FOURTH + 1):
            _adjust(x, row, drawn[place], drawn, mean)
        if rounded:
            _to_levels(x, row)
        if to_gray:
            _luma(x, row)
        if rounded:
            _from_levels(x, row)
    return (3, 4) if to_gray else (0, 3)


@compiled()
def _to_levels(x, row):
    for channel in range(3):
        values = x[channel, row]
        for j in range(len(values)):
            values[j] = np.rint(values[j] * LEVELS)


@compiled()
def _from_levels(x, row):
    """Levels / 255; the luma is rounded down to a level."""
    for channel in range(4):
        values = x[channel, row]
        for j in range(len(values)):
            values[j] = np.floor(values[j]) / LEVELS


@compiled()
def _kernel(weights, drawn):
    """The weights of an image's own radius, of which there are none for radius 0."""
    reach = math.ceil(3 * drawn[RADIUS])
    return weights[: 2 * reach + 1 if reach > 0 else 0]


@compiled()
def _place_of_contrast(drawn):
    """The place of the contrast in the jitter's order, or the one after the last."""
    place = FIRST
    while place <= FOURTH and drawn[place] != CONTRAST:
        place += 1
    return place


@compiled()
def _load(image, flip, values, x):
    """`values` of an image's levels."""
    width = x.shape[2]
    for channel in range(3):
        for row in range(image.shape[1]):
            source, target = image[channel, row], x[channel, row]
            if flip:
                for j in range(width):
                    target[j] = values[source[width - 1 - j]]
            else:
                for j in range(width):
                    target[j] = values[source[j]]


@compiled()
def _adjust(x, row, change, drawn, mean):
    """One change of a row of an image; its fourth channel is memory for what the others are blended with."""
    if change == NOTHING:
        return
    amount = drawn[AMOUNTS + int(change)]
    if change == HUE:
        _turn_hue(x[0, row], x[1, row], x[2, row], amount)
        return
    other, factor, rest = x[3, row], np.float32(amount), np.float32(1 - amount)
    if change == SATURATION:
        _luma(x, row)
    else:
        other[:] = mean if change == CONTRAST else ZERO  # of brightness
    for channel in range(3):
        values = x[channel, row]
        for j in range(len(values)):
            values[j] = min(max(fused_multiply_add(other[j], rest, values[j] * factor), ZERO), ONE)


@compiled()
def _luma(x, row):
    """The luma of a row, into its fourth channel."""
    red, green, blue, luma = x[0, row], x[1, row], x[2, row], x[3, row]
    for j in range(len(luma)):
        luma[j] = fused_multiply_add(blue[j], BLUE, fused_multiply_add(green[j], GREEN, red[j] * RED))


@compiled()
def _turn_hue(red, green, blue, turn):
    """`adjust_hue` of a row."""
    to_red, to_green, to_blue = np.float32(5 + 6 * turn), np.float32(3 + 6 * turn), np.float32(1 + 6 * turn)
    for j in range(len(red)):
        r, g, b = red[j], green[j], blue[j]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        scale = ONE / max(chroma, LEAST_CHROMA)
        hue = (b - r) * scale + TWO if value == g else (r - g) * scale + FOUR
        hue = (g - b) * scale if value == r else hue
        red[j] = _of_hue(value, chroma, hue + to_red)
        green[j] = _of_hue(value, chroma, hue + to_green)
        blue[j] = _of_hue(value, chroma, hue + to_blue)


@compiled()
def _of_hue(value, chroma, k):
    k -= np.floor(k / SIX) * SIX
    return fused_multiply_add(-chroma, min(max(TWO - abs(k - TWO), ZERO), ONE), value)


@compiled()
def _last_changes(x, row, drawn, weights, line):
    """Blur and solarization of a row of a channel, in its own place or in `line`."""
    changed = x[row]
    if len(weights) > 0:
        _blur(x, row, weights, line)
        changed = line
    if drawn[TO_SOLARIZE] != 0:
        for j in range(len(changed)):
            changed[j] = ONE - changed[j] if changed[j] >= BRIGHT else changed[j]
    return changed


@compiled()
def _blur(x, row, weights, line):
    """Convolve a row of a channel, along columns and then along the row, edges repeated."""
    (height, width), reach = x.shape, len(weights) // 2
    padded = np.empty(width + 2 * reach, np.float32)
    middle = padded[reach : reach + width]
    _scale(x[max(row - reach, 0)], weights[0], middle)
    for i in range(1, len(weights), 2):
        one, other = min(max(row + i - reach, 0), height - 1), min(max(row + i + 1 - reach, 0), height - 1)
        _add(x[one], weights[i], x[other], weights[i + 1], middle)
    padded[:reach], padded[reach + width :] = middle[0], middle[-1]
    _scale(padded[:width], weights[0], line)
    for i in range(1, len(weights), 2):
        _add(padded[i : i + width], weights[i], padded[i + 1 : i + 1 + width], weights[i + 1], line)


@compiled()
def _scale(x, weight, total):
    for j in range(len(total)):
        total[j] = x[j] * weight


@compiled()
def _add(x, weight_of_x, y, weight_of_y, total):
    for j in range(len(total)):
        total[j] = fused_multiply_add(y[j], weight_of_y, fused_multiply_add(x[j], weight_of_x, total[j]))
