"""Pictures from IDX files (the format of MNIST), and the colour shortcut painted into them (Colored MNIST).

Shapes: N pictures, 3 channels, H rows, W columns; uint8.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from debias.config.data import COLORS
from debias.config.regular import check_regular
from debias.data.painted import PALETTE_C3
from debias.errors import InputError

Bytes = NDArray[np.uint8]

# Two zero bytes, the type (8: unsigned bytes), the number of dimensions (LeCun's description of the MNIST files).
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801
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
    check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged gzip file: {error}") from None
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not enough memory'}") from None
