"""The row Gram and the update as one Triton kernel each. Shapes: K parameters of O rows and I columns, G products.

Plain torch widens a block of rows, multiplies and sums, each a pass; here each element is read once for the Gram, and
once more for the update. What is computed is the same. Products and sums of the Gram are float64 (the product of two
float32 is exact in it), in an order that the shapes alone decide, without atomics. The update is rounded as torch's: a
product, then fused multiply-adds. Only `fused.py` imports this file, on a GPU.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from debias.methods.base import pairs_of

TILE = 1024  # elements of a vector that a program holds at once
# A row that few others stand beside is cut, so that more than a few programs work; the parts are summed afterwards.
FEW_PROGRAMS, CUT = 512, 4 * TILE


@dataclass(frozen=True)
class Launch:
    """A kernel and what it is called with; `run` does it, on the device and the stream of its tensors."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, int]
    warps: int

    def run(self) -> None:
        """Nothing where there is nothing to do: a grid of no programs is an error of CUDA."""
        device = next(iter(self.arguments.values())).device
        # On the CPU it is Triton's interpreter that runs it.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            if self.programs:
                self.kernel[(self.programs,)](**self.arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Of the compiler, which fuses nothing of its own: what is fused is written so."""
        return {"num_warps": self.warps, "enable_fp_fusion": False}


def write_gram(gram_KOG: Tensor, vectors_KOI: Sequence[Tensor]) -> None:
    """The Gram of one to three vectors [K, O, I], float64, into a tensor [K, O, G] of any strides."""
    members, rows, columns = vectors_KOI[0].shape
    block_O, _ = _tile(columns)
    few = members * _blocks(rows, block_O) < FEW_PROGRAMS
    cuts = _blocks(columns, CUT) if few and columns > CUT else 1
    if cuts == 1:
        gram_launch(gram_KOG.unsqueeze(-1), vectors_KOI).run()
        return
    parts_KOGC = gram_KOG.new_empty((*gram_KOG.shape, cuts))
    gram_launch(parts_KOGC, vectors_KOI).run()
    torch.sum(parts_KOGC, dim=-1, out=gram_KOG)


def gram_launch(sums_KOGC: Tensor, vectors_KOI: Sequence[Tensor]) -> Launch:
    """The Grams of C parts of each row: all of it, or CUT columns each."""
    members, rows, columns = vectors_KOI[0].shape
    cuts, (block_O, block_I) = sums_KOGC.shape[-1], _tile(columns)
    strides = dict(zip(("sums_k", "sums_o", "sums_g", "sums_c"), sums_KOGC.stride(), strict=True))
    arguments = {"sums": sums_KOGC, **strides, **_vectors(vectors_KOI), "rows": rows, "columns": columns}
    arguments |= {"row_blocks": _blocks(rows, block_O), "cuts": cuts, "cut": columns if cuts == 1 else CUT}
    constants = {"VECTORS": len(vectors_KOI), "BLOCK_O": block_O, "BLOCK_I": block_I}
    programs = members * arguments["row_blocks"] * cuts
    return Launch(gram_kernel, programs, arguments, constants, warps=8 if len(pairs_of(len(vectors_KOI))) > 3 else 4)


def write_update(coefficients_KO: Sequence[Tensor], vectors_KOI: Sequence[Tensor]) -> None:
    """The sum of one to three vectors [K, O, I], each times its coefficients [K, O], into the first, in place."""
    update_launch(coefficients_KO, vectors_KOI).run()


def update_launch(coefficients_KO: Sequence[Tensor], vectors_KOI: Sequence[Tensor]) -> Launch:
    """What `write_update` runs."""
    members, rows, columns = vectors_KOI[0].shape
    block_O, block_I = _tile(columns)
    arguments: dict[str, Any] = {}
    for name, x_KO in zip("xyz", _three(coefficients_KO), strict=True):
        arguments |= {name: x_KO, f"{name}_k": x_KO.stride(0), f"{name}_o": x_KO.stride(1)}
    arguments |= {**_vectors(vectors_KOI), "rows": rows, "columns": columns}
    arguments |= {"row_blocks": _blocks(rows, block_O), "column_blocks": _blocks(columns, block_I)}
    constants = {"VECTORS": len(vectors_KOI), "BLOCK_O": block_O, "BLOCK_I": block_I}
    programs = members * arguments["row_blocks"] * arguments["column_blocks"]
    return Launch(update_kernel, programs, arguments, constants, warps=4)


def _tile(columns: int) -> tuple[int, int]:
    """`(rows, columns)` of a program's tile: powers of two."""
    block_I = min(TILE, 1 << max(0, columns - 1).bit_length())
    return TILE // block_I, block_I


def _blocks(count: int, size: int) -> int:
    return math.ceil(count / size)


def _vectors(vectors_KOI: Sequence[Tensor]) -> dict[str, Any]:
    named = zip("abc", _three(vectors_KOI), strict=True)
    return {f"{name}{end}": value for name, vector in named for end, value in _with_strides(vector)}


def _with_strides(vector_KOI: Tensor) -> list[tuple[str, Any]]:
    return [("", vector_KOI), ("_k", vector_KOI.stride(0)), ("_o", vector_KOI.stride(1))]


def _three(given: Sequence[Tensor]) -> list[Tensor]:
    """The kernels have three places; what stands in those beyond the last is not read."""
    return [*given, *[given[0]] * (3 - len(given))]


@triton.jit
def _widened(row_O: tl.tensor, i_I: tl.tensor, inside_OI: tl.tensor) -> tl.tensor:
    """Float32, zeros outside."""
    return tl.load(row_O[:, None] + i_I[None, :], mask=inside_OI, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "row_blocks", "cuts", "cut"])
def gram_kernel(
    sums: tl.tensor, sums_k: tl.tensor, sums_o: tl.tensor, sums_g: tl.tensor, sums_c: tl.tensor,
    a: tl.tensor, a_k: tl.tensor, a_o: tl.tensor, b: tl.tensor, b_k: tl.tensor, b_o: tl.tensor,
    c: tl.tensor, c_k: tl.tensor, c_o: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, row_blocks: tl.tensor, cuts: tl.tensor, cut: tl.tensor,
    VECTORS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
) -> None:  # fmt: skip
    """One program: a part of the columns of a block of rows of one parameter. Offsets are 64 bits wide."""
    program = tl.program_id(0)
    part = (program % cuts).to(tl.int64)
    block = program // cuts
    k = (block // row_blocks).to(tl.int64)
    o_O = (block % row_blocks).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_O = o_O < rows
    zero_OI = tl.zeros([BLOCK_O, BLOCK_I], dtype=tl.float64)
    aa, ab, ac, bb, bc, cc = zero_OI, zero_OI, zero_OI, zero_OI, zero_OI, zero_OI
    for start in range(0, cut, BLOCK_I):
        i_I = part * cut + start + tl.arange(0, BLOCK_I)
        inside_OI = inside_O[:, None] & (i_I < columns)[None, :]
        a_OI = _widened(a + k * a_k + o_O * a_o, i_I, inside_OI).to(tl.float64)
        aa = tl.fma(a_OI, a_OI, aa)
        if VECTORS > 1:
            b_OI = _widened(b + k * b_k + o_O * b_o, i_I, inside_OI).to(tl.float64)
            ab = tl.fma(a_OI, b_OI, ab)
            bb = tl.fma(b_OI, b_OI, bb)
        if VECTORS > 2:
            c_OI = _widened(c + k * c_k + o_O * c_o, i_I, inside_OI).to(tl.float64)
            ac = tl.fma(a_OI, c_OI, ac)
            bc = tl.fma(b_OI, c_OI, bc)
            cc = tl.fma(c_OI, c_OI, cc)
    into_O = sums + k * sums_k + o_O * sums_o + part * sums_c
    tl.store(into_O, tl.sum(aa, axis=1), mask=inside_O)
    if VECTORS == 2:
        tl.store(into_O + sums_g, tl.sum(ab, axis=1), mask=inside_O)
        tl.store(into_O + 2 * sums_g, tl.sum(bb, axis=1), mask=inside_O)
    if VECTORS == 3:
        tl.store(into_O + sums_g, tl.sum(ab, axis=1), mask=inside_O)
        tl.store(into_O + 2 * sums_g, tl.sum(ac, axis=1), mask=inside_O)
        tl.store(into_O + 3 * sums_g, tl.sum(bb, axis=1), mask=inside_O)
        tl.store(into_O + 4 * sums_g, tl.sum(bc, axis=1), mask=inside_O)
        tl.store(into_O + 5 * sums_g, tl.sum(cc, axis=1), mask=inside_O)


@triton.jit(do_not_specialize=["rows", "row_blocks", "column_blocks"])
def update_kernel(
    x: tl.tensor, x_k: tl.tensor, x_o: tl.tensor, y: tl.tensor, y_k: tl.tensor, y_o: tl.tensor,
    z: tl.tensor, z_k: tl.tensor, z_o: tl.tensor,
    a: tl.tensor, a_k: tl.tensor, a_o: tl.tensor, b: tl.tensor, b_k: tl.tensor, b_o: tl.tensor,
    c: tl.tensor, c_k: tl.tensor, c_o: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, row_blocks: tl.tensor, column_blocks: tl.tensor,
    VECTORS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
) -> None:  # fmt: skip
    """One program: a tile of one parameter, computed in float32."""
    program = tl.program_id(0)
    i_I = (program % column_blocks).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    block = program // column_blocks
    k = (block // row_blocks).to(tl.int64)
    o_O = (block % row_blocks).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_O = o_O < rows
    inside_OI = inside_O[:, None] & (i_I < columns)[None, :]
    a_O = a + k * a_k + o_O * a_o
    x_O = tl.load(x + k * x_k + o_O * x_o, mask=inside_O, other=0.0).to(tl.float32)
    update_OI = x_O[:, None] * _widened(a_O, i_I, inside_OI)
    if VECTORS > 1:
        y_O = tl.load(y + k * y_k + o_O * y_o, mask=inside_O, other=0.0).to(tl.float32)
        update_OI = tl.fma(_widened(b + k * b_k + o_O * b_o, i_I, inside_OI), y_O[:, None], update_OI)
    if VECTORS > 2:
        z_O = tl.load(z + k * z_k + o_O * z_o, mask=inside_O, other=0.0).to(tl.float32)
        update_OI = tl.fma(_widened(c + k * c_k + o_O * c_o, i_I, inside_OI), z_O[:, None], update_OI)
    tl.store(a_O[:, None] + i_I[None, :], update_OI.to(a.dtype.element_ty), mask=inside_OI)
