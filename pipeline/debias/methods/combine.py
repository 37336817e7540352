"""Whole tensors: the row Gram of vectors and the update that a rule makes of them. O rows, I columns, G products."""

from collections.abc import Sequence

import torch
from torch import Tensor

from debias.methods.base import Rule, StepFacts, Vector, pairs_of

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
    """The Gram [..., O, G] float64 of tensors [..., O, I]; leading dimensions are parameters of one shape."""
    shape, columns = vectors_OI[0].shape[:-1], vectors_OI[0].shape[-1]
    flat = [vector_OI.flatten(0, -2) for vector_OI in vectors_OI]
    block_elements = BLOCK_ELEMENTS if flat[0].device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    step = max(1, block_elements // max(1, columns))
    pairs = pairs_of(len(flat))
    gram = torch.empty((flat[0].shape[0], len(pairs)), dtype=torch.float64, device=flat[0].device)
    for start in range(0, flat[0].shape[0], step):
        wide = [vector[start : start + step].double() for vector in flat]
        block = gram[start : start + step]
        for column, (i, j) in enumerate(pairs):
            torch.sum(wide[i] * wide[j], dim=1, out=block[:, column])
    return gram.reshape(*shape, len(pairs))


def apply_coefficients(coefficients: Sequence[Tensor], vectors_OI: Sequence[Tensor]) -> Tensor:
    """The sum of the vectors [..., O, I], each times its coefficients [..., O]: `x * main + y * bias` row by row.

    In the dtype of the first vector, computed in float32 or wider.
    """
    wide = torch.float32
    for vector_OI in vectors_OI:
        wide = torch.promote_types(wide, vector_OI.dtype)
    update_OI = vectors_OI[0].to(wide) * coefficients[0].to(wide).unsqueeze(-1)
    for x_O, vector_OI in zip(coefficients[1:], vectors_OI[1:], strict=True):
        update_OI.addcmul_(vector_OI.to(wide), x_O.to(wide).unsqueeze(-1))
    return update_OI.to(vectors_OI[0].dtype)


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
    coefficients = rule.coefficients(row_gram(*vectors))
    return apply_coefficients(coefficients, [as_rows(vector) for vector in vectors]).reshape(main.shape)


def take_step(rule: Rule, vectors: Sequence[Tensor], memory_S: Tensor, step: StepFacts) -> tuple[Tensor, Tensor]:
    """The update of one parameter by any rule, and its memory [S] after the step.

    `vectors` are those that the rule looks at, in its order; `memory_S` is float64, zeros before the first step. Raises
    ValueError when their number or shapes do not fit.
    """
    if len(vectors) != len(rule.looks_at):
        raise ValueError(f"{rule.name} looks at {', '.join(rule.looks_at)}; {len(vectors)} tensors are given")
    coefficients, memory_S = rule.advance(row_gram(*vectors), memory_S, step)
    update = apply_coefficients(coefficients, [as_rows(vector) for vector in vectors])
    return update.reshape(vectors[0].shape), memory_S
