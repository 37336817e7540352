"""Whole tensors: the row Gram of vectors and the update that a rule makes of them. O rows, I columns, G products."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from debias.methods import fused
from debias.methods.base import Gram, Rule, StepFacts, Vector, pairs_of, seen

# Rows are widened to float64 a block at a time, so a large matrix never has a float64 copy. On one CPU core 2^15 is 1.6
# times as slow, and larger blocks are no faster; on an accelerator each block is seven launches, so there it is larger.
BLOCK_ELEMENTS = 1 << 17
ACCELERATOR_BLOCK_ELEMENTS = 1 << 21


def as_rows(tensor: Tensor) -> Tensor:
    """A view [O, I] of a parameter of any shape: dimension 0 is the rows; 0-D and 1-D tensors are one row."""
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)


def row_gram(*vectors: Tensor) -> Tensor:
    """The Gram [O, G] float64 of tensors of one shape; of two, main and bias: mm, mb, bb for each row."""
    _check_shapes(vectors)
    return gram_of_rows(*(as_rows(vector) for vector in vectors))


def _check_shapes(vectors: Sequence[Tensor]) -> None:
    main, *others = vectors
    for other in others:
        if main.shape != other.shape:
            raise ValueError(f"main has shape {tuple(main.shape)} and bias {tuple(other.shape)}; they must be equal")


def gram_of_rows(*vectors_OI: Tensor) -> Tensor:
    """The Gram [..., O, G] float64 of tensors [..., O, I]; leading dimensions are parameters of one shape.

    A view whose products are apart in memory (G outermost): whoever reads one of them reads it in one piece.
    """
    *leading, rows, columns = vectors_OI[0].shape
    members, products = math.prod(leading), len(pairs_of(len(vectors_OI)))
    gram_GKO = vectors_OI[0].new_empty((products, members, rows), dtype=torch.float64)
    write_gram(gram_GKO.movedim(0, -1), *(vector_OI.reshape(members, rows, columns) for vector_OI in vectors_OI))
    return gram_GKO.view(products, *leading, rows).movedim(0, -1)


def write_gram(gram_KOG: Tensor, *vectors_KOI: Tensor) -> None:
    """The Gram [K, O, G] of tensors [K, O, I], into a tensor of that shape: by a kernel, or block by block."""
    if fused.wrote_gram(gram_KOG, vectors_KOI):
        return
    members, rows, columns = vectors_KOI[0].shape
    most = BLOCK_ELEMENTS if gram_KOG.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    most_rows = max(1, most // max(1, columns))
    together = max(1, most_rows // max(1, rows))
    for k, o in itertools.product(range(0, members, together), range(0, rows, most_rows)):
        sums_KOG, *parts_KOI = (t[k : k + together, o : o + most_rows] for t in (gram_KOG, *vectors_KOI))
        wide = [part_KOI.double() for part_KOI in parts_KOI]
        for sum_KO, (i, j) in zip(sums_KOG.unbind(dim=-1), pairs_of(len(wide)), strict=True):
            torch.sum(wide[i] * wide[j], dim=-1, out=sum_KO)


def apply_coefficients(coefficients: Sequence[Tensor], vectors_OI: Sequence[Tensor]) -> Tensor:
    """The sum of the vectors [..., O, I], each times its coefficients [..., O]: `x * main + y * bias` row by row.

    In the dtype of the first vector, computed in float32 or wider.
    """
    wide = wide_enough(vectors_OI)
    update_OI = vectors_OI[0].to(wide) * coefficients[0].to(wide).unsqueeze(-1)
    return _add_others(update_OI, coefficients, vectors_OI).to(vectors_OI[0].dtype)


def write_update(coefficients: Sequence[Tensor], vectors_OI: Sequence[Tensor]) -> None:
    """`apply_coefficients` into the first vector, in place, without a copy of it where its dtype is wide enough."""
    if fused.wrote_update(coefficients, vectors_OI):
        return
    main_OI, wide = vectors_OI[0], wide_enough(vectors_OI)
    if main_OI.dtype != wide:
        main_OI.copy_(apply_coefficients(coefficients, vectors_OI))
        return
    _add_others(main_OI.mul_(coefficients[0].to(wide).unsqueeze(-1)), coefficients, vectors_OI)


def _add_others(update_OI: Tensor, coefficients: Sequence[Tensor], vectors_OI: Sequence[Tensor]) -> Tensor:
    wide = update_OI.dtype
    for x_O, vector_OI in zip(coefficients[1:], vectors_OI[1:], strict=True):
        update_OI.addcmul_(vector_OI.to(wide), x_O.to(wide).unsqueeze(-1))
    return update_OI


def wide_enough(vectors: Sequence[Tensor]) -> torch.dtype:
    """What an update of vectors of these dtypes is computed in: float32 or wider."""
    wide = torch.float32
    for vector in vectors:
        wide = torch.promote_types(wide, vector.dtype)
    return wide


def combine(rule: Rule, main: Tensor, bias: Tensor) -> Tensor:
    """The update of one parameter from its two gradients, of the parameter's shape and the dtype of `main`.

    A 0-D or 1-D tensor is one row. Raises ValueError when the shapes differ, or for a rule that needs more than two
    gradients (`take_step`).
    """
    _check_shapes((main, bias))
    if not rule.is_stateless:
        raise ValueError(f"{rule.name} looks at {', '.join(rule.looks_at)} and at steps before; use take_step")
    if rule.is_plain:
        return main.clone()
    vectors = [{Vector.MAIN: main, Vector.BIAS: bias}[vector] for vector in rule.looks_at]
    coefficients = rule.coefficients(seen(Gram.of(row_gram(*vectors))))
    return apply_coefficients(coefficients, [as_rows(vector) for vector in vectors]).reshape(main.shape)


def take_step(rule: Rule, vectors: Sequence[Tensor], memory_S: Tensor, step: StepFacts) -> tuple[Tensor, Tensor]:
    """The update of one parameter by any rule, and its memory [S] after the step.

    `vectors` are those that the rule looks at, in its order; `memory_S` is float64, zeros before the first step. Raises
    ValueError when their number or shapes do not fit.
    """
    if len(vectors) != len(rule.looks_at):
        raise ValueError(f"{rule.name} looks at {', '.join(rule.looks_at)}; {len(vectors)} tensors are given")
    coefficients, memory_S = rule.advance(seen(Gram.of(row_gram(*vectors))), memory_S, step)
    update = apply_coefficients(coefficients, [as_rows(vector) for vector in vectors])
    return update.reshape(vectors[0].shape), memory_S
