"""Deep feature reweighting (Kirichenko et al., ICLR 2023, arXiv 2204.02937): a last layer fitted to balanced groups.

Shapes: N rows, M of them drawn, C labels, D what the last layer is given, K cells of a label and a group.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.errors import InputError
from debias.merging.edits import Edit, LastLayer

logger = logging.getLogger(__name__)
SETTLED = 1e-6  # how far from zero the slope of a fit may be, where the mean cross-entropy is one of its terms


@dataclass(frozen=True)
class DFRLastLayer(Edit):
    """A new last layer, fitted to rows held out of which every pair of label and group has equally many: DFR.

    `|W|_1 + c sum_i CE_i` is made small on columns of mean 0 and deviation 1, `retrainings` times: each on as many rows
    of every cell (a label and a group that occur together) as the smallest cell has, drawn anew. The new layer is the
    mean of these, for the columns as they were; of the old one nothing stays, and of the adapter all else does. `c` is
    that of its values with which the worst cell is answered best on one half of the rows, after one fit to the other
    half (of equals the first); a single value is taken as it is. `steps` bounds each fit (proximal gradients from
    zero), which ends when it has settled.

    Needs an adapter whose head was trained whole (a classifier), and of its run the settings, which name
    `data.validation`: rows with groups (`data.group_field`, or those of a planted cue), a few dozen of the rarest cell.
    They may have the shortcut of the training data. Costs one pass over those rows, and seconds to minutes. Fails where
    the rarest cell is tiny (each fit sees as few rows of all others), and where what is honest is not linear in what
    the layer is given. How often the worst cell is answered rightly, before and after, is said, on the rows it was
    fitted to; what is claimed of the result is judged on a suite of other rows. `afr_last_layer` asks for no groups.

    Of the authors' code are the values of `c`, the 20 retrainings and the choice by halves. Its solver fits each of
    three labels and more against all others, and counts intercepts as weights; here all labels are fitted at once, with
    free intercepts. It scales columns by training rows, here they are scaled by those held out; a layer without an
    intercept has its columns scaled alone.

    Source: Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations, ICLR 2023,
    arXiv 2204.02937, and its authors' code.
    """

    name: ClassVar[str] = "dfr_last_layer"
    retrains: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = True
    c: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    retrainings: int = 20
    steps: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.c or not all(math.isfinite(one) and one > 0 for one in self.c):
            raise ValueError(f"c is {list(self.c)}, expected numbers above 0")
        for name in ("retrainings", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2^63 - 1")

    def retrained(self, last: LastLayer) -> LastLayer:
        """The mean of the fits; InputError where a label has no row, or the rarest cell none to choose `c` by."""
        self._check(last)
        columns = Columns.of(last)
        scaled = columns.scaled(last)
        generator = torch.Generator().manual_seed(self.seed)
        c = self.c[0] if len(self.c) == 1 else self._chosen(scaled, generator)
        every_N = torch.arange(len(last.label_N))
        fits = [self._fit(scaled, balanced(every_N, last.cell_N, generator), c) for _ in range(self.retrainings)]
        if not all(settled for *_, settled in fits):
            logger.warning("WARNING: %s: a fit has not settled after %d steps; take more", self.name, self.steps)
        made = columns.mean_of(last, [(weight, bias) for weight, bias, _ in fits])
        told = {"c": c, "cells": len(last.cell_sizes_K), "of_each_cell": int(last.cell_sizes_K.min())}
        return dataclasses.replace(made, told=told)

    def _check(self, last: LastLayer) -> None:
        last.check_labels(self.name)
        if len(self.c) > 1 and int(last.cell_sizes_K.min()) < 2:
            raise InputError(
                f"edit: {self.name}: the rarest pair of label and group has one row held out, of which no half can"
                " choose c; give more of them, or one value of c"
            )

    def _chosen(self, scaled: LastLayer, generator: torch.Generator) -> float:
        """The c with which the worst cell of one half is answered best after a fit to the other."""
        fitted, judged = scaled.halves(generator)
        drawn = balanced(fitted, scaled.cell_N, generator)
        worst = {}
        for c in self.c:
            weight_CD, bias_C, _ = self._fit(scaled, drawn, c)
            said_M = (scaled.inputs_ND[judged] @ weight_CD.T + bias_C).argmax(dim=1)
            right_M = (said_M == scaled.label_N[judged]).double()
            cell_M = scaled.cell_N[judged]
            worst[c] = float((torch.bincount(cell_M, right_M) / torch.bincount(cell_M)).min())
        told = ", ".join(f"{c:g} ({100 * of_worst:.1f} %)" for c, of_worst in worst.items())
        chosen = max(worst, key=lambda c: worst[c])
        logger.info("%s: c is %g; right in the worst cell of one half of the rows: %s", self.name, chosen, told)
        return chosen

    def _fit(self, scaled: LastLayer, rows_M: Tensor, c: float) -> tuple[Tensor, Tensor, bool]:
        """W [C, D] and b [C] of the rows, and whether the fit has settled; b stays zero where the layer has none."""
        free = scaled.bias_C is not None
        inputs_MD, label_M = scaled.inputs_ND[rows_M], scaled.label_N[rows_M]
        made, settled = lasso(inputs_MD, label_M, len(scaled.weight_CD), c, self.steps, free=free)
        return made[:, :-1], made[:, -1], settled


@dataclass(frozen=True)
class Columns:
    """How the columns of what a layer is given are brought to mean 0 and deviation 1; without an intercept, to that
    deviation alone."""

    mean_D: Tensor
    deviation_D: Tensor

    @classmethod
    def of(cls, last: LastLayer) -> "Columns":
        """Those of a layer's rows."""
        deviation_D = last.inputs_ND.std(dim=0, correction=0)
        varies_D = deviation_D > 1e-12 * last.inputs_ND.abs().amax(dim=0)  # what rounding makes of equals is none
        deviation_D = torch.where(varies_D, deviation_D, 1.0)
        mean_D = last.inputs_ND.mean(dim=0) if last.bias_C is not None else torch.zeros_like(deviation_D)
        return cls(mean_D, deviation_D)

    def scaled(self, last: LastLayer) -> LastLayer:
        """The layer with its rows brought there."""
        return dataclasses.replace(last, inputs_ND=(last.inputs_ND - self.mean_D) / self.deviation_D)

    def mean_of(self, last: LastLayer, fits: Sequence[tuple[Tensor, Tensor]]) -> LastLayer:
        """The layer with the mean of fits (W [C, D] and b [C], of scaled rows), for the columns as they were."""
        weight_CD = torch.stack([weight for weight, _ in fits]).mean(dim=0) / self.deviation_D
        bias_C = torch.stack([bias for _, bias in fits]).mean(dim=0) - weight_CD @ self.mean_D
        return dataclasses.replace(last, weight_CD=weight_CD, bias_C=None if last.bias_C is None else bias_C)


def balanced(rows_M: Tensor, cell_N: Tensor, generator: torch.Generator) -> Tensor:
    """Of these rows as many of each cell as the smallest one has, drawn at random without replacement."""
    shuffled_M = rows_M[torch.randperm(len(rows_M), generator=generator)]
    cells = [shuffled_M[cell_N[shuffled_M] == cell] for cell in cell_N[rows_M].unique().tolist()]
    few = min(map(len, cells))
    return torch.cat([cell[:few] for cell in cells])


def lasso(inputs_MD: Tensor, label_M: Tensor, labels: int, c: float, steps: int, *, free: bool) -> tuple[Tensor, bool]:
    """What makes `|W|_1 + c sum CE` smallest, [C, D + 1] with b in the last column, and whether it has settled.

    Accelerated proximal gradients (Beck & Teboulle 2009) that start anew where the step turns (O'Donoghue & Candes
    2015), on the same thing divided by `c M`. Without `free`, b is held at zero.
    """
    ones_M1 = torch.full((len(inputs_MD), 1), float(free), dtype=inputs_MD.dtype)
    x_ME, own_MC = torch.cat([inputs_MD, ones_M1], dim=1), torch.nn.functional.one_hot(label_M, labels).double()
    cut_E = torch.full((x_ME.shape[1],), 1 / (c * len(x_ME)), dtype=x_ME.dtype)
    cut_E[-1] = 0.0
    steepest = 0.5 * float(torch.linalg.matrix_norm(x_ME, 2)) ** 2 / len(x_ME) or 1.0  # no slope: nothing moves
    now = ahead = torch.zeros(labels, x_ME.shape[1], dtype=x_ME.dtype)
    momentum = 1.0
    for _ in range(steps):
        slope = (torch.softmax(ahead @ x_ME.T, dim=0) - own_MC.T) @ x_ME / len(x_ME)
        moved = ahead - slope / steepest
        new = moved.sign() * (moved.abs() - cut_E / steepest).clamp(min=0.0)
        if float((new - ahead).abs().max()) * steepest < SETTLED:
            return new, True
        if float(((ahead - new) * (new - now)).sum()) > 0:
            momentum = 1.0
        later = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, now, momentum = new + (momentum - 1) / later * (new - now), new, later
    return now, False
