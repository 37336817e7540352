"""Where a layer leaves its bias gradient during the one backward pass. Shapes: B samples, O rows, I columns."""

from typing import Protocol

import torch
from torch import Tensor


class SamplesNotFirst(RuntimeError):
    """A layer saw a tensor whose first dimension is not the samples: single_pass is not exact for this model."""


class Collector(Protocol):
    """What a tap needs of the gradient source: this backward pass's weights, and a place for gradients."""

    weight_B: Tensor | None

    def accumulate(self, name: str, gradient: Tensor) -> None:
        """Add to the bias gradient of parameter `name`."""


class Tap:
    """Makes the main gradient of one linear layer and leaves its bias gradient with the source.

    A plain object, not a tensor saved by autograd: under activation checkpointing saved tensors are other objects when
    the layer is recomputed, and the weights must survive that.
    """

    def __init__(self, source: Collector, weight_name: str | None, bias_name: str | None) -> None:
        self.source = source
        self.weight_name = weight_name
        self.bias_name = bias_name

    def weight_gradient(self, x: Tensor, delta: Tensor) -> Tensor:
        """main_W [O, I] from input x [B, ..., I] and signal delta [B, ..., O]; adds bias_W to what is accumulated.

        Weighting whichever side is narrow (x for lora_B, delta for lora_A) and stacking it on the unweighted one makes
        both gradients with a single matrix product.
        """
        weight_B = self._weights(x)
        if weight_B is None or self.weight_name is None:
            return delta.flatten(0, -2).T @ x.flatten(0, -2)
        rows, columns = delta.shape[-1], x.shape[-1]
        if columns <= rows:
            both_O2I = delta.flatten(0, -2).T @ _with_weighted(x, weight_B)
            # Copied out, or a slice would keep the whole stack alive until the step.
            main_OI, bias_OI = both_O2I[:, :columns], both_O2I[:, columns:].contiguous()
        else:
            both_2OI = _with_weighted(delta, weight_B).T @ x.flatten(0, -2)
            main_OI, bias_OI = both_2OI[:rows], both_2OI[rows:]
        self.source.accumulate(self.weight_name, bias_OI)
        return main_OI

    def bias_gradient(self, delta: Tensor) -> Tensor:
        """The layer's own bias vector [O]: its main gradient; adds its bias gradient to what is accumulated."""
        weight_B = self._weights(delta)
        if weight_B is not None and self.bias_name is not None:
            weighted = delta * _shaped(weight_B, delta)
            self.source.accumulate(self.bias_name, weighted.flatten(0, -2).sum(dim=0, dtype=torch.float32))
        return delta.flatten(0, -2).sum(dim=0)

    def _weights(self, tensor: Tensor) -> Tensor | None:
        weight_B = self.source.weight_B
        if weight_B is not None and tensor.shape[0] != weight_B.shape[0]:
            raise SamplesNotFirst(
                f"single_pass: {self.weight_name or self.bias_name} saw {tensor.shape[0]} rows while the loss has"
                f" {weight_B.shape[0]} samples; samples are not its first dimension: use gradients='shared_forward'"
            )
        return weight_B


def _with_weighted(narrow: Tensor, weight_B: Tensor) -> Tensor:
    """`[narrow, weight * narrow]` side by side, samples and tokens flattened: [B * ..., 2 N]."""
    return torch.cat([narrow, narrow * _shaped(weight_B, narrow)], dim=-1).flatten(0, -2)


def _shaped(weight_B: Tensor, like: Tensor) -> Tensor:
    return weight_B.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
