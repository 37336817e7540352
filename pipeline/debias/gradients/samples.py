"""Which sample each row of a layer's input belongs to. Shapes: B samples, R rows of a batch, T tokens.

A layer sees [B, C], [R, T, ..., C], or, inside a block that flattens its input, [R * T, C]. What a shape alone cannot
tell apart is never guessed: flattened tokens are accepted from blocks that are known to flatten row by row.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debias.gradients.classes import own_class

# Blocks that make [R * T, C] of [R, T, C], row after row, and route each token by itself, none dropped.
FLATTENING = frozenset({"Llama4TextMoe", "Qwen3MoeSparseMoeBlock"})


class NotExact(ValueError, RuntimeError):
    """single_pass was asked for by name and is not exact for this model and loss: a batch brought it to light."""


class SamplesNotFirst(NotExact):
    """A layer saw a tensor of which it is not known what belongs to which sample."""


class Flattened:
    """A block that flattens: what it saw last, [R, T]. Layers inside read it in their forward pass."""

    def __init__(self) -> None:
        self.rows_and_tokens: tuple[int, int] | None = None

    def watch(self, block: nn.Module) -> Any:
        """Look at the inputs of `block` from now on; returns the handle that ends it."""
        return block.register_forward_pre_hook(self._see)

    def _see(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        shape = inputs[0].shape if inputs and isinstance(inputs[0], Tensor) else ()
        self.rows_and_tokens = (int(shape[0]), int(shape[1])) if len(shape) == 3 else None


class SampleWeights:
    """The bias weights of one backward pass, `weight_B` [B]; `index_RT` [R, T] is the sample of each token.

    Without `index_RT` the rows of the batch are the samples. -1 stands for padding, whose weight is 0. Raises
    ValueError where the index does not fit the weights.
    """

    def __init__(self, weight_B: Tensor, index_RT: Tensor | None = None) -> None:
        self.weight_B = weight_B
        self.index_RT = index_RT
        self.weight_RT: Tensor | None = None
        self.dtypes: set[torch.dtype] = set()  # of the signals that were weighted
        if index_RT is not None:
            _check_index(index_RT, len(weight_B))
            index_RT = index_RT.to(weight_B.device)
            self.weight_RT = torch.where(index_RT >= 0, weight_B[index_RT.clamp(min=0)], 0.0)

    @functools.cached_property
    def near_one(self) -> bool:
        """Whether bfloat16 would move the distance of some weight from 1 by more than a twentieth of it.

        Weights of generalised cross-entropy are none such: at most q. Asked once for a micro-batch, for on a device the
        answer has to be waited for.
        """
        distance_B = (1 - self.weight_B.float()).abs()
        moved_B = (self.weight_B.bfloat16().float() - self.weight_B.float()).abs()
        return bool((moved_B > 0.05 * distance_B).any())

    def of(self, leading: Sequence[int], flattened: tuple[int, int] | None, name: str | None) -> Tensor | None:
        """The weight of each row of a tensor [*leading, C], to be broadcast over what follows: [d], or [R, T].

        `flattened` is (R, T) where the layer sits in a block that flattens, else None; `name` is for the error.
        Where the rows are not known to be the samples' or their tokens' it is for `unknown` to say what follows.
        """
        leading = tuple(leading)
        if self.weight_RT is None:
            found = self._by_row(leading, flattened)
        else:
            found = self._by_index(self.weight_RT, leading, flattened)
        return found if found is not None else self.unknown(name, self._complaint(leading, name))

    def unknown(self, name: str | None, complaint: str) -> Tensor | None:
        """Raises SamplesNotFirst: it is not known which sample each row of `name`'s layer belongs to."""
        raise SamplesNotFirst(f"single_pass: {complaint}; use gradients='shared_forward'")

    def _by_row(self, leading: tuple[int, ...], flattened: tuple[int, int] | None) -> Tensor | None:
        samples = len(self.weight_B)
        if flattened is not None and len(leading) == 1:
            rows, tokens = flattened
            fits = rows == samples and leading[0] == rows * tokens
            return self.weight_B.repeat_interleave(tokens) if fits else None
        return self.weight_B if leading[:1] == (samples,) else None

    @staticmethod
    def _by_index(weight_RT: Tensor, leading: tuple[int, ...], flattened: tuple[int, int] | None) -> Tensor | None:
        if len(leading) > 1:
            return weight_RT if leading[:2] == tuple(weight_RT.shape) else None
        rows, _ = weight_RT.shape
        # One row has one order, whoever flattened it.
        known = rows == 1 or flattened == tuple(weight_RT.shape)
        return weight_RT.flatten() if known and leading == (weight_RT.numel(),) else None

    def _complaint(self, leading: tuple[int, ...], name: str | None) -> str:
        if not leading:
            return f"{name} read a tensor of one dimension, which no sample has a row of"
        saw = leading[0] if self.index_RT is None else list(leading)
        has = f"{len(self.weight_B)} samples"
        has += "" if self.index_RT is None else f" in rows and tokens {list(self.index_RT.shape)}"
        return f"{name} saw {saw} rows while the loss has {has}; samples are not its first dimension"


def _check_index(index_RT: Tensor, samples: int) -> None:
    if index_RT.dim() != 2 or index_RT.dtype != torch.long:
        raise ValueError(
            f"sample_index is {index_RT.dtype} of shape {tuple(index_RT.shape)}; expected int64 of the shape of"
            " input_ids, [R, T]"
        )
    low, high = (int(value) for value in index_RT.aminmax())
    if low < -1 or high >= samples:
        raise ValueError(f"sample_index holds {low} to {high}; expected -1 (padding) to {samples - 1}, one less than B")


def enclosing(model: nn.Module) -> dict[nn.Module, Flattened]:
    """For every module inside a block that flattens, what that block saw last; `watch` starts the looking."""
    found: dict[nn.Module, Flattened] = {}
    for block in model.modules():
        if own_class(block).__name__ in FLATTENING:
            seen = Flattened()
            found |= dict.fromkeys(block.modules(), seen)
    return found
