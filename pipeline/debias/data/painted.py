"""A colour planted in pictures as a shortcut (Colored MNIST)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from debias.config.data import PlantedColor
from debias.data.examples import Example
from debias.data.planted import ALIGNED, CONFLICTING

# Red, green and blue of the colour of each label, far from each other and from black: ours, for the paper's were drawn
# at random.
PALETTE_C3 = np.array(
    [
        [220, 20, 20],
        [20, 200, 20],
        [40, 60, 255],
        [240, 220, 20],
        [220, 20, 220],
        [20, 220, 220],
        [255, 130, 0],
        [140, 60, 200],
        [150, 220, 130],
        [190, 190, 190],
    ],
    dtype=np.float64,
)


JITTER = 0.005  # standard deviation of a picture's colour, of 1: the paper's severity 4


def paint(examples: Sequence[Example], planted: PlantedColor, classes: int) -> list[Example]:
    """The pictures in order, each in one of `classes` colours; `group` becomes bias-aligned or bias-conflicting.

    Of each label's pictures `round(strength * count)` wear the label's own colour, the others the remaining colours in
    equal numbers (to one); which ones is drawn with `planted.seed`. A colour varies a little from picture to picture.
    Nam et al., NeurIPS 2020 (LfF), Colored MNIST at severity 4.
    """
    rng = np.random.default_rng([planted.seed, 0xC0])
    color_N = _colors(np.array([example.label for example in examples]), planted.strength, classes, rng)
    tint_N3 = np.clip(PALETTE_C3[color_N] / 255 + rng.normal(0.0, JITTER, (len(examples), 3)), 0, 1)
    return [
        replace(
            example,
            image=(tint_3[:, None, None] * example.image).astype(np.uint8),
            group=ALIGNED if color == example.label else CONFLICTING,
        )
        for example, color, tint_3 in zip(examples, color_N, tint_N3, strict=True)
    ]


def _colors(label_N: NDArray[Any], strength: float, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    color_N = np.empty(len(label_N), dtype=np.int64)
    for label in range(classes):
        drawn = rng.permutation(np.flatnonzero(label_N == label))
        aligned = round(strength * len(drawn))
        color_N[drawn[:aligned]] = label
        others = rng.permutation(np.delete(np.arange(classes), label))
        rest = drawn[aligned:]
        color_N[rest] = np.resize(others, len(rest))
    return color_N
