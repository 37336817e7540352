"""Small IDX files as a test makes them, and settings of runs on them."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = [str(digit) for digit in range(10)]


def pictures(count: int, seed: int = 0, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures uint8 [N, side, side] and labels [N]: label d is a bright bar at place d, in dark noise."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(count) % 10
    image_NHW = rng.integers(0, 60, (count, side, side), dtype=np.uint8)
    for image_HW, label in zip(image_NHW, label_N, strict=True):
        start = 1 + label * (side - 4) // 10
        image_HW[start : start + 3] = 230
    return image_NHW, label_N.astype(np.uint8)


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """The bytes of an IDX file."""
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_digits(folder: Path, count: int = 200, split: str = "train", seed: int = 0, side: int = 28) -> Path:
    """Gzipped files of pictures and labels as MNIST has them; returns the path of the pictures."""
    image_NHW, label_N = pictures(count, seed, side)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(image_NHW)))
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(label_N)))
    return path


def settings_for(train: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short run of the perceptron."""
    return {
        "model": "vision:mlp",
        "head": "image_classification",
        "data": {"train": str(train), "labels": DIGITS, "planted_color": {"strength": 0.9}},
        "output_dir": str(output),
        "adapter": "full",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 20,
        "logging_steps": 1,
        "save_strategy": "no",
        **changes,
    }
