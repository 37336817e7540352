"""LoRA on fused experts, token by token: `x W_e^T + s B_e (A_e x)` for the tokens that expert e gets.

PEFT adapts a fused stack of experts (`target_parameters`) by making `W + s B A` for every expert in each forward pass:
the memory and the time of a whole stack of experts. Here only the narrow products are made, and it stays known which
token a row is, which is what two gradients from one backward pass need.

Shapes: N tokens, K experts a token, S rows (pairs of token and expert, sorted by expert), E experts, I inputs,
O outputs, R the rank of an expert.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

logger = logging.getLogger(__name__)

KERNEL_BYTES = 16  # torch's grouped product wants every row to begin at a multiple of this


class Routing:
    """Which rows go to which expert: `count_E` each, in this order; `token_S` is the token of a row, of `tokens`."""

    def __init__(self, count_E: Tensor, token_S: Tensor, tokens: int) -> None:
        self.count_E = count_E
        self.token_S = token_S
        self.tokens = tokens

    @functools.cached_property
    def counts(self) -> list[int]:
        """`count_E` on the host; of tensors without values, which only their sizes are asked of, equal numbers."""
        if not _has_values(self.count_E):
            experts, rows = len(self.count_E), len(self.token_S)
            return [rows * (e + 1) // experts - rows * e // experts for e in range(experts)]
        counts: list[int] = self.count_E.tolist()
        return counts

    @functools.cached_property
    def ends_E(self) -> Tensor:
        """Where each expert's rows end, as torch's grouped product takes it."""
        return self.count_E.cumsum(0, dtype=torch.int32)

    def linear(self, x_SI: Tensor, weight_EOI: Tensor) -> Tensor:
        """`x W_e^T` with each row's expert, [S, O]."""
        x_SI, weight_EOI = _autocast(x_SI), _autocast(weight_EOI)
        if _kernel_takes(x_SI, weight_EOI.shape[1:]) and x_SI.dtype == weight_EOI.dtype:
            dense = weight_EOI.is_contiguous() or weight_EOI.mT.is_contiguous()
            weight_EIO = (weight_EOI if dense else weight_EOI.contiguous()).mT  # B's experts are innermost
            return nn.functional.grouped_mm(x_SI.contiguous(), weight_EIO, offs=self.ends_E)
        # Unbound, not indexed: the gradient of one expert's matrix must not be a stack of zeros around it.
        pairs = zip(x_SI.split(self.counts), weight_EOI.unbind(), strict=True)
        return torch.cat([nn.functional.linear(x, weight_OI) for x, weight_OI in pairs])

    def outer(self, delta_SO: Tensor, x_SI: Tensor) -> Tensor:
        """`sum over an expert's rows of delta^T x`, [E, O, I]; zero for an expert without rows."""
        if _kernel_takes(x_SI, (delta_SO.shape[1], x_SI.shape[1])) and x_SI.dtype == delta_SO.dtype:
            return nn.functional.grouped_mm(delta_SO.contiguous().mT, x_SI.contiguous(), offs=self.ends_E)
        pairs = zip(delta_SO.split(self.counts), x_SI.split(self.counts), strict=True)
        return torch.stack([delta.T @ x for delta, x in pairs])


class _Frozen(torch.autograd.Function):
    """A stack of experts that does not train, applied to each row.

    The stack itself is kept for the backward pass and not views of it, which would keep alive what ZeRO-3 gathered.
    """

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, stack: Tensor, out_first: bool, routing: Routing) -> Tensor:
        ctx.save_for_backward(stack)
        ctx.out_first, ctx.routing = out_first, routing
        return routing.linear(x_SI, stack if out_first else stack.mT)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor, None, None, None]:
        (delta_SO,) = deltas
        (stack,) = ctx.saved_tensors
        stack = stack.to(delta_SO.dtype)
        return ctx.routing.linear(delta_SO, stack.mT if ctx.out_first else stack), None, None, None


class ExpertLora:
    """The LoRA pair of one fused parameter, in the layout of PEFT's `ParamWrapper`.

    A is [R * E, ...], expert after expert; B is [..., R * E] with the experts innermost. `product` computes the branch;
    whoever wants two gradients of it puts a function of its own there.
    """

    def __init__(self, wrapper: Any, out_first: bool) -> None:
        self.wrapper = wrapper
        # PEFT takes a stack for [E, O, I] unless the module says otherwise; where it is wrong (Llama-4's is [E, I, O]
        # and does not say so), B is what reads the input.
        self.a_first = wrapper._did_swap_in_out_features == out_first
        self.product: Callable[[ExpertLora, Tensor, Routing], Tensor] = plain_product

    @property
    def adapter(self) -> str | None:
        """The one active adapter that this parameter has."""
        names = [name for name in self.wrapper.active_adapters if name in self.wrapper.lora_A]
        return names[0] if len(names) == 1 else None

    @property
    def pair(self) -> tuple[nn.Linear, nn.Linear]:
        """Its A and B."""
        name = self.adapter
        return self.wrapper.lora_A[name], self.wrapper.lora_B[name]

    @property
    def scaling(self) -> float:
        """What multiplies `B A`."""
        return float(self.wrapper.scaling[self.adapter])

    def unpack(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What reads the input [E, R, I] and what makes the output [E, O, R], as views of A and B."""
        experts = self.wrapper.num_experts
        a_ERX = a.view(experts, -1, a.shape[-1])
        b_EYR = b.view(b.shape[0], -1, experts).permute(2, 0, 1)
        return (a_ERX, b_EYR) if self.a_first else (b_EYR.mT, a_ERX.mT)

    def pack(self, first_ERI: Tensor, second_EOR: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `unpack`: in the layout of A and B."""
        if not self.a_first:
            first_ERI, second_EOR = second_EOR.mT, first_ERI.mT
        return first_ERI.flatten(0, 1), second_EOR.permute(1, 2, 0).flatten(1, 2)

    def reason(self) -> str | None:
        """Why PEFT's own way has to be taken, or None."""
        wrapper = self.wrapper
        parameter = wrapper.get_param()
        active = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
        reasons = {
            "adapters are disabled": wrapper.disable_adapters,
            "an adapter is merged": wrapper.merged,
            f"{len(active)} adapters are active at once": len(active) != 1,
            "the adapter is a variant of LoRA": bool(wrapper.lora_variant),
            "lora_B has a bias": any(wrapper.lora_B[name].bias is not None for name in active),
            f"the experts are stored in {parameter.dtype}": parameter.dtype
            not in (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


def plain_product(lora: ExpertLora, x_SI: Tensor, routing: Routing) -> Tensor:
    """`scaling * B_e (A_e x)` of each row, [S, O], with autograd's gradients."""
    first_ERI, second_EOR = lora.unpack(*(layer.weight.to(x_SI.dtype) for layer in lora.pair))
    return routing.linear(routing.linear(x_SI, first_ERI) * lora.scaling, second_EOR)


class RoutedExperts:
    """A module of fused experts, with the adapters on its parameters, that computes token by token."""

    def __init__(self, experts: nn.Module, loras: dict[str, ExpertLora], *, zero_stays_zero: bool) -> None:
        self.experts: Any = experts
        self.loras = loras
        self.zero_stays_zero = zero_stays_zero
        self.kind = type(experts)
        self.out_first, self.compute = FAMILIES[self.kind.__name__]
        self._inside: list[int] = []

    def reason(self) -> str | None:
        """Why PEFT's own way has to be taken now, or None."""
        if getattr(self.experts, "_is_expert_parallel", False):
            return "experts are spread over ranks"
        return next((reason for lora in self.loras.values() if (reason := lora.reason())), None)

    def linear(self, name: str, x_SI: Tensor, routing: Routing) -> Tensor:
        """The fused parameter called `name` applied to each row, adapter included, [S, O]."""
        stack, x_SI = getattr(self.experts, name), _autocast(x_SI)
        if stack.requires_grad:
            y_SO = routing.linear(x_SI, stack if self.out_first else stack.mT)
        else:
            y_SO = _Frozen.apply(x_SI, stack, self.out_first, routing)
        lora = self.loras.get(name)
        return y_SO if lora is None else y_SO + lora.product(lora, x_SI, routing)

    def through(self, wrapper: Any, *inputs: Any, **settings: Any) -> Tensor:
        """The forward of an adapter around the experts: lets them compute token by token if that is possible."""
        if self.reason() is not None:
            usual: Tensor = type(wrapper).forward(wrapper, *inputs, **settings)
            return usual
        # Said here and not asked there: the experts may be called without their adapters (after `unload`).
        self._inside.append(id(wrapper))
        try:
            output: Tensor = wrapper.base_layer(*inputs, **settings)
        finally:
            self._inside.pop()
        return output

    def forward(self, *inputs: Any, **settings: Any) -> Tensor:
        """The forward of the experts."""
        if len(self._inside) == len(self.loras) and type(self.experts) is self.kind:
            return self.compute(self, *inputs, **settings)
        usual: Tensor = type(self.experts).forward(self.experts, *inputs, **settings)
        return usual


def _top_k(routed: RoutedExperts, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Qwen3-MoE's experts: each token goes to K of them, and their outputs are added with its weights."""
    tokens, chosen = top_k_index.shape
    expert_S, order_S = torch.sort(top_k_index.flatten(), stable=True)
    count_E = expert_S.new_zeros(routed.experts.num_experts).scatter_add(0, expert_S, torch.ones_like(expert_S))
    routing = Routing(count_E, order_S // chosen, tokens)
    output_SH = _gated(routed, hidden_states[routing.token_S], routing)
    # Back in the order of the tokens: a sum over K, where adding by index depends on the order on a GPU.
    output_NKH = torch.empty_like(output_SH).index_copy(0, order_S, output_SH).unflatten(0, (tokens, chosen))
    return (output_NKH * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


def _dense(routed: RoutedExperts, hidden_states: Tensor) -> Tensor:
    """Llama-4's experts: every token is there once for each of them, [E * N, H], zero where it was not sent."""
    experts = routed.experts
    tokens = len(hidden_states) // experts.num_experts
    if routed.zero_stays_zero:
        sent = hidden_states.detach().ne(0).any(dim=1)
    else:
        sent = torch.ones_like(hidden_states[:, 0], dtype=torch.bool)
    # Without values: one expert a token, as in every Llama-4.
    row_S = sent.nonzero().squeeze(1) if _has_values(sent) else torch.arange(tokens, device=sent.device)
    routing = Routing(sent.unflatten(0, (experts.num_experts, tokens)).sum(dim=1), row_S % tokens, tokens)
    output_SH = _gated(routed, hidden_states[row_S], routing)
    return output_SH.new_zeros(hidden_states.shape).index_copy(0, row_S, output_SH)


def _gated(routed: RoutedExperts, x_SH: Tensor, routing: Routing) -> Tensor:
    gate, up = routed.linear("gate_up_proj", x_SH, routing).chunk(2, dim=-1)
    return routed.linear("down_proj", routed.experts.act_fn(gate) * up, routing)


# Class of the experts -> whether a stack is [E, O, I] (else [E, I, O]), and how the module's inputs are routed.
FAMILIES: dict[str, tuple[bool, Callable[..., Tensor]]] = {
    "Qwen3MoeExperts": (True, _top_k),
    "Llama4TextExperts": (False, _dense),
}


DENSE = frozenset({"Llama4TextExperts"})


def route_experts(model: nn.Module) -> list[str]:
    """Let every adapted module of fused experts of a family that is known compute token by token; returns their paths.

    Llama-4's without adapters too: transformers sends every token through every expert. The result is PEFT's, but for
    rounding. Whatever is unusual (several active adapters, none, a merged one) takes PEFT's way, as do families that
    are not in `FAMILIES`, with a warning. Only these instances are changed.
    """
    routed = []
    for path, module in model.named_modules():
        if type(module).__name__ in DENSE and not _is_wrapper(model.get_submodule(path.rpartition(".")[0])):
            if not hasattr(module, "routed_experts") and not _refused(path, module, []):
                _install(module, [])
                routed.append(path)
            continue
        if not _is_wrapper(module) or _is_wrapper(model.get_submodule(path.rpartition(".")[0])):
            continue
        wrappers = _nested(module)
        experts: Any = wrappers[-1].base_layer
        if hasattr(experts, "routed_experts") or _refused(path, experts, wrappers):
            continue
        _install(experts, wrappers)
        routed.append(path)
    return routed


def _refused(path: str, experts: Any, wrappers: list[Any]) -> bool:
    kind = type(experts).__name__
    if kind in FAMILIES and not any("forward" in vars(module) for module in (experts, *wrappers)):
        return False
    reason = "its forward was replaced" if kind in FAMILIES else f"{kind} is not one of {', '.join(FAMILIES)}"
    logger.warning(
        "%s: every forward pass makes the adapted weights of all experts, and single_pass is not possible: %s",
        path,
        reason,
    )
    return True


def _install(experts: Any, wrappers: list[Any]) -> None:
    out_first, _ = FAMILIES[type(experts).__name__]
    loras = {one.parameter_name: ExpertLora(one, out_first) for one in wrappers}
    # A row of zeros then gives zeros, and gives nothing to any gradient.
    quiet = float(experts.act_fn(torch.zeros((), device="cpu"))) == 0.0
    routed = RoutedExperts(experts, loras, zero_stays_zero=quiet)
    experts.routed_experts = routed
    experts.forward = routed.forward
    for wrapper in wrappers:
        wrapper.forward = functools.partial(routed.through, wrapper)


def _is_wrapper(module: nn.Module) -> bool:
    return type(module).__name__ == "ParamWrapper"


def _nested(module: Any) -> list[Any]:
    """Adapters of several parameters of one module are around each other, outermost first."""
    found = [module]
    while _is_wrapper(found[-1].base_layer):
        found.append(found[-1].base_layer)
    return found


def _kernel_takes(x_SI: Tensor, sizes: Sequence[int]) -> bool:
    """Whether torch's grouped product can be used; float32 it would take, but gains nothing over a loop on a CPU."""
    if x_SI.dtype != torch.bfloat16 or not len(x_SI) or not hasattr(nn.functional, "grouped_mm"):  # torch 2.10 has it
        return False
    if x_SI.is_cuda and torch.cuda.is_available() and torch.cuda.get_device_capability(x_SI.device) < (8, 0):
        return False
    return all(size * x_SI.element_size() % KERNEL_BYTES == 0 for size in sizes)


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def _autocast(tensor: Tensor) -> Tensor:
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
