"""Two gradients from one backward pass. Shapes: B samples.

Both gradients are weighted sums of the same per-sample gradients, and the weights are known once the forward pass is
done. For `y = x W^T` with backward signal `delta`, `main_W = delta^T x` and `bias_W = (w * delta)^T x`; only the linear
layers that train need to know.

Exact where a sample's signal never mixes with another's between the layer and the loss, and it is known which sample
each row that a layer sees belongs to; `refusal` says where it is not.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from debias.gradients.base import GradientSource, MicroBatch
from debias.gradients.classes import own_class
from debias.gradients.layers import (
    forget_copied,
    is_foreign,
    is_plain_lora,
    linear_forward,
    lora_forward,
    takes_two_gradients,
    unfuse,
)
from debias.gradients.routed import routed_loras, two_gradients
from debias.gradients.samples import FLATTENING, SampleWeights, enclosing
from debias.gradients.taps import Rows, Tap
from debias.readouts.router import router_loss_of

# DeBERTa projects its position table with the layers that project tokens; OPT flattens samples and tokens; the others
# put tokens first. Where a batch has as many samples as tokens no shape tells.
SAMPLES_NOT_FIRST = frozenset(
    {
        "DisentangledSelfAttention",
        "OPTDecoderLayer",
        "XLNetModel",
        "FSMTModel",
        "LongformerSelfAttention",
        "LEDEncoderSelfAttention",
    }
)
# Families of mixtures of experts whose code was read (their modules' names begin so).
KNOWN_MIXTURES = ("Llama4Text", "Qwen3Moe")


class SinglePass(GradientSource):
    """One forward, one backward pass; only the instances of layers that hold a selected parameter are touched."""

    name: ClassVar[str] = "single_pass"

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, selected)
        if reason := refusal(model, selected):
            raise ValueError(f"gradients 'single_pass' is not exact here: {reason}")
        self.weights: SampleWeights | None = None
        self._names = {id(p): name for name, p in self.selected.items()}
        # Layers whose forward is replaced, each with the parameters that it now reads without calling their modules.
        self._patched: dict[nn.Module, tuple[Tensor, ...]] = {}
        self._undo: list[Callable[[], None]] = []
        self._blocks = enclosing(model)
        for block in (block for block in self._blocks if own_class(block).__name__ in FLATTENING):
            self._undo.append(self._blocks[block].watch(block).remove)
        self._patch_layers(model)

    def backward(self, batch: MicroBatch) -> None:
        if batch.batch_loss is not None:
            raise ValueError(
                "gradients 'single_pass' cannot keep a loss of the whole batch (batch_loss) out of the bias gradient;"
                " use gradients='shared_forward'"
            )
        self.weights = SampleWeights(batch.weight_B.detach(), batch.sample_index)
        try:
            self.passes.main(batch.main_loss())
        finally:
            self.weights = None

    def see(self, name: str, leading: tuple[int, ...], rows: Rows) -> None:
        """See `debias.gradients.taps.Collector`; here nobody asks."""

    def accumulate(self, name: str, gradient: Tensor) -> None:
        """Add to the bias gradient of parameter `name`, in float32 or, where the layer is in float64, in that."""
        held = self.bias.get(name)
        if held is None:
            self.bias[name] = gradient.to(_wide(gradient.dtype))
        else:
            held.add_(gradient)

    def detach(self) -> None:
        for layer in self._patched:
            del layer.forward
        for undo in self._undo:
            undo()
        self._patched, self._undo = {}, []
        self.reset()

    def bias_dtype(self, parameter: Tensor) -> torch.dtype:
        return _wide(parameter.dtype)

    @property
    def borrowed(self) -> Mapping[nn.Module, tuple[Tensor, ...]]:
        """Layers that read parameters of modules inside them without calling these: a sharded engine must know."""
        return {layer: parameters for layer, parameters in self._patched.items() if parameters}

    def _patch_layers(self, model: nn.Module) -> None:
        unfuse(model)
        inside_lora = self._patch_experts(model)
        for module in model.modules():
            if id(module) in inside_lora:
                continue
            if is_plain_lora(module) and "forward" not in vars(module):
                a, b = active_pair(module)
                if id(a.weight) in self._names and id(b.weight) in self._names:
                    inside_lora |= {id(a), id(b)}
                    taps = self._tap(a), self._tap(b)
                    self._replace(module, lora_forward(module, *taps), a.weight, b.weight)
                    for layer, tap in ((a, taps[0]), (b, taps[1])):  # called where something is hooked to them
                        self._replace(layer, linear_forward(layer, tap))
            elif isinstance(module, nn.Linear):
                tap = self._tap(module)
                if tap.weight_name or tap.bias_name:
                    self._replace(module, linear_forward(module, tap))

    def _patch_experts(self, model: nn.Module) -> set[int]:
        """Returns the linear layers whose weights the experts read without calling them."""
        inside: set[int] = set()
        for experts, lora in routed_loras(model):
            pair = lora.pair
            inside |= {id(layer) for layer in pair}
            if any(id(layer.weight) in self._names for layer in pair):
                taps = (Tap(self, self._names.get(id(one.weight)), None, self._blocks.get(experts)) for one in pair)
                self._undo.append(two_gradients(lora, *taps))
        return inside

    def _tap(self, layer: nn.Linear) -> Tap:
        names = self._names.get(id(layer.weight)), self._names.get(id(layer.bias))
        return Tap(self, *names, self._blocks.get(layer))

    def _replace(self, layer: nn.Module, forward: Any, *borrowed: Tensor) -> None:
        layer.forward = forward
        self._patched[layer] = borrowed


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def active_pair(layer: Any) -> tuple[nn.Linear, nn.Linear]:
    """A and B of the one active adapter of a plain LoRA layer."""
    (name,) = [name for name in layer.active_adapters if name in layer.lora_A]
    return layer.lora_A[name], layer.lora_B[name]


def refusal(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> str | None:
    """Why single_pass would not be exact for these parameters of this model, or None where it is.

    A copy of a model that a hook is attached to is none that is attached: its layers get their own forward back.
    """
    forget_copied(model)
    return (
        _attached_before(model)
        or why_compiled(model)
        or _loss_of_the_batch(model)
        or _mixed_samples(model)
        or _not_linear(model, selected)
        or _not_called(model)
        or hooked(selected)
    )


def _attached_before(model: nn.Module) -> str | None:
    """A notebook's cell that is run again: the layers would be read by the hook before, past this one's taps."""
    for name, module in model.named_modules():
        if takes_two_gradients(module):
            return f"a hook is attached to {name} already; detach() it first"
    return None


def why_compiled(model: nn.Module) -> str | None:
    """Compiled code returns gradients and does nothing beside that: what a tap leaves would be lost."""
    for name, module in model.named_modules():
        if name.endswith("_orig_mod") or module._compiled_call_impl is not None:
            return f"{name or 'the model'} is compiled (torch_compile)"
    return None


def _loss_of_the_batch(model: nn.Module) -> str | None:
    """Both gradients are weighted sums of one signal: what is in it for main is in it for bias."""
    if router_loss_of(model) is None:
        return None
    return "the load balancing loss of the routers (router_aux_loss_coef) is of the batch, not of its samples"


def _mixed_samples(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if reason := _mixes(module):
            return f"{name} ({own_class(module).__name__}) {reason}"
        if variants := getattr(module, "lora_variant", None):
            return f"{name} is a LoRA variant ({', '.join(type(v).__name__ for v in variants.values())})"
    return None


def _mixes(module: nn.Module) -> str | None:
    kind = own_class(module).__name__
    reasons = {
        "uses statistics of the batch": isinstance(module, nn.modules.batchnorm._BatchNorm),
        "routes tokens of different samples in a way that is not known": _unknown_routing(kind),
        # The shape check at backward cannot see this where a batch has as many samples as tokens.
        "puts the sequence first: samples are not the first dimension": getattr(module, "batch_first", True) is False,
        "calls its layers on tensors whose first dimension is not the samples": kind in SAMPLES_NOT_FIRST,
    }
    held = next((reason for reason, holds in reasons.items() if holds), None)
    return _materialised(module) if held is None and kind == "ParamWrapper" else held


def _materialised(wrapper: Any) -> str | None:
    """Of PEFT's adapter on a parameter: why `W + B A` is made as a whole, or None where tokens are routed."""
    routed = getattr(wrapper.get_base_layer(), "routed_experts", None)
    if routed is None:
        cure = "debias.adapters.experts.route_experts helps for experts of families that it knows"
        return f"adapts a parameter as a materialised delta (target_parameters); {cure}"
    reason = routed.reason()
    return None if reason is None else f"adapts a parameter as a materialised delta (target_parameters): {reason}"


def _unknown_routing(kind: str) -> bool:
    """A mixture of experts that is none of those whose routing was read: each token by itself, none dropped."""
    routes = "moe" in kind.lower() or "expert" in kind.lower()
    return routes and not kind.startswith(KNOWN_MIXTURES)


def _not_linear(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> str | None:
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, module))
    for name, parameter in selected.items():
        held = owners.get(id(parameter), [])
        if len(held) != 1:
            return f"{name} is shared by {len(held)} modules"
        path, module = held[0]
        if type(module).forward is not nn.Linear.forward:
            return f"{name} belongs to {own_class(module).__name__}, not to a plain linear layer"
        if "forward" in vars(module):
            return f"the forward of {path} was replaced by somebody else"
    return None


def _not_called(model: nn.Module) -> str | None:
    """Modules that read a linear layer's weight without calling it, so a tap there would stay silent."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and any(p.requires_grad for p in module.parameters()):
            return f"{name} (MultiheadAttention) uses its projections without calling them"
    return None


def hooked(selected: Mapping[str, nn.Parameter]) -> str | None:
    """A hook on a parameter is called once, with main: what it does to a gradient would be done to that alone."""
    for name, parameter in selected.items():
        held: Any = parameter
        hooks = (*(held._backward_hooks or {}).values(), *(held._post_accumulate_grad_hooks or {}).values())
        if any(is_foreign(hook) for hook in hooks):
            return f"a hook on {name} (register_hook) would act on the main gradient alone"
    return None
