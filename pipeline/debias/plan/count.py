"""Exact sizes of the run's model: elements and bytes of every tensor, from the meta device."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from debias.adapters import is_beside_base
from debias.config.run import RunConfig
from debias.engines.parameters import Select, for_model, selection
from debias.plan.skeleton import FourBitLinear, base_skeleton, layers_of, period_of, shallow, skeleton

KINDS = ("experts", "embeddings", "head", "norms and biases", "other")


@dataclass(frozen=True)
class Size:
    """One tensor: how many elements the model has there, and bytes as they lie in memory."""

    name: str
    kind: str  # one of KINDS
    elements: int
    stored: int  # elements as stored: packed where 4-bit
    bytes: int
    precision: str  # 4-bit, 16-bit, 32-bit
    trainable: bool
    selected: bool  # the rule acts on it
    rows: int = 1


@dataclass(frozen=True)
class Counts:
    """All tensors of the adapted model, and sums over them."""

    sizes: tuple[Size, ...]
    active_share: float  # of an expert's elements, used for one token

    def elements(self, **wanted: Any) -> int:
        """Elements of the tensors whose fields have those values."""
        return sum(size.elements for size in self._where(wanted))

    def bytes(self, **wanted: Any) -> int:
        """Bytes of the tensors whose fields have those values."""
        return sum(size.bytes for size in self._where(wanted))

    @property
    def base(self) -> int:
        """Elements of the base model, without what an adapter adds."""
        return sum(size.elements for size in self.sizes if not is_beside_base(size.name))

    @property
    def active(self) -> int:
        """Elements of the base model that one token uses: of experts, the share that is routed to."""
        experts = sum(s.elements for s in self.sizes if s.kind == "experts" and not is_beside_base(s.name))
        return self.base - round(experts * (1 - self.active_share))

    def _where(self, wanted: dict[str, Any]) -> Iterator[Size]:
        return (size for size in self.sizes if all(getattr(size, key) == value for key, value in wanted.items()))


def count(run: RunConfig, config: Any) -> Counts:
    """The sizes of every tensor of the run's model, exact: layers that repeat are built once and counted often."""
    base = base_skeleton(run, config)
    period = period_of(base, config)
    few = skeleton(run, shallow(config, period))
    layers = layers_of(base, config)
    path = next(path for path, module in base.named_modules() if module is layers)
    sizes = tuple(
        _repeated(sizes_of(few, selection(debias_head=run.debias_head)), path, period, config.num_hidden_layers)
    )
    return Counts(sizes, active_share(config))


def active_share(config: Any) -> float:
    """The share of a mixture's experts that one token uses."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    return min(1.0, chosen / experts)


def _repeated(sizes: Iterable[Size], path: str, period: int, layers: int) -> Iterator[Size]:
    inside = re.compile(rf"(.*(?:^|\.){re.escape(path)}\.)(\d+)(\..*)")
    for size in sizes:
        found = inside.fullmatch(size.name)
        if found is None:
            yield size
        else:
            head, index, tail = found.groups()
            yield from (replace(size, name=f"{head}{layer}{tail}") for layer in range(int(index), layers, period))


def sizes_of(model: nn.Module, select: Select) -> Iterator[Size]:
    """Of every tensor of a model on the meta device."""
    select = for_model(select, model)
    owners: dict[int, nn.Module] = {}
    for module in model.modules():
        for held in module._parameters.values():
            if held is not None:
                owners.setdefault(id(held), module)  # of a tied weight the first, whose name it has
    for name, parameter in model.named_parameters():
        precision = "32-bit" if parameter.dtype == torch.float32 else "16-bit"
        trains = parameter.requires_grad
        elements = parameter.numel()
        kind = _kind(name, parameter, owners[id(parameter)])
        picked = trains and select(name, parameter)
        size = elements * parameter.element_size()
        rows = parameter.shape[0] if parameter.dim() > 1 else 1
        yield Size(name, kind, elements, elements, size, precision, trains, picked, rows)
    for path, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            size = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers(recurse=False))
            elements = module.in_features * module.out_features
            # Packed in elements of the compute dtype (`bnb_4bit_quant_storage`).
            stored = module.weight.numel() // module.compute_dtype.itemsize
            yield Size(f"{path}.weight", "other", elements, stored, size, "4-bit", False, False)


def _kind(name: str, parameter: nn.Parameter, owner: nn.Module) -> str:
    parts = name.split(".")
    if "experts" in parts and (parameter.dim() == 3 or parts[parts.index("experts") + 1].isdigit()):
        return "experts"
    if isinstance(owner, nn.Embedding):
        return "embeddings"
    if {"lm_head", "classifier", "score"} & set(parts) and not is_beside_base(name):
        return "head"
    return "norms and biases" if parameter.dim() < 2 else "other"
