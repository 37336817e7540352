"""What every edit after training is: low-rank changes of a weight in, one low-rank change out.

Shapes: O outputs, I inputs, R the rank, K what an SVD keeps; N rows, C labels, D what a last layer is given. A stack of
fused experts has a leading dimension, one change an expert; everything here acts on the last two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from debias.errors import InputError


@dataclass(frozen=True)
class LowRank:
    """The change of a weight, `b_OR @ a_RI`; the adapter's scaling is in it."""

    a_RI: Tensor
    b_OR: Tensor

    @property
    def rank(self) -> int:
        """R: the rank that is stored, which the product may stay below."""
        return self.a_RI.shape[-2]

    def times(self, factor: float | Tensor) -> "LowRank":
        """The change times a number; of a stack, one number or one for each, [E, 1, 1]."""
        return LowRank(self.a_RI, self.b_OR * factor)

    def squared_norm(self) -> float:
        """Sum of the squared entries of `b @ a`, experts together: `tr(b^T b a a^T)`."""
        return float(((self.b_OR.mT @ self.b_OR) * (self.a_RI @ self.a_RI.mT)).sum())

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(u_OK, s_K, vh_KI)` of `b @ a` with K = min(O, I, R), without making the O x I matrix.

        QR of both factors, then the SVD of an R x R matrix: O((O + I) R^2) where the dense one takes O(O I min(O, I)).
        """
        q_OR, left_RR = torch.linalg.qr(self.b_OR)
        q_IR, right_RR = torch.linalg.qr(self.a_RI.mT)
        u, s_K, vh = torch.linalg.svd(left_RR @ right_RR.mT, full_matrices=False)
        return q_OR @ u, s_K, vh @ q_IR.mT

    def leading(self, count: int) -> "LowRank":
        """The nearest change of rank `count` (Eckart and Young): its first singular directions, all if it has fewer."""
        u_OK, s_K, vh_KI = (part.contiguous() for part in self.svd())
        root_K = s_K[..., :count].sqrt()  # in both factors, so that neither loses digits to the other
        return LowRank(root_K.unsqueeze(-1) * vh_KI[..., :count, :], u_OK[..., :count] * root_K.unsqueeze(-2))


# How well the edit of some of the adapters, by their places among those given, does on rows held out; larger is better.
HeldOut = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Tried:
    """An adapter (its place among those given) that an edit chose or left, by what was held out.

    `alone`: how it does by itself. `together`: with all that were kept before it. `kept`: whether it is in.
    """

    member: int
    alone: float
    together: float
    kept: bool


@dataclass(frozen=True)
class LastLayer:
    """A last layer that was trained whole, `logits = x W^T + b`, and what it is given of rows held out.

    `inputs_ND` and the layer's own `weight_CD` and `bias_C` (None where it has none) in float64, `label_N` in int64,
    and so `group_N`, None where a row has no group. `told`: what an edit chose, for the record.
    """

    inputs_ND: Tensor
    label_N: Tensor
    weight_CD: Tensor
    bias_C: Tensor | None
    group_N: Tensor | None = None
    told: Mapping[str, float] = field(default_factory=dict)

    @property
    def logits_NC(self) -> Tensor:
        """What the layer gives of its rows."""
        logits_NC = self.inputs_ND @ self.weight_CD.T
        return logits_NC if self.bias_C is None else logits_NC + self.bias_C

    @property
    def right(self) -> float:
        """The share of its rows on which it is right."""
        return float(self._right_N.mean())

    @property
    def cell_N(self) -> Tensor:
        """A number for each label and group that occur together, from 0; for each label where groups are unknown."""
        group_N = torch.zeros_like(self.label_N) if self.group_N is None else self.group_N
        return torch.stack([self.label_N, group_N]).unique(dim=1, return_inverse=True)[1]

    @property
    def cell_sizes_K(self) -> Tensor:
        """How many rows are of each cell."""
        return torch.bincount(self.cell_N)

    @property
    def worst(self) -> float:
        """The share of right answers in the cell where it is smallest."""
        return float((torch.bincount(self.cell_N, self._right_N) / self.cell_sizes_K).min())

    @property
    def balanced(self) -> float:
        """The mean over labels of the share of right answers."""
        return float((torch.bincount(self.label_N, self._right_N) / torch.bincount(self.label_N)).nanmean())

    def check_labels(self, edit: str) -> None:
        """InputError where a label has no row, which an edit of that name needs of each."""
        missing = set(range(len(self.weight_CD))) - set(self.label_N.tolist())
        if missing:
            raise InputError(f"edit: {edit}: no row held out has label number {min(missing)}; give more of them")

    def halves(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The places of every second row of each cell, in an order drawn anew, and of the others."""
        order_N = torch.randperm(len(self.label_N), generator=generator)
        cells = [order_N[self.cell_N[order_N] == cell] for cell in range(len(self.cell_sizes_K))]
        return torch.cat([cell[::2] for cell in cells]), torch.cat([cell[1::2] for cell in cells])

    @property
    def _right_N(self) -> Tensor:
        return (self.logits_NC.argmax(dim=1) == self.label_N).double()


@dataclass(frozen=True)
class Edit:
    """A function of trained changes. Subclasses are frozen dataclasses whose fields are the settings.

    A field that is out of range raises ValueError in one line that begins with the field. `asks`: whether the edit
    chooses among the adapters by how they do on rows held out; `retrains`: whether it fits the last layer to such rows
    (or, with `fits_training_rows`, to those it was trained on), `reads_groups`: whether it needs a group of each, and
    `balances`: whether labels weigh the same in it. All others are functions of the weights alone.
    """

    name: ClassVar[str]
    takes_several: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    retrains: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = False
    balances: ClassVar[bool] = False

    @property
    def fits_training_rows(self) -> bool:
        """Of an edit that retrains: whether its rows are those that the run was trained on."""
        return False

    def variants(self) -> "list[Edit]":
        """The edits of which one is chosen, by how it does over pseudo groups of rows held out; most have no choice."""
        return [self]

    def check(self, adapters: int) -> None:
        """ValueError where the edit cannot be of so many adapters."""
        if adapters != 1 and not self.takes_several:
            raise ValueError(f"{self.name} is an edit of one adapter, {adapters} were given")

    def choose(self, adapters: int, held_out: HeldOut) -> list[Tried]:
        """Every adapter in the order in which it was tried, of an edit that asks."""
        raise NotImplementedError

    def retrained(self, last: LastLayer) -> LastLayer:
        """The last layer after an edit that retrains it."""
        raise NotImplementedError

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """What becomes of one weight's change, float64; one of `changes` for each adapter. It stays where the edit
        retrains the last layer.
        """
        if not self.retrains:
            raise NotImplementedError
        return changes[0]

    def whole(self, tensors: Sequence[Tensor]) -> Tensor:
        """What becomes of a tensor that was trained whole (a head); by default it stays."""
        return tensors[0]
