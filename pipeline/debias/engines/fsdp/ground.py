"""The rows of an FSDP2 model's weights that an optimizer steps on."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from debias.engines.fsdp.shards import local, whole
from debias.engines.grounds import RankCounts, Stepped, Summed
from debias.engines.layout import ByRows
from debias.engines.step_hooks import inner


class Rows:
    """See `debias.engines.grounds.Parts`: of each tensor this rank has its rows, flat."""

    def __init__(self, trainable: Mapping[str, Any], layout: ByRows) -> None:
        self._trainable, self._layout = trainable, layout

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Parts.whole`; masks come as float32."""
        found = {}
        for name, part in parts.items():
            p = self._trainable[name]
            rows = part.to(p.device, torch.float32 if part.dtype == torch.bool else part.dtype)
            found[name] = whole(p, rows).to("cpu", copy=True)
        return found

    def part(self, name: str, whole: Tensor) -> Tensor:
        """See `Parts.part`."""
        piece = self._layout.pieces.get(name)
        return whole.reshape(-1)[:0] if piece is None else whole.reshape(-1)[piece.start : piece.stop]


class FsdpGround:
    """See `debias.engines.grounds.Ground`. `trainable`: the sharded parameters, by name."""

    sharded = True

    def __init__(self, model: Any, optimizer: Any, trainable: Mapping[str, Any], layout: ByRows) -> None:
        first = next(iter(trainable.values()))
        group, device = first.device_mesh.get_group(), first.to_local().device
        self.optimizer = inner(optimizer)
        self.ranks = RankCounts(group, device)
        self._trainable = trainable
        self._names = {id(p): name for name, p in trainable.items()}
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._sum = Summed(trainable, group, device)
        self.weights = self.gradients = Rows(trainable, layout)

    def shapes(self) -> dict[str, torch.Size]:
        """See `Ground.shapes`."""
        return self._shapes

    def trains(self) -> Iterable[str]:
        """See `Ground.trains`."""
        return self._trainable

    def held(self) -> dict[str, Tensor]:
        """See `Ground.held`."""
        return {self._names[id(p)]: local(p) for p in self._own()}

    def stepping(self) -> list[Stepped]:
        """See `Ground.stepping`."""
        due = [p for p in self._own() if p.grad is not None]
        return [Stepped(self._names[id(p)], local(p.grad), functools.partial(local, p)) for p in due]

    def summed(self, numbers_K: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """See `Ground.summed`."""
        return self._sum(numbers_K, size)

    def where_stepped(self, name: str, of_gradient: Tensor) -> Tensor:
        """See `Ground.where_stepped`."""
        return of_gradient

    def _own(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if id(p) in self._names]
