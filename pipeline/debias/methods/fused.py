"""Where the Gram and the update are made by Triton kernels, and where they are left to plain torch.

Both give the same numbers, so that nobody has to be told which it was.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
SWITCH = "DEBIAS_TRITON"  # 0 in the environment: plain torch everywhere
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_VECTORS = 3

# How often a kernel wrote each of them in this process. For who measures or checks kernels: both ways give the same
# numbers, so nothing else tells that one ran.
written: Counter[str] = Counter()
KINDS = ("Gram", "update")

_given_up: set[str] = set()


class NoKernels(RuntimeError):
    """The Triton kernels were to be measured, and did not run or were not taken: one line, why."""


def wrote_gram(gram_KOG: Tensor, vectors_KOI: Sequence[Tensor]) -> bool:
    """Whether a kernel wrote the Gram [K, O, G] of these vectors [K, O, I]; if not, nothing has been done."""
    kernels = _kernels_for(vectors_KOI)
    if kernels is None:
        return False
    return _done("Gram", lambda: kernels.write_gram(gram_KOG, vectors_KOI))


def wrote_update(coefficients: Sequence[Tensor], vectors_OI: Sequence[Tensor]) -> bool:
    """Whether a kernel wrote the update into the first vector [K, O, I] in place; if not, nothing has been done."""
    kernels = _kernels_for(vectors_OI)
    if kernels is None or any(x_KO.shape != vectors_OI[0].shape[:-1] for x_KO in coefficients):
        return False
    return _done("update", lambda: kernels.write_update(coefficients, vectors_OI))


def available() -> bool:
    """Whether kernels are asked where tensors lie on a GPU."""
    return os.environ.get(SWITCH, "") != "0" and not _given_up and loaded() is not None


@contextmanager
def made_by(kernels: bool) -> Iterator[None]:
    """For who measures both: inside, plain torch alone, or kernels.

    NoKernels at the end where kernels did not run, or where they wrote no Gram or no update.
    """
    if kernels:
        before = written.copy()
        yield
        if _given_up:
            raise NoKernels(f"the Triton kernels do not run here: {next(iter(_given_up))}")
        if unwritten := [f"no {kind}" for kind in KINDS if written[kind] == before[kind]]:
            raise NoKernels(f"the Triton kernels were not taken: they wrote {' and '.join(unwritten)}")
        return
    _given_up.add("plain torch is measured")
    try:
        yield
    finally:
        _given_up.discard("plain torch is measured")


def _kernels_for(vectors: Sequence[Tensor]) -> ModuleType | None:
    """The kernels, if they can take these vectors; nothing else imports Triton."""
    first = vectors[0]
    if not _on_gpu(first) or first.dim() != 3 or len(vectors) > MOST_VECTORS:
        return None
    if not available() or not all(_takes(vector, first) for vector in vectors):
        return None
    return loaded()


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda  # of ROCm as well


def _takes(vector: Tensor, first: Tensor) -> bool:
    alike = vector.device == first.device and vector.shape == first.shape
    in_one_piece = vector.shape[-1] <= 1 or vector.stride(-1) == 1
    return type(vector) is Tensor and alike and vector.dtype in DTYPES and in_one_piece


@functools.cache
def loaded() -> ModuleType | None:
    """The module of the kernels; None where Triton is not installed, or not for this machine."""
    try:
        from debias.methods import triton_kernels
    except Exception as error:  # what Triton looks for when it is imported differs from version to version
        logger.debug("no Triton kernels for the combination: %s", error)
        return None
    return triton_kernels


def _done(kind: str, launch: Callable[[], None]) -> bool:
    try:
        launch()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a kernel is compiled at its first launch, which wants a C compiler and a known GPU
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _given_up.add(why)
        logger.warning("the Triton kernels of the combination do not run here, plain torch does: %s", why)
        return False
    written[kind] += 1
    return True
