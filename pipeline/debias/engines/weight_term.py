"""A penalty on what LoRA adds to a model's weights: its slopes, added once a step to the update in `p.grad`."""

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from debias.penalties import Factors, Penalty


class WeightTerm:
    """The layers of a model that have LoRA, and the penalty on them. Every rank has whole weights, and adds the same.

    Raises ValueError, with its name, for a layer that the penalty cannot take, and where there is none.
    """

    def __init__(self, model: nn.Module, penalty: Penalty) -> None:
        self.penalty = penalty
        self._layers = list(_lora_layers(model))
        if not self._layers:
            raise ValueError(
                f"weight_penalty {penalty.name} needs linear layers with LoRA (adapter: lora), and this model has none"
            )
        for name, layer, adapter in self._layers:
            if reason := _refusal(layer, adapter):
                raise ValueError(f"weight_penalty {penalty.name}: {name} {reason}")
            try:
                penalty.check(layer.r[adapter])
            except ValueError as error:
                raise ValueError(f"weight_penalty.{error}") from None

    def add(self) -> None:
        """Add the slopes of every layer to the gradients of its factors, as far as they train."""
        for _, layer, adapter in self._layers:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            factors = Factors(_base(layer), b.detach(), a.detach(), float(layer.scaling[adapter]))
            for parameter, slope in zip((b, a), self.penalty.slopes(factors), strict=True):
                if parameter.requires_grad:
                    parameter.grad = slope if parameter.grad is None else parameter.grad.add_(slope)


def refuse_penalty(penalty: Penalty | None, what: str) -> None:
    """ValueError where there is a penalty, and `what` keeps the weights that it reads."""
    if penalty is not None:
        raise ValueError(
            f"weight_penalty {penalty.name} reads whole weights, and cannot have {what}; use one process or"
            " DistributedDataParallel, or leave it out"
        )


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Path, layer and adapter's name of every layer whose LoRA is active."""
    lora = sys.modules.get("peft.tuners.lora.layer")
    for name, module in model.named_modules() if lora else ():
        if isinstance(module, lora.LoraLayer):  # type: ignore[union-attr]
            known = {*module.lora_A, *module.lora_embedding_A}
            yield from ((name, module, adapter) for adapter in module.active_adapters if adapter in known)


def _base(layer: Any) -> Tensor:
    """W [O, I]; of GPT-2 it lies the other way round."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    return weight.T if getattr(layer, "fan_in_fan_out", False) else weight


def _refusal(layer: Any, adapter: str) -> str | None:
    """Why a layer's update is not `scale B A` beside weights that can be read, None where it is."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if adapter not in layer.lora_A or weight is None:
        return "is no linear layer; leave it out of adapter.targets (of experts: adapter.experts false)"
    if layer.lora_variant.get(adapter) is not None:
        return "has LoRA of another form (DoRA); take adapter lora, rslora or lora_fa"
    if not weight.is_floating_point():
        return "is quantized, and its weights would be unpacked in every step; load the model without load_in_4bit"
    shape = (layer.lora_B[adapter].weight.shape[0], layer.lora_A[adapter].weight.shape[-1])
    if weight.dim() != 2 or _base(layer).shape != shape:
        return (
            f"has weights of shape {list(weight.shape)}, and LoRA one of {list(shape)}; leave it out of adapter.targets"
        )
    return None
