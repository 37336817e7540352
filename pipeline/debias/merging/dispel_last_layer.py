"""DISPEL (Xue et al., 2023, arXiv 2305.14521): a last layer fitted to mixtures of rows with rows of balanced groups.

Shapes: N rows, M of them drawn, C labels, D what the last layer is given, K cells of a label and a group.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.errors import InputError
from debias.merging.dfr_last_layer import Columns, balanced, lasso
from debias.merging.edits import Edit, LastLayer

logger = logging.getLogger(__name__)
Setting = tuple[float, float, float]  # alpha, s, c


@dataclass(frozen=True)
class DISPELLastLayer(Edit):
    """A new last layer, fitted to mixtures of rows as they are with rows of balanced groups: DISPEL.

    As many rows of every label as the rarest has are drawn anew for each fit (or `size_of_mixed` in all, with
    replacement). With the probability `alpha` the row x becomes `s x' + (1 - s) x`, where x' has the same label and is
    drawn from balanced rows: as many of every cell (a label and a group that occur together) as the smallest has.
    `|W|_1 + c sum_i CE_i` of these is made small on columns of mean 0 and deviation 1, and the layer is the mean of
    `retrainings` such fits; of the old one nothing stays, and of the adapter all else does. `alpha`, `s` and `c` are
    those of their values with which the worst cell is answered best on one half of the rows, after one fit to the other
    half (of equals the first `alpha`, of its the first `s`, of its the first `c`); single values are taken as they are.
    `steps` bounds each fit, which ends when it has settled.

    Needs an adapter whose head was trained whole (a classifier), and of its run the settings, which name
    `data.validation`: rows with groups (`data.group_field`, or those of a planted cue), a few dozen of the rarest cell,
    and a label of two groups at least. Costs one pass over those rows, and minutes: with the defaults 28 fits to
    choose by and 20 more, on more rows each than `dfr_last_layer` has. Fails where the rarest cell is tiny (x' are few
    rows, seen often), and where what is honest is not linear in what the layer is given. A pair of label and group that
    does not occur is not made up for. How often the worst cell is answered rightly, before and after, is said, on the
    rows it was fitted to; what is claimed of the result is judged on a suite of other rows. With `s` and `alpha` of 1
    it is `dfr_last_layer` with balanced rows drawn again and again.

    Of the authors' code are the mixture, all values and the choice by halves. All settings are tried on one draw, where
    the code draws anew for each. Rows without groups, which it can add, and weights of labels are left out; so is its
    `groups_with_spu`, by which rows of one label are mixed into another. The fit and the columns are those of
    `dfr_last_layer`: free intercepts, all labels at once, scaled by the rows held out.

    Source: Xue et al., Eliminating Spurious Correlations from Pre-trained Models via Data Mixing, 2023, arXiv
    2305.14521 (its first version; the third mixes source and target data), and the authors' code in SpuCo.
    """

    name: ClassVar[str] = "dispel_last_layer"
    retrains: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = True
    alpha: tuple[float, ...] = (1.0,)
    s: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7)
    c: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    retrainings: int = 20
    size_of_mixed: int | None = None
    steps: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "s"):
            given = getattr(self, name)
            if not given or not all(0 < one <= 1 for one in given):
                raise ValueError(f"{name} is {list(given)}, expected shares above 0 and up to 1")
        if not self.c or not all(0 < one < float("inf") for one in self.c):
            raise ValueError(f"c is {list(self.c)}, expected numbers above 0")
        for name in ("retrainings", "size_of_mixed", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2^63 - 1")

    def retrained(self, last: LastLayer) -> LastLayer:
        """The mean of the fits; InputError where a label has no row, none has two groups, or none can choose."""
        tried = list(itertools.product(self.alpha, self.s, self.c))
        self._check(last, choosing=len(tried) > 1)
        columns = Columns.of(last)
        scaled = columns.scaled(last)
        generator = torch.Generator().manual_seed(self.seed)
        setting = tried[0] if len(tried) == 1 else self._chosen(scaled, tried, generator)
        fits = [self._fit(scaled, self._draw(scaled, generator), setting) for _ in range(self.retrainings)]
        if not all(settled for *_, settled in fits):
            logger.warning("WARNING: %s: a fit has not settled after %d steps; take more", self.name, self.steps)
        made = columns.mean_of(last, [(weight, bias) for weight, bias, _ in fits])
        told = dict(zip(("alpha", "s", "c"), setting, strict=True))
        told |= {"cells": len(last.cell_sizes_K), "of_each_cell": int(last.cell_sizes_K.min())}
        return dataclasses.replace(made, told=told)

    def _check(self, last: LastLayer, *, choosing: bool) -> None:
        last.check_labels(self.name)
        labels = len(last.weight_CD)
        if len(last.cell_sizes_K) == labels:
            groups = 1 if last.group_N is None else len(last.group_N.unique())
            raise InputError(
                f"edit: {self.name}: {groups} group{'s' if groups > 1 else ''} in the rows held out, and no label with"
                " rows of two: there are no groups to balance; give rows of two groups of one label at least"
            )
        if choosing and int(last.cell_sizes_K.min()) < 2:
            raise InputError(
                f"edit: {self.name}: the rarest pair of label and group has one row held out, of which no half can"
                " choose alpha, s and c; give more of them, or one value of each"
            )
        if self.size_of_mixed is not None and self.size_of_mixed < labels:
            raise InputError(
                f"edit.size_of_mixed is {self.size_of_mixed}, expected {labels} or more: a row of each label"
            )

    def _chosen(self, scaled: LastLayer, tried: Sequence[Setting], generator: torch.Generator) -> Setting:
        """With which the worst cell of one half is answered best after a fit to the other."""
        fitted, judged = (_part(scaled, rows) for rows in scaled.halves(generator))
        draw = self._draw(fitted, generator)
        worst = []
        for setting in tried:
            weight_CD, bias_C, _ = self._fit(fitted, draw, setting)
            worst.append(dataclasses.replace(judged, weight_CD=weight_CD, bias_C=bias_C).worst)
            told = (self.name, *setting, 100 * worst[-1])
            logger.info("%s: alpha %g, s %g, c %g: right in the worst cell of one half of the rows on %.1f %%", *told)
        chosen = tried[worst.index(max(worst))]
        logger.info("%s: alpha is %g, s %g, c %g", self.name, *chosen)
        return chosen

    def _draw(self, rows: LastLayer, generator: torch.Generator) -> "Draw":
        """What one fit to these rows mixes: rows of every label alike, each with one of a balanced part."""
        every_N, label_N = torch.arange(len(rows.label_N)), rows.label_N
        if self.size_of_mixed is None:
            row_M = balanced(every_N, label_N, generator)
        else:
            of_each = self.size_of_mixed // len(rows.weight_CD)
            row_M = torch.cat([_any_of(every_N[label_N == one], of_each, generator) for one in label_N.unique()])
        alike_M = balanced(every_N, rows.cell_N, generator)
        partner_M = torch.empty_like(row_M)
        for one in label_N.unique():
            own_M = label_N[row_M] == one
            partner_M[own_M] = _any_of(alike_M[label_N[alike_M] == one], int(own_M.sum()), generator)
        return Draw(row_M, partner_M, torch.rand(len(row_M), generator=generator, dtype=torch.float64))

    def _fit(self, rows: LastLayer, draw: "Draw", setting: Setting) -> tuple[Tensor, Tensor, bool]:
        """W [C, D] and b [C] of a draw, and whether the fit has settled; b stays zero where the layer has none."""
        alpha, s, c = setting
        inputs_MD, label_M = draw.mixed(rows.inputs_ND, alpha, s), rows.label_N[draw.row_M]
        free = rows.bias_C is not None
        made, settled = lasso(inputs_MD, label_M, len(rows.weight_CD), c, self.steps, free=free)
        return made[:, :-1], made[:, -1], settled


@dataclass(frozen=True)
class Draw:
    """Rows, the row that each may be mixed with, and a number from 0 to 1 that says whether it is."""

    row_M: Tensor
    partner_M: Tensor
    chance_M: Tensor

    def mixed(self, inputs_ND: Tensor, alpha: float, s: float) -> Tensor:
        """`s x' + (1 - s) x` in a share `alpha` of the rows, x in the others; [M, D]."""
        own_MD = inputs_ND[self.row_M]
        mixed_MD = s * inputs_ND[self.partner_M] + (1 - s) * own_MD
        return torch.where((self.chance_M < alpha).unsqueeze(1), mixed_MD, own_MD)


def _any_of(rows_M: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """So many of the rows, drawn with replacement."""
    return rows_M[torch.randint(len(rows_M), (count,), generator=generator)]


def _part(last: LastLayer, rows_M: Tensor) -> LastLayer:
    """The layer with these of its rows alone."""
    group_M = None if last.group_N is None else last.group_N[rows_M]
    return dataclasses.replace(last, inputs_ND=last.inputs_ND[rows_M], label_N=last.label_N[rows_M], group_N=group_M)
