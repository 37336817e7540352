"""Where the optimizer steps on weights: whole, or in pieces that are dealt out over ranks. Shapes: K tensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from debias.engines.rule_state import on_the_cpu
from debias.engines.step_hooks import inner
from debias.masks import Ranks


@dataclass(frozen=True)
class Stepped:
    """This rank's part of a tensor that the optimizer's step is about to move, in the optimizer's own memory.

    `at`: where it lies now; an optimizer may give a parameter other memory (`p.data = ...`) in its step.
    """

    name: str
    gradient: Tensor
    at: Callable[[], Tensor]

    @property
    def weight(self) -> Tensor:
        """What it is now; writing to it moves it."""
        return self.at()


class Parts(Protocol):
    """How tensors are dealt out over the ranks; where they are whole, a part is everything."""

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of all ranks' parts, of whatever has the parameters' shapes; every rank gives parts
        of the same tensors, in the same order, be they empty. Collective.
        """

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor; empty where it has none."""


class Ground(Protocol):
    """The weights that an optimizer steps on, by the names of the model's parameters."""

    @property
    def optimizer(self) -> Any:
        """The one whose steps are followed."""

    @property
    def ranks(self) -> Ranks | None:
        """Among which gradients are dealt out; None where each rank has them whole."""

    @property
    def weights(self) -> Parts:
        """How the weights that it steps on are dealt out."""

    @property
    def gradients(self) -> Parts:
        """How a step's update is."""

    @property
    def sharded(self) -> bool:
        """Whether sums over the weights are to be summed over the ranks."""

    def shapes(self) -> dict[str, torch.Size]:
        """The whole shape of each of the model's parameters, those that are frozen too."""

    def trains(self) -> Iterable[str]:
        """The parameters that train now."""

    def held(self) -> dict[str, Tensor]:
        """This rank's part of all weights that the optimizer trains, as they are; empty where it has none."""

    def stepping(self) -> list[Stepped]:
        """Before a step of `optimizer`, and after it: what has a gradient in this very step."""

    def summed(self, numbers_K: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """`size` numbers of each tensor, float64, summed over the ranks, of which each knows some. Collective."""

    def where_stepped(self, name: str, of_gradient: Tensor) -> Tensor:
        """Of a tensor that lies as this rank's gradients do, what lies where its weights are."""


class Everything:
    """Tensors that every rank has."""

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Parts.whole`."""
        return {name: on_the_cpu(part) for name, part in parts.items()}

    def part(self, name: str, whole: Tensor) -> Tensor:
        """See `Parts.part`."""
        return whole


class RankCounts:
    """See `debias.masks.Ranks`: the ranks of a process group, each of which has a piece of each tensor."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.rank = dist.get_rank(group)
        self._group, self._device = group, device

    def counts(self, own: Tensor) -> Tensor:
        """See `Ranks.counts`."""
        mine = own.to(self._device)
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(found, mine, group=self._group)
        return torch.stack(found).cpu()


class Summed:
    """Numbers of tensors by name, of which each rank knows some, summed over them all. `names`: on every rank the same,
    in the same order.
    """

    def __init__(self, names: Iterable[str], group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._names = list(names)
        self._group, self._device = group, device

    def __call__(self, numbers_K: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """`size` numbers of each name, float64, where the rank's own are. Collective."""
        rows = torch.zeros(len(self._names), size, dtype=torch.float64, device=self._device)
        for row, name in zip(rows, self._names, strict=True):
            if name in numbers_K:
                row.copy_(numbers_K[name])
        dist.all_reduce(rows, group=self._group)
        return dict(zip(self._names, rows, strict=True))


class WholeGround:
    """One process, or ranks that have whole weights and the same gradients, and do the same."""

    ranks = None
    sharded = False

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.optimizer = inner(optimizer)
        self.weights = self.gradients = Everything()
        self._model = model
        self._names = {id(p): name for name, p in model.named_parameters()}

    def shapes(self) -> dict[str, torch.Size]:
        """See `Ground.shapes`."""
        return {name: p.shape for name, p in self._model.named_parameters()}

    def trains(self) -> Iterable[str]:
        """See `Ground.trains`."""
        return [name for name, p in self._model.named_parameters() if p.requires_grad]

    def held(self) -> dict[str, Tensor]:
        """See `Ground.held`."""
        return {self._names[id(p)]: p.detach() for p in self._trainable()}

    def stepping(self) -> list[Stepped]:
        """See `Ground.stepping`."""
        return [Stepped(self._names[id(p)], p.grad, p.detach) for p in self._trainable() if p.grad is not None]

    def summed(self, numbers_K: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """See `Ground.summed`."""
        return numbers_K

    def where_stepped(self, name: str, of_gradient: Tensor) -> Tensor:
        """See `Ground.where_stepped`."""
        return of_gradient

    def _trainable(self) -> Iterable[Tensor]:
        held = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p for p in held if p.requires_grad and id(p) in self._names]
