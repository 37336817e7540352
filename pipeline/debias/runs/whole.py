"""Writing so that a file or a folder is there whole or not at all."""

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debias.config.regular import check_regular
from debias.errors import InputError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside `path` and rename, so a full disk or a kill never leaves half a file; its folders are made."""
    with filling(path) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


@contextmanager
def filling(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed at the end: `path` is there whole, or as it was before."""
    check_regular(path)  # renaming would put a file in the place of a device
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_or_say(path: Path, content: str | bytes) -> None:
    """As `write_whole`; what hinders it is an InputError in one line."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def saving() -> Iterator[None]:
    """Inside, the libraries' own errors for a file that could not be written are the OSError that they stand for."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not isinstance(error, SafetensorError) and "inline_container" not in str(error):
            raise  # not torch.save's
        raise OSError(" ".join(str(error).split())) from error


def check_tensors(folder: Path, shapes: Iterable[Sequence[int]] = ()) -> None:
    """RuntimeError unless the safetensors files of a folder hold tensors with elements, one of them not all zero.

    `shapes`: of what was trained; each must be there, and as many elements (stacks of experts are written as one
    matrix for each expert). An adapter that was saved empty, or as one rank's slice, looks like one that learned
    nothing: refused here, where it can be seen.
    """
    from safetensors import safe_open

    trained = [tuple(shape) for shape in shapes]
    elements, alive, missing = 0, False, Counter(shape for shape in trained if len(shape) < 3)
    for path in sorted(folder.glob("*model*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(name)
                if tensor.numel() == 0:
                    raise RuntimeError(
                        f"saved adapter: tensor {name} in {path.name} is empty, shape {list(tensor.shape)}"
                    )
                elements += tensor.numel()
                missing[tuple(tensor.shape)] -= 1
                alive = alive or bool(tensor.any())
    if not elements:
        raise RuntimeError(f"saved adapter: {folder.name} holds no tensor at all")
    if not alive:
        raise RuntimeError(f"saved adapter: {folder.name} holds nothing but zeros")
    if lost := [f"{n} of shape {list(shape)}" for shape, n in missing.items() if n > 0]:
        raise RuntimeError(f"saved adapter: {folder.name} lacks what was trained: {', '.join(lost)}")
    if elements < (wanted := sum(map(math.prod, trained))):
        raise RuntimeError(f"saved adapter: {folder.name} has {elements:,} elements of {wanted:,} that were trained")


def save_whole(folder: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` fill a folder beside `folder`, then put it in its place; on failure what was there stays."""
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)  # killed between the two renames below
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with saving():
            save(part)
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
