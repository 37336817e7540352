"""The float32 weights that a DeepSpeed engine's optimizer steps on, and the gradients that it steps by."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from debias.engines.grounds import RankCounts, Stepped, Summed
from debias.engines.layout import Layout, Piece
from debias.engines.parameters import whole_shape
from debias.engines.step_hooks import inner
from debias.engines.zero.homes import Home, MasterCopies, Whole
from debias.engines.zero.state import Master, joined, masters_of, trainable_of


class Pieces:
    """Tensors of which each rank has its pieces, or where `sharded` is false everything."""

    def __init__(self, engine: Any, pieces: Mapping[str, Piece], *, sharded: bool) -> None:
        self._engine, self._pieces = engine, pieces
        self._speaks = sharded or dist.get_rank(getattr(engine, "seq_data_parallel_group", None)) == 0
        self._shapes = {name: whole_shape(p) for name, p in trainable_of(engine).items()}

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `debias.engines.grounds.Parts.whole`; float32."""
        mine = {name: (self._pieces[name], part.view(-1)) for name, part in parts.items() if name in self._pieces}
        shapes = {name: self._shapes[name] for name in parts}
        return joined(mine if self._speaks else {}, shapes, self._engine, torch.device("cpu"))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """See `debias.engines.grounds.Parts.part`."""
        piece = self._pieces.get(name, Piece(0, 0))
        return whole.reshape(-1)[piece.start : piece.stop]


class ZeroGround:
    """See `debias.engines.grounds.Ground`.

    DeepSpeed calls the step of the optimizer inside its own once, or once for each group of parameters; all ranks do so
    in the same order, and what was moved is copied to the weights of the model after that.
    """

    def __init__(self, engine: Any, home: Home) -> None:
        self.optimizer = inner(engine.optimizer)
        group = getattr(engine, "seq_data_parallel_group", None)
        self._engine = engine
        self._masters: list[Master] = masters_of(engine, home)
        trainable = trainable_of(engine)
        layout: Layout = home.layout(trainable)
        self.sharded = not isinstance(home, Whole)
        self.ranks = RankCounts(group, engine.device) if layout.sharded else None
        held = {name: piece for master in self._masters for name, (_, piece) in master.held.items()}
        self.weights = Pieces(engine, held, sharded=self.sharded)
        self.gradients = Pieces(engine, layout.pieces, sharded=layout.sharded)
        # bf16 with float32 sums: gradients are whole, and weights in pieces.
        self._cuts = held if isinstance(home, MasterCopies) else {}
        self._sum = Summed(trainable, group, engine.device)

    def shapes(self) -> dict[str, torch.Size]:
        """See `Ground.shapes`."""
        return {name: whole_shape(p) for name, p in self._engine.module.named_parameters()}

    def trains(self) -> Iterable[str]:
        """See `Ground.trains`."""
        return trainable_of(self._engine)

    def held(self) -> dict[str, Tensor]:
        """See `Ground.held`."""
        found = {name: view for master in self._masters for name, _, view in master.views(master.tensor.data)}
        nothing = torch.zeros(0, device=self._engine.device)
        return {name: found.get(name, nothing) for name in trainable_of(self._engine)}

    def stepping(self) -> list[Stepped]:
        """See `Ground.stepping`."""
        due = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        found = []
        for master in self._masters:
            if id(master.tensor) in due and (gradient := master.tensor.grad) is not None:
                for name, _, along in master.views(gradient):
                    found.append(Stepped(name, along, functools.partial(_view, master, name)))
        return found

    def summed(self, numbers_K: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """See `Ground.summed`."""
        return self._sum(numbers_K, size)

    def where_stepped(self, name: str, of_gradient: Tensor) -> Tensor:
        """See `Ground.where_stepped`."""
        cut = self._cuts.get(name)
        return of_gradient if cut is None else of_gradient.reshape(-1)[cut.start : cut.stop]


def _view(master: Master, name: str) -> Tensor:
    """The piece as it lies in the master now."""
    start, piece = master.held[name]
    return master.tensor.data.view(-1)[start : start + len(piece)]
