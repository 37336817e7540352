"""Whole tensors: the row Gram of two gradients and the update that a rule makes of them. O rows, I columns."""

import torch
from torch import Tensor

from debias.methods.base import Rule

# Rows are widened to float64 a block at a time, so a large matrix never has a float64 copy. On one CPU core 2^15 is 1.6
# times as slow, and larger blocks are no faster; on an accelerator each block is seven launches, so there it is larger.
BLOCK_ELEMENTS = 1 << 17
ACCELERATOR_BLOCK_ELEMENTS = 1 << 21


def as_rows(tensor: Tensor) -> Tensor:
    """A view [O, I] of a parameter of any shape: dimension 0 is the rows; 0-D and 1-D tensors are one row."""
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)


def row_gram(main: Tensor, bias: Tensor) -> Tensor:
    """The Gram [O, 3] float64 (mm, mb, bb for each row) of two gradients of one shape."""
    _check_shapes(main, bias)
    return gram_of_rows(as_rows(main), as_rows(bias))


def _check_shapes(main: Tensor, bias: Tensor) -> None:
    if main.shape != bias.shape:
        raise ValueError(f"main has shape {tuple(main.shape)} and bias {tuple(bias.shape)}; they must be equal")


def gram_of_rows(main_OI: Tensor, bias_OI: Tensor) -> Tensor:
    """The Gram [..., O, 3] float64 of two gradients [..., O, I]; leading dimensions are parameters of one shape."""
    shape, columns = main_OI.shape[:-1], main_OI.shape[-1]
    flat_main, flat_bias = main_OI.flatten(0, -2), bias_OI.flatten(0, -2)
    block_elements = BLOCK_ELEMENTS if main_OI.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    step = max(1, block_elements // max(1, columns))
    gram = torch.empty((flat_main.shape[0], 3), dtype=torch.float64, device=main_OI.device)
    for start in range(0, flat_main.shape[0], step):
        a, b = flat_main[start : start + step].double(), flat_bias[start : start + step].double()
        block = gram[start : start + step]
        for column, (left, right) in enumerate(((a, a), (a, b), (b, b))):
            torch.sum(left * right, dim=1, out=block[:, column])
    return gram.reshape(*shape, 3)


def apply_coefficients(x_O: Tensor, y_O: Tensor, main_OI: Tensor, bias_OI: Tensor) -> Tensor:
    """`x * main + y * bias` row by row, [..., O, I], in the dtype of main, computed in float32 or wider."""
    wide = torch.promote_types(torch.promote_types(main_OI.dtype, bias_OI.dtype), torch.float32)
    update_OI = main_OI.to(wide) * x_O.to(wide).unsqueeze(-1)
    return update_OI.addcmul_(bias_OI.to(wide), y_O.to(wide).unsqueeze(-1)).to(main_OI.dtype)


def combine(rule: Rule, main: Tensor, bias: Tensor) -> Tensor:
    """The update of one parameter from its two gradients, of the parameter's shape and the dtype of `main`.

    A 0-D or 1-D tensor is one row. Raises ValueError when the shapes differ.
    """
    _check_shapes(main, bias)
    if not rule.uses_bias:
        return main.clone()
    x_O, y_O = rule.coefficients(row_gram(main, bias))
    return apply_coefficients(x_O, y_O, as_rows(main), as_rows(bias)).reshape(main.shape)
