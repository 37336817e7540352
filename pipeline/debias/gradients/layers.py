"""The layers whose forward single_pass replaces, on the instance only: `nn.Linear`, and PEFT's plain LoRA layer.

Shapes: B samples, I inputs, O outputs, R the rank of LoRA.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debias.gradients.classes import own_class
from debias.gradients.taps import Nobody, Tap

Forward = Callable[..., Tensor]


class _TwoGradientLinear(torch.autograd.Function):
    """`F.linear` whose backward leaves the bias gradient in a tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, tap: Tap) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        ctx.tap, ctx.rows = tap, tap.rows()
        return _no_view(nn.functional.linear(x, weight_OI, bias_O))

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (delta,) = deltas
        x, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = delta @ weight_OI if needs_x else None
        grad_weight = ctx.tap.weight_gradient(x, delta, ctx.rows) if needs_weight else None
        grad_bias = ctx.tap.bias_gradient(delta, ctx.rows) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None


class _TwoGradientLora(torch.autograd.Function):
    """`base + scaling * x A^T B^T`, scaled on the narrow side, with both gradients of A and B from one backward."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float, tap_a: Tap, tap_b: Tap
    ) -> Tensor:
        narrow = nn.functional.linear(x, a_RI) * scaling
        ctx.save_for_backward(x, narrow, a_RI, b_OR)
        ctx.scaling, ctx.taps, ctx.rows = scaling, (tap_a, tap_b), tap_a.rows()
        if base.dtype == narrow.dtype:
            output = torch.addmm(base.flatten(0, -2), narrow.flatten(0, -2), b_OR.T)
            return _no_view(output.view(base.shape))
        return (base + nn.functional.linear(narrow, b_OR)).to(base.dtype)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, ...]:
        (base_delta,) = deltas
        x, narrow, a_RI, b_OR = ctx.saved_tensors
        tap_a, tap_b = ctx.taps
        if torch.is_grad_enabled():  # create_graph: what was saved in between leads to no graph
            narrow = nn.functional.linear(x, a_RI) * ctx.scaling
        delta = base_delta.to(b_OR.dtype)
        narrow_delta = (delta @ b_OR) * ctx.scaling
        grad_x = narrow_delta @ a_RI if ctx.needs_input_grad[1] else None
        grad_a = tap_a.weight_gradient(x, narrow_delta, ctx.rows)
        grad_b = tap_b.weight_gradient(narrow, delta, ctx.rows)
        return base_delta, grad_x, grad_a, grad_b, None, None, None


def _no_view(output: Tensor) -> Tensor:
    """The same memory, not marked as a view of it.

    Models change a layer's output in place (Falcon, Longformer, Llama-4's shared expert), which autograd forbids for a
    view that a custom Function made.
    """
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


def linear_forward(layer: nn.Linear, tap: Tap) -> Forward:
    """A forward for `layer` that does the same and takes two gradients."""
    # Partials, not closures: a deep copy of the model (EMA, a best model kept) then calls the copy's own layers.
    return functools.partial(_linear, layer, tap)


def _linear(layer: nn.Linear, tap: Tap, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return nn.functional.linear(x, layer.weight, layer.bias)
    tap.see(x)
    dtype = _autocast_dtype(x)
    parts = [x, layer.weight, layer.bias]
    # Autocast does not reach into a custom Function: cast as it would, differentiably.
    x, weight_OI, bias_O = (p if p is None or dtype is None else p.to(dtype) for p in parts)
    output: Tensor = _TwoGradientLinear.apply(x, weight_OI, bias_O, tap)
    return output


def is_replaced(module: nn.Module) -> bool:
    """Whether the forward of this instance is one of ours."""
    forward = vars(module).get("forward")
    return isinstance(forward, functools.partial) and forward.func in (_linear, _lora, _branch)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody but DeepSpeed, which watches every module, wants to know when this one is called."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any(is_foreign(hook) for kind in kinds for hook in getattr(module, kind).values())


def _is_watched(module: nn.Module) -> bool:
    """Whether calling this module does more than its class says: somebody hooked to it, or replaced its forward."""
    return is_hooked(module) or ("forward" in vars(module) and not is_replaced(module))


def unfuse(model: nn.Module) -> None:
    """Give LoRA layers that `branch_forward` fused their own forward back: other gradients are wanted of them now."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, functools.partial) and forward.func is _branch:
            del module.forward


def takes_two_gradients(module: nn.Module) -> bool:
    """Whether the forward of this instance is one of ours that leaves a bias gradient in a tap."""
    return is_replaced(module) and vars(module)["forward"].func is not _branch


def forget_copied(model: nn.Module) -> None:
    """Give layers of a copy of a patched model, or of one that was saved, their own forward back: their taps are
    nobody's.
    """
    for module in model.modules():
        if takes_two_gradients(module):
            taps = [part for part in vars(module)["forward"].args if isinstance(part, Tap)]
            if all(isinstance(tap.source, Nobody) for tap in taps):
                del module.forward


def is_foreign(hook: Any) -> bool:
    """Whether a hook is neither DeepSpeed's nor ours."""
    code = getattr(hook, "func", hook)
    return not str(getattr(code, "__module__", "")).startswith(("deepspeed.", "debias."))


def is_plain_lora(module: nn.Module) -> bool:
    """True for PEFT's LoRA on a linear layer (4-bit too) with one active adapter and nothing special about it."""
    if not all(hasattr(module, name) for name in ("lora_A", "lora_B", "active_adapters", "scaling", "base_layer")):
        return False
    layer: Any = module
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return (
        own_class(layer).__name__ in {"Linear", "Linear4bit"}
        and len(active) == 1
        and not layer.lora_variant
        and not layer.merged
        and isinstance(layer.lora_A[active[0]], nn.Linear)
        and layer.lora_A[active[0]].bias is None
        and layer.lora_B[active[0]].bias is None
    )


def lora_forward(layer: Any, tap_a: Tap, tap_b: Tap) -> Forward:
    """A forward for a plain LoRA layer: one fused branch instead of two products, a scaling and a sum.

    The wide output is touched once, where the usual form multiplies it by the scaling and adds it in passes of their
    own; that pays for the second gradient. Anything unusual (merged, disabled, mixed adapters) takes the usual path.
    """
    (name,) = [name for name in layer.active_adapters if name in layer.lora_A]
    return functools.partial(_lora, layer, layer.forward, name, tap_a, tap_b)


def branch_forward(layer: Any, tap: Tap) -> Forward:
    """As `lora_forward`, for a tap that wants no bias gradient; code that is being compiled takes the usual path."""
    (name,) = [name for name in layer.active_adapters if name in layer.lora_A]
    return functools.partial(_branch, layer, layer.forward, name, tap)


def _branch(layer: Any, usual: Forward, name: str, tap: Tap, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return usual(x, *args, **kwargs)
    return _lora(layer, usual, name, tap, tap, x, *args, **kwargs)


def _lora(
    layer: Any, usual: Forward, name: str, tap_a: Tap, tap_b: Tap, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    active = [other for other in layer.active_adapters if other in layer.lora_A]
    unusual = args or kwargs or layer.merged or layer.disable_adapters or active != [name] or x.dim() < 2
    if unusual or _is_watched(layer.lora_A[name]) or _is_watched(layer.lora_B[name]):
        return usual(x, *args, **kwargs)  # calls lora_A and lora_B themselves, and so whatever is hooked to them
    if torch.is_grad_enabled():
        tap_a.see(x)
    # The same without grad: reentrant checkpointing recomputes what ran without it, and a dropout mask drawn in
    # another dtype (the usual path leaves the cast to autocast) would be another mask on CUDA.
    base = layer.base_layer(x)
    a_RI, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = _autocast_dtype(x) or a_RI.dtype
    x = layer.lora_dropout[name](x.to(dtype))
    output: Tensor = _TwoGradientLora.apply(base, x, a_RI.to(dtype), b_OR.to(dtype), layer.scaling[name], tap_a, tap_b)
    return output


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
