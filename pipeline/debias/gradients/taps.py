"""Where a layer leaves its bias gradient during the one backward pass. Shapes: B samples, O rows, I columns."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from debias.gradients.samples import Flattened, SamplesNotFirst, SampleWeights

__all__ = ["Collector", "Nobody", "Rows", "SamplesNotFirst", "Tap"]

# What the block around a layer flattened, (R, T), where there is such a block: of the forward pass that made a signal.
Rows = tuple[int, int] | None
NARROW = 256  # columns beside which a third product of 16 bits is next to nothing: the rank of an adapter


class Collector(Protocol):
    """What a tap needs of the gradient source: this backward pass's weights, and a place for gradients."""

    weights: SampleWeights | None

    def accumulate(self, name: str, gradient: Tensor) -> None:
        """Add to the bias gradient of parameter `name`."""

    def see(self, name: str, leading: tuple[int, ...], rows: "Rows") -> None:
        """In a forward pass: the layer of parameter `name` reads a tensor [*leading, C]."""


class Nobody:
    """A collector that wants no bias gradient: its taps make the main gradient alone."""

    def __init__(self) -> None:
        self.weights: SampleWeights | None = None

    def accumulate(self, name: str, gradient: Tensor) -> None:
        """See `Collector`; never called."""

    def see(self, name: str, leading: tuple[int, ...], rows: "Rows") -> None:
        """See `Collector`."""


class Tap:
    """Makes the main gradient of one linear layer and leaves its bias gradient with the source.

    A plain object, not a tensor saved by autograd: under activation checkpointing saved tensors are other objects when
    the layer is recomputed, and the weights must survive that. `block` is the block around the layer that flattens its
    tokens, if there is one.
    """

    def __init__(
        self, source: Collector, weight_name: str | None, bias_name: str | None, block: Flattened | None = None
    ) -> None:
        self.source = source
        self.weight_name = weight_name
        self.bias_name = bias_name
        self.block = block

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy of the model, or of a file: nobody reads what is left there, and no gradients go along."""
        return {**vars(self), "source": Nobody()}

    def rows(self) -> Rows:
        """What the block around this layer sees in the forward pass that is running."""
        return None if self.block is None else self.block.rows_and_tokens

    def see(self, x: Tensor) -> None:
        """Tell the source what shape of input this layer has in the forward pass that is running."""
        name = self.weight_name or self.bias_name
        if name is not None:
            self.source.see(name, tuple(x.shape[:-1]), self.rows())

    def weight_gradient(self, x: Tensor, delta: Tensor, rows: Rows = None) -> Tensor:
        """main_W [O, I] from input x [B, ..., I] and signal delta [B, ..., O]; adds bias_W to what is accumulated.

        Weighting whichever side is narrow (x for lora_B, delta for lora_A) and stacking it on the unweighted one makes
        both gradients with a single matrix product. `rows` is what `rows()` was in the forward pass.
        """
        weights = self._weights(x, rows)
        n_rows, columns = delta.shape[-1], x.shape[-1]
        if weights is None or self.weight_name is None:
            x, delta = _flat(x), _flat(delta)
            # The narrow side first: MKL takes three to nine times as long for eight columns as for eight rows.
            return (x.T @ delta).T.contiguous() if columns < n_rows else delta.T @ x
        fine = min(columns, n_rows) <= NARROW or x.dtype == torch.float32 or self._near_one()
        if columns <= n_rows:
            main_OI, *parts = (_flat(delta).T @ with_weighted(x, weights, fine=fine)).split(columns, dim=1)
        else:
            main_OI, *parts = (with_weighted(delta, weights, fine=fine).T @ _flat(x)).split(n_rows)
        bias_OI = sum_of_parts(parts)
        self.source.accumulate(self.weight_name, bias_OI)
        return main_OI

    def bias_gradient(self, delta: Tensor, rows: Rows = None) -> Tensor:
        """The layer's own bias vector [O]: its main gradient; adds its bias gradient to what is accumulated."""
        weights = self._weights(delta, rows)
        if weights is not None and self.bias_name is not None:
            self.source.accumulate(self.bias_name, _flat(_times(weights, delta)).sum(dim=0))
        return _flat(delta).sum(dim=0)

    def of_tokens(self, rows: Rows) -> Tensor | None:
        """The weight of each token of the block around this layer, flattened [R * T]; None outside a backward pass."""
        if self.source.weights is None:
            return None
        if rows is None:
            return self.source.weights.unknown(
                self.weight_name, f"the block around {self.weight_name} is not one of those that are known"
            )
        return self.source.weights.of([rows[0] * rows[1]], rows, self.weight_name)

    def _near_one(self) -> bool:
        return self.source.weights is not None and self.source.weights.near_one

    def _weights(self, tensor: Tensor, rows: Rows) -> Tensor | None:
        if self.source.weights is None:
            return None
        self.source.weights.dtypes.add(tensor.dtype)
        return self.source.weights.of(tensor.shape[:-1], rows, self.weight_name or self.bias_name)


def with_weighted(narrow: Tensor, weights: Tensor, *, fine: bool = True) -> Tensor:
    """`[narrow, weight * narrow]` side by side, samples and tokens flattened: [B * ..., 2 N].

    In 16 bits [B * ..., 3 N]: the product is two numbers, itself and what its rounding lost. A number of 16 bits times
    0.999 rounds to that number, always in the same direction, so that in main - bias the samples that the bias explains
    best would vanish. Not `fine`: one number after all, and no third product, where rounding takes little of weights.
    """
    if not fine:
        weighted = narrow * _beside(weights, narrow).to(narrow.dtype)
        return _flat(torch.cat([narrow, weighted], dim=-1))
    product = _times(weights, narrow)
    parts = [narrow, product.to(narrow.dtype)]
    if product.dtype != narrow.dtype:
        parts.append((product - parts[1]).to(narrow.dtype))
    return _flat(torch.cat(parts, dim=-1))


def sum_of_parts(parts: Sequence[Tensor]) -> Tensor:
    """The bias gradient of what `with_weighted` made: one part, or two of 16 bits whose sum is of float32.

    A copy, or a slice would keep the whole stack alive until the step.
    """
    first, *lost = parts
    return first.float().add_(lost[0]) if lost else first.contiguous()


def _times(weights: Tensor, tensor: Tensor) -> Tensor:
    """Each sample's weight times its rows, in float32 or, where the tensor is in float64, in that."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor * _beside(weights, tensor).to(wide)


def _beside(weights: Tensor, tensor: Tensor) -> Tensor:
    return weights.to(tensor.device).reshape(*weights.shape, *[1] * (tensor.dim() - weights.dim()))


def _flat(tensor: Tensor) -> Tensor:
    """Samples and tokens flattened; a tensor that has no rows is one."""
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0)
