"""A penalty on what LoRA adds to a model's weights: its slopes, added once a step to the update in `p.grad`."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debias.penalties import Factors, Penalty

# Of which every number is the weight itself: those of 8 bits and less have scales elsewhere.
WHOLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class WeightTerm:
    """The layers of a model that have LoRA, and the penalty on them. Every rank has whole weights, and adds the same.

    Raises ValueError, with its name, for a layer that the penalty cannot take, and where there is none.
    """

    def __init__(self, model: nn.Module, penalty: Penalty) -> None:
        self.penalty = penalty
        self._layers: list[tuple[Any, str]] = []
        for name, layer, adapters in _lora_layers(model):
            if reason := _refusal(layer, adapters, nested=name.endswith(".base_layer")):
                raise ValueError(f"weight_penalty {penalty.name}: {name} {reason}")
            try:
                penalty.check(layer.r[adapters[0]])
            except ValueError as error:
                raise ValueError(f"weight_penalty.{error}") from None
            self._layers.append((layer, adapters[0]))
        if not self._layers:
            raise ValueError(
                f"weight_penalty {penalty.name} needs linear layers with LoRA (adapter: lora), and this model has none"
            )

    def add(self) -> None:
        """Add the slopes of every layer to the gradients of its factors, as far as they train."""
        for layer, adapter in self._layers:
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


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any, Sequence[str]]]:
    """Path, layer and the names of its active adapters, of every layer whose LoRA is active."""
    lora = sys.modules.get("peft.tuners.lora.layer")
    for name, module in model.named_modules() if lora else ():
        if isinstance(module, lora.LoraLayer):  # type: ignore[union-attr]
            known = {*module.lora_A, *module.lora_embedding_A}
            if active := [adapter for adapter in module.active_adapters if adapter in known]:
                yield name, module, active


def _base(layer: Any) -> Tensor:
    """W [O, I]; of GPT-2 it lies the other way round."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    return weight.T if getattr(layer, "fan_in_fan_out", False) else weight


def _refusal(layer: Any, adapters: Sequence[str], *, nested: bool) -> str | None:
    """Why a layer's update is not `scale B A` beside weights that can be read, None where it is."""
    adapter = adapters[0]
    weight = getattr(layer.get_base_layer(), "weight", None)
    if adapter not in layer.lora_A or weight is None:
        return "is no linear layer; leave it out of adapter.targets (of experts: adapter.experts false)"
    if others := _others(layer, adapters, nested=nested):
        return others
    if form := _other_form(layer, adapter):
        return f"has LoRA of another form ({form}); take adapter lora, rslora or lora_fa"
    if weight.dtype not in WHOLE:
        return (
            f"is quantized to {str(weight.dtype).removeprefix('torch.')}, and its weights would be unpacked in every"
            " step; load the model in float32, bfloat16 or float16, without load_in_4bit"
        )
    shape = (layer.lora_B[adapter].weight.shape[0], layer.lora_A[adapter].weight.shape[-1])
    if weight.dim() != 2 or _base(layer).shape != shape:
        return (
            f"has weights of shape {list(weight.shape)}, and LoRA one of {list(shape)}; leave it out of adapter.targets"
        )
    return None


def _others(layer: Any, adapters: Sequence[str], *, nested: bool) -> str | None:
    """What is said of a layer that other adapters change, too: its update is not that of one of them."""
    if len(adapters) > 1:
        return f"has {len(adapters)} active adapters ({', '.join(adapters)}); set one of them active"
    if nested or layer.base_layer is not layer.get_base_layer():
        return "has another adapter around or beneath its LoRA (a mixed model of PEFT); leave one of the two out"
    return None


def _other_form(layer: Any, adapter: str) -> str | None:
    """PEFT's name of what is no product of two factors alone: a variant of LoRA, or the layer of AdaLoRA."""
    variant = layer.lora_variant.get(adapter)
    if variant is not None:
        return type(variant).__name__
    return None if hasattr(layer.lora_A[adapter], "weight") else type(layer).__name__
