"""Digests of files, and of the weights in a folder: by these, results of other weights than lie there now are known."""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from debias.runs.names import trained

# Of the first kind that a folder has are the weights that would be loaded; what else lies beside them changes nothing.
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model*.safetensors", "pytorch_model*.bin")
NOT_HERE = b"version https://git-lfs"  # what stands in a file that git has not fetched
SMALL = 1 << 20  # bytes of a file, up to which all of it is read
BLOCK, BLOCKS = 4096, 16  # bytes of a block, and blocks of each tensor, that are read of a larger one


def sha256_of(file: str | Path) -> str:
    """Of all bytes of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def weights_of_run(run: Path) -> str | None:
    """`weights_digest` of what a run trained; None where that does not lie in its folder."""
    saved = trained(run)
    return None if saved is None else weights_digest(saved)


def local_weights(*names: str | None) -> dict[str, str]:
    """`weights_digest` of those of these models and adapters that are folders here; a hub's have a revision."""
    found = {name: weights_digest(Path(name)) for name in names if name and Path(name).is_dir()}
    return {name: digest for name, digest in found.items() if digest is not None}


def weights_digest(folder: Path) -> str | None:
    """A SHA-256 of the weights in a model's or an adapter's folder, wherever that lies; None where there are none, or
    they cannot be read.

    Of files above 1 MiB sixteen blocks of 4 KiB of each tensor are read, first and last among them: training moves all
    of a tensor, and judging a model of 100 GB must not read it twice. A few numbers changed by hand may go unnoticed.
    """
    try:
        kinds = ([file for file in folder.glob(pattern) if file.is_file()] for pattern in WEIGHTS)
        files = sorted(next(filter(None, kinds), []))
        told = [(file.name, _digest(file, file.stat().st_size, file.stat().st_mtime_ns)) for file in files]
    except OSError:
        return None
    if not files or None in dict(told).values():
        return None
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _digest(file: Path, size: int, written: int) -> str | None:
    """Once for a file as it is: a report reads every result of a run. None of one that git has not fetched."""
    if size <= SMALL:
        with file.open("rb") as content:
            return None if content.read(len(NOT_HERE)) == NOT_HERE else sha256_of(file)
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        for start, end in _parts(file, size):
            for place in _places(start, end):
                content.seek(place)
                digest.update(content.read(min(BLOCK, end - place)))
    return digest.hexdigest()


def _places(start: int, end: int) -> list[int]:
    """Where blocks of a tensor begin: all of it if it is small, else evenly spread, up to its end."""
    if end - start <= BLOCK * BLOCKS:
        return list(range(start, end, BLOCK))
    return [start + (end - start - BLOCK) * block // (BLOCKS - 1) for block in range(BLOCKS)]


def _parts(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """First and last byte + 1 of the header and each tensor of a safetensors file; else of each MiB of the file.

    The format: eight bytes with the length of the header, the header in JSON, the tensors.
    https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(min(length, size))) if file.suffix == ".safetensors" else {}
            ends = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
            tensors = [(8 + length + int(first), 8 + length + int(last)) for first, last in ends]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            tensors = []
    if not tensors:
        yield from ((start, min(size, start + SMALL)) for start in range(0, size, SMALL))
        return
    yield from ((start, min(8 + length, start + SMALL)) for start in range(0, 8 + length, SMALL))
    yield from sorted(tensors)
