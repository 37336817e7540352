"""Pictures from IDX files (the format of MNIST), and the colour shortcut painted into them (Colored MNIST).

Shapes: N pictures, 3 channels, H rows, W columns; uint8.
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from debias.config.data import COLORS, PlantedColor
from debias.data.examples import Example
from debias.data.planted import ALIGNED, CONFLICTING
from debias.errors import InputError

Bytes = NDArray[np.uint8]

# Two zero bytes, the type (8: unsigned bytes), the number of dimensions (LeCun's description of the MNIST files).
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801
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
assert len(PALETTE_C3) == COLORS


def image_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows with `image` (uint8 [3, H, W], grey) and `label` (int) of an IDX file and its file of labels.

    Raises InputError for a file that is missing, damaged, not an IDX file of bytes, or does not fit the other.
    """
    labels_path = labels_beside(path)
    image_NHW = _read_idx(path, IMAGES_MAGIC, "pictures")
    label_N = _read_idx(labels_path, LABELS_MAGIC, "labels")
    if len(image_NHW) != len(label_N):
        raise InputError(f"{path}: {len(image_NHW)} pictures, but {labels_path.name} has {len(label_N)} labels")
    for number, (image_HW, label) in enumerate(zip(image_NHW, label_N.tolist(), strict=True), start=1):
        yield number, {"image": np.broadcast_to(image_HW, (3, *image_HW.shape)), "label": label}


def labels_beside(path: Path) -> Path:
    """The file of labels that belongs to an IDX file of pictures, plain or gzipped; InputError if there is none."""
    name = path.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1")
    plain = name.removesuffix(".gz")
    found = next((path.with_name(one) for one in (name, plain, plain + ".gz") if path.with_name(one).is_file()), None)
    if found is None:
        raise InputError(f"{path}: no file of labels beside it; expected {path.with_name(name)}")
    return found


def _read_idx(path: Path, magic: int, what: str) -> Bytes:
    dimensions = magic & 0xFF
    with _open(path) as file:
        header = np.frombuffer(file.read(4 * (1 + dimensions)), dtype=np.uint8)
        if len(header) < 4 * (1 + dimensions):
            raise InputError(f"{path}: damaged: only {len(header)} bytes, too few for the header of an IDX file")
        seen, *shape = (int(number) for number in header.view(">u4"))
        if seen != magic:
            raise InputError(
                f"{path}: begins with 0x{seen:08x}, expected 0x{magic:08x}, an IDX file of {what} in bytes"
            )
        if 0 in shape:
            raise InputError(f"{path}: holds no {what}: its shape is {shape}")
        expected = math.prod(shape)
        content = file.read(expected + 1)
    if len(content) != expected:
        held = "more" if len(content) > expected else f"only {len(content)}"
        raise InputError(f"{path}: damaged: {shape} {what} take {expected} bytes, it holds {held}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged gzip file: {error}") from None
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not enough memory'}") from None


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
