"""The kernels of the combination: what they compute (by Triton's interpreter), that they compile, who asks them."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import interpreted_kernels
import pytest
import torch

from debias.methods import fused, gram_of_rows, write_update

SCRIPT = Path(interpreted_kernels.__file__)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: it comes with torch for CUDA"
)


def outcomes(**environment: str) -> dict[str, str | None]:
    """What a process of its own found: interpreting and compiling exclude each other, and stay with a process."""
    variables = {**{key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}, **environment}
    command = [sys.executable, SCRIPT]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    return outcomes(TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("check", [check.__name__ for check in interpreted_kernels.CHECKS])
def test_by_the_interpreter(interpreted, check):
    if "only 0-dimensional arrays can be converted" in (interpreted[check] or ""):
        pytest.skip("the interpreter of this version of Triton does not go with this version of NumPy")
    assert interpreted[check] is None, interpreted[check]


@pytest.mark.slow
@needs_triton
def test_they_compile_for_gpus_that_are_not_here(tmp_path):
    found = outcomes(TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 2 * 5 * len(interpreted_kernels.TARGETS)
    assert {name: error for name, error in found.items() if error} == {}


class Kernels:
    """Stand-ins that note that they were asked, and do it, or fail as they are told."""

    def __init__(self, error: Exception | None = None):
        self.asked, self.error = [], error

    def write_gram(self, gram_KOG, vectors_KOI):
        self.asked.append("gram")
        if self.error is not None:
            raise self.error
        gram_KOG.fill_(5.0)

    def write_update(self, coefficients_KO, vectors_KOI):
        self.asked.append("update")
        if self.error is not None:
            raise self.error
        vectors_KOI[0].fill_(6.0)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Tensors count as a GPU's; the stand-ins are what Triton would bring."""

    def install(kernels):
        monkeypatch.setattr(fused, "_on_gpu", lambda tensor: True)
        monkeypatch.setattr(fused, "loaded", lambda: kernels)
        monkeypatch.setattr(fused, "_given_up", set())
        monkeypatch.setattr(fused, "written", Counter())
        monkeypatch.delenv(fused.SWITCH, raising=False)
        return kernels

    return install


def vectors(count=2, dtype=torch.float32):
    return [torch.full((2, 3, 4), 1.0 + index, dtype=dtype) for index in range(count)]


def ones(count=2):
    return [torch.ones(2, 3, dtype=torch.float64) for _ in range(count)]


def plain(given):
    """Whether plain torch made the Gram and the update of these vectors; a stand-in's are 5 and 6."""
    products = torch.stack([(given[i] * given[j]).sum(-1) for i in range(len(given)) for j in range(i, len(given))], -1)
    gram = torch.equal(gram_of_rows(*given), products.double())
    total = sum(given[1:], given[0].clone())
    write_update(ones(len(given)), given)
    return gram and torch.equal(given[0], total)


@pytest.mark.parametrize("dtype", fused.DTYPES)
def test_kernels_are_asked_on_a_gpu(on_a_gpu, dtype):
    kernels = on_a_gpu(Kernels())
    given = vectors(dtype=dtype)
    assert (gram_of_rows(*given) == 5.0).all()
    write_update(ones(), given)
    assert (given[0] == 6.0).all()
    assert kernels.asked == ["gram", "update"]


def test_on_a_cpu_triton_is_not_even_looked_for(monkeypatch):
    monkeypatch.setattr(fused, "loaded", lambda: pytest.fail("it was looked for"))
    assert plain(vectors())


def test_without_triton_it_is_plain_torch(on_a_gpu):
    on_a_gpu(None)
    assert plain(vectors())


class Another(torch.Tensor):
    """Whose elements may lie anywhere, as a DTensor's do."""


def of_columns_apart():
    return [torch.arange(24.0).view(2, 4, 3).transpose(1, 2) for _ in range(2)]


@pytest.mark.parametrize(
    "given",
    [
        vectors(dtype=torch.float64),
        vectors(4),
        [vectors()[0], vectors(dtype=torch.float64)[1]],
        of_columns_apart(),
        [vector.as_subclass(Another) for vector in vectors()],
    ],
    ids=["float64", "four vectors", "one of them float64", "columns with gaps", "another class"],
)
def test_what_they_cannot_take_is_left_to_torch(on_a_gpu, given):
    kernels = on_a_gpu(Kernels())
    assert plain(given)
    assert kernels.asked == []


def test_coefficients_of_another_shape_are_left_to_torch(on_a_gpu):
    kernels = on_a_gpu(Kernels())
    given = vectors()
    write_update([x_KO[:, :1] for x_KO in ones()], given)
    assert (given[0] == 3.0).all()
    assert kernels.asked == []


def test_the_switch(on_a_gpu, monkeypatch):
    kernels = on_a_gpu(Kernels())
    monkeypatch.setenv(fused.SWITCH, "0")
    assert plain(vectors())
    assert kernels.asked == []


def test_kernels_that_do_not_run_here_are_given_up(on_a_gpu, caplog):
    """No C compiler, a GPU that Triton does not know: one warning, and plain torch from there on."""
    kernels = on_a_gpu(Kernels(RuntimeError("Failed to find C compiler.\nSecond line")))
    with caplog.at_level(logging.WARNING):
        assert plain(vectors())
        assert plain(vectors())
    assert kernels.asked == ["gram"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("plain torch does: Failed to find C compiler.")


def test_what_kernels_wrote_is_counted(on_a_gpu):
    on_a_gpu(Kernels())
    given = vectors()
    with fused.made_by(True):
        gram_of_rows(*given)
        gram_of_rows(*given)
        write_update(ones(), given)
    assert fused.written == {"Gram": 2, "update": 1}
    with fused.made_by(False):
        assert plain(vectors())
    assert fused.written == {"Gram": 2, "update": 1}


@pytest.mark.parametrize(
    ("most", "count", "rows", "said"),
    [
        (1, 2, 3, "they wrote no Gram and no update"),  # both left to plain torch, which gives the same numbers
        (3, 4, 3, "they wrote no Gram and no update"),
        (3, 2, 1, "they wrote no update"),
    ],
)
def test_kernels_that_were_not_taken_are_no_check_of_them(on_a_gpu, monkeypatch, most, count, rows, said):
    kernels = on_a_gpu(Kernels())
    monkeypatch.setattr(fused, "MOST_VECTORS", most)
    given = vectors(count)

    def by_kernels():
        with fused.made_by(True):
            gram_of_rows(*given)
            write_update([x_KO[:, :rows] for x_KO in ones(count)], given)

    fused.written.update(("Gram", "update"))  # what was written before counts for nothing
    with pytest.raises(fused.NoKernels, match=f"were not taken: {said}$"):
        by_kernels()
    assert "update" not in kernels.asked


def test_kernels_that_do_not_run_are_said_in_one_line(on_a_gpu):
    on_a_gpu(Kernels(RuntimeError("Failed to find C compiler.\nSecond line")))
    line = r"^the Triton kernels do not run here: Failed to find C compiler\.$"
    with pytest.raises(fused.NoKernels, match=line), fused.made_by(True):
        gram_of_rows(*vectors())
    assert not fused.written


def test_what_fails_under_a_measurement_is_not_the_kernels(on_a_gpu):
    on_a_gpu(Kernels())
    with pytest.raises(ZeroDivisionError), fused.made_by(True):
        raise ZeroDivisionError


def test_too_little_memory_is_the_callers(on_a_gpu):
    kernels = on_a_gpu(Kernels(torch.OutOfMemoryError("CUDA out of memory")))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            gram_of_rows(*vectors())
    assert kernels.asked == ["gram", "gram"]


def test_triton_that_cannot_be_imported_counts_as_none(monkeypatch):
    fused.loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "debias.methods.triton_kernels", raising=False)
    assert fused.loaded() is None
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())  # of a version without what is asked of it
    fused.loaded.cache_clear()
    assert fused.loaded() is None
    fused.loaded.cache_clear()
