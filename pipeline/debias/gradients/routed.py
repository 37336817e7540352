"""Two gradients of the LoRA pair of a fused stack of experts whose tokens are routed one by one.

The experts themselves are in the model's room (`routed_experts` on their module); what is needed of them is here in
`Lora` and `Routing`. Shapes: S rows (pairs of token and expert, sorted by expert), E experts, I inputs, O outputs,
R the rank of an expert.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from debias.gradients.taps import Tap, sum_of_parts, with_weighted


class Routing(Protocol):
    """Which rows go to which expert."""

    token_S: Tensor
    tokens: int

    def linear(self, x_SI: Tensor, weight_EOI: Tensor) -> Tensor:
        """Each row times its expert's matrix, [S, O]."""

    def outer(self, delta_SO: Tensor, x_SI: Tensor) -> Tensor:
        """The sum of each expert's outer products, [E, O, I]."""


class Lora(Protocol):
    """The pair of one fused parameter."""

    product: Callable[..., Tensor]

    @property
    def pair(self) -> tuple[nn.Linear, nn.Linear]:
        """A and B."""

    @property
    def scaling(self) -> float:
        """What multiplies `B A`."""

    def unpack(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What reads the input [E, R, I], and what makes the output [E, O, R]."""

    def pack(self, first_ERI: Tensor, second_EOR: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `unpack`."""


class _TwoGradientExperts(torch.autograd.Function):
    """`scaling * second_e (first_e x)` of each row, with both gradients of both stacks from one backward."""

    @staticmethod
    def forward(
        ctx: Any, x_SI: Tensor, first_ERI: Tensor, second_EOR: Tensor, lora: Lora, routing: Routing, taps: Any
    ) -> Tensor:
        narrow_SR = routing.linear(x_SI, first_ERI) * lora.scaling
        ctx.save_for_backward(x_SI, narrow_SR, first_ERI, second_EOR)
        ctx.lora, ctx.routing, ctx.taps, ctx.scaling, ctx.rows = lora, routing, taps, lora.scaling, taps[0].rows()
        return routing.linear(narrow_SR, second_EOR)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, ...]:
        (delta_SO,) = deltas
        x_SI, narrow_SR, first_ERI, second_EOR = ctx.saved_tensors
        routing, (tap_a, tap_b) = ctx.routing, ctx.taps
        narrow_delta_SR = routing.linear(delta_SO, second_EOR.mT) * ctx.scaling
        grad_x = routing.linear(narrow_delta_SR, first_ERI.mT) if ctx.needs_input_grad[0] else None
        weight_S = _weight_of_rows(tap_a, routing, ctx.rows)
        if weight_S is None:
            return grad_x, routing.outer(narrow_delta_SR, x_SI), routing.outer(delta_SO, narrow_SR), None, None, None
        rank = narrow_SR.shape[-1]
        first_ERI, *first = routing.outer(with_weighted(narrow_delta_SR, weight_S), x_SI).split(rank, dim=1)
        second_EOR, *second = routing.outer(delta_SO, with_weighted(narrow_SR, weight_S)).split(rank, dim=2)
        bias_a, bias_b = ctx.lora.pack(sum_of_parts(first), sum_of_parts(second))
        for tap, bias in ((tap_a, bias_a), (tap_b, bias_b)):
            if tap.weight_name is not None:
                tap.source.accumulate(tap.weight_name, bias)
        return grad_x, first_ERI, second_EOR, None, None, None


def _weight_of_rows(tap: Tap, routing: Routing, rows: tuple[int, int] | None) -> Tensor | None:
    weight_N = tap.of_tokens(rows)
    if weight_N is None or tap.source.weights is None:
        return None
    if len(weight_N) != routing.tokens:
        complaint = f"{tap.weight_name} saw {routing.tokens} tokens in a batch of {len(weight_N)}"
        return tap.source.weights.unknown(tap.weight_name, complaint)
    return weight_N[routing.token_S]


def _product(tap_a: Tap, tap_b: Tap, lora: Lora, x_SI: Tensor, routing: Routing) -> Tensor:
    first_ERI, second_EOR = lora.unpack(*(layer.weight.to(x_SI.dtype) for layer in lora.pair))
    output: Tensor = _TwoGradientExperts.apply(x_SI, first_ERI, second_EOR, lora, routing, (tap_a, tap_b))
    return output


def two_gradients(lora: Lora, tap_a: Tap, tap_b: Tap) -> Callable[[], None]:
    """Let `lora` leave bias gradients in the taps from now on; returns what ends it."""
    before = lora.product
    lora.product = functools.partial(_product, tap_a, tap_b)
    return functools.partial(setattr, lora, "product", before)


def routed_loras(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Modules of experts that route their tokens, each with the adapter of one of its parameters."""
    for module in model.modules():
        routed = getattr(module, "routed_experts", None)
        for lora in routed.loras.values() if routed is not None else ():
            yield module, lora
