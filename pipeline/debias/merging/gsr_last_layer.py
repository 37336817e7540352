"""Group-robust sample reweighting (Qiao et al., ICLR 2025): weights of rows by their influence on the worst group.

Shapes: N rows, M of them whose weights are learned, T of them that say how groups fare, C labels, E what the last layer
is given and, where it has an intercept, a one; K cells of a label and a group.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.errors import InputError
from debias.merging.edits import Edit, LastLayer

logger = logging.getLogger(__name__)
SETTLED = 1e-9  # how long the slope of a fit may be, against what the slope of its rows is at zero
DECAY_EVERY, DECAY = 30, 0.1  # the authors' schedule of the outer learning rate


@dataclass(frozen=True)
class GSRLastLayer(Edit):
    """A new last layer, fitted to rows whose weights are learned by what they do to groups of other rows: GSR.

    Half of the rows of every cell (a label and a group that occur together) are fitted, `theta(w) = argmin sum_i w_i
    CE_i / sum w + weight_decay |theta|^2`; the other half says how each cell fares. Each of `steps` outer steps fits
    anew, gives cells the shares `q_k <- q_k exp(1 - accuracy_k) / sum q`, and moves the weights against what one of
    them does to `sum_k q_k mean CE_k` through the fit (the influence of row i, `g^T H^-1 grad_i`, with H the fit's
    Hessian): `w <- max(w + learning_rate influence / M, 0)`, of sum 1 again, the move cut to the length `max_norm` (0:
    not cut), the rate a tenth after every 30 steps. What is kept is the fit whose worst cell was answered best on the
    second half, of equals the first. Of the old layer nothing stays, and of the adapter all else does. Weights that
    fall to 0 leave a row out, as those of rows with wrong labels may.

    Needs an adapter whose head was trained whole (a classifier), and of its run the settings, which name
    `data.validation`: rows with groups (`data.group_field`, or those of a planted cue), two of the rarest cell at
    least. Groups are read of the second half alone. Costs one pass over those rows, and seconds to minutes: nothing of
    the size of H is made. Fails where the rarest cell is tiny, by which shares and choice are then ruled, and where
    what is honest is not linear in what the layer is given. How often the worst cell is answered rightly, before and
    after, is said, on all those rows; what is claimed of the result is judged on a suite of other rows.
    `dfr_last_layer` drops rows until cells are alike, where this weighs them.

    Of the authors' code are the shares, the schedule, the choice and the settings (those of its example). It takes the
    rows to be fitted from training data held out, and two halves of the validation data for influence and choice; here
    there is one set of rows held out, and the half that is not fitted does both.

    Source: Qiao et al., Group-robust Sample Reweighting for Subpopulation Shifts via Influence Functions, ICLR 2025,
    arXiv 2503.07315, and its authors' code.
    """

    name: ClassVar[str] = "gsr_last_layer"
    retrains: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = True
    steps: int = 100
    learning_rate: float = 1.0
    weight_decay: float = 0.1
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more")
        for name in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.max_norm < 0:
            raise ValueError(f"max_norm is {self.max_norm}, expected 0 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected a whole number from 0 to 2^63 - 1")

    def retrained(self, last: LastLayer) -> LastLayer:
        """The fit that did best; InputError where a cell has one row, or a label none."""
        fitted, judged = self._halves(last)
        inputs_NE = _with_ones(last)
        rows = Rows(inputs_NE[fitted], last.label_N[fitted], len(last.weight_CD), self.weight_decay)
        others, cell_T = (inputs_NE[judged], last.label_N[judged]), last.cell_N[judged]
        weight_M = torch.full((len(fitted),), 1 / len(fitted), dtype=torch.float64)
        share_K = torch.full((len(last.cell_sizes_K),), 1 / len(last.cell_sizes_K), dtype=torch.float64)
        best, rate = (-1.0, 0, inputs_NE.new_zeros(rows.labels, inputs_NE.shape[1]), weight_M), self.learning_rate
        theta_CE = best[2]
        for step in range(1, self.steps + 1):
            theta_CE = rows.fit(weight_M, theta_CE)
            accuracy_K = _accuracy(theta_CE, *others, cell_T)
            if float(accuracy_K.min()) > best[0]:
                best = (float(accuracy_K.min()), step, theta_CE, weight_M)
            share_K = share_K * torch.exp(1 - accuracy_K)
            share_K = share_K / share_K.sum()
            move_M = rows.influence(weight_M, theta_CE, slope(theta_CE, *others, _of_rows(share_K, cell_T))) / len(
                fitted
            )
            rate *= DECAY if step > DECAY_EVERY and (step - 1) % DECAY_EVERY == 0 else 1.0
            weight_M = self._moved(weight_M, rate, move_M)
        worst, step, theta_CE, weight_M = best
        told = {"step": step, "worst_of_the_half": worst, "left_out": int((weight_M == 0).sum()), "fitted": len(fitted)}
        logger.info(
            "%s: step %d of %d answers the worst cell of the half that was not fitted best (%.1f %%); %d of %d rows"
            " weigh nothing",
            *(self.name, step, self.steps, 100 * worst, told["left_out"], len(fitted)),
        )
        free = last.bias_C is not None
        weight_CD, bias_C = (theta_CE[:, :-1], theta_CE[:, -1]) if free else (theta_CE, None)
        return dataclasses.replace(last, weight_CD=weight_CD, bias_C=bias_C, told=told)

    def _moved(self, weight_M: Tensor, rate: float, move_M: Tensor) -> Tensor:
        length = float(move_M.norm())
        cut = self.max_norm / length if 0 < self.max_norm < length else 1.0
        moved_M = (weight_M + rate * cut * move_M).clamp(min=0.0)
        return moved_M / moved_M.sum() if float(moved_M.sum()) > 0 else weight_M

    def _halves(self, last: LastLayer) -> tuple[Tensor, Tensor]:
        last.check_labels(self.name)
        if int(last.cell_sizes_K.min()) < 2:
            raise InputError(
                f"edit: {self.name}: the rarest pair of label and group has one row held out, and each half needs one;"
                " give more of them"
            )
        return last.halves(torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class Rows:
    """Rows a layer is fitted to: `sum_i w_i CE_i + weight_decay |theta|^2`, convex, with w of sum 1."""

    inputs_ME: Tensor
    label_M: Tensor
    labels: int
    weight_decay: float

    def fit(self, weight_M: Tensor, start_CE: Tensor) -> Tensor:
        """theta [C, E] where that is smallest, by Newton's steps from `start_CE`."""
        now = start_CE
        enough = SETTLED * (1 + float(self._slope(torch.zeros_like(now), weight_M).norm()))
        while float((by := self._slope(now, weight_M)).norm()) > enough:
            step_CE = conjugate_gradients(self._curvature(now, weight_M), by)
            value, downhill, share = self._value(now, weight_M), float((by * step_CE).sum()), 1.0
            while self._value(now - share * step_CE, weight_M) > value - 1e-4 * share * downhill:
                share /= 2
                if share < 1e-9:  # rounding is all that is left to gain
                    return now
            now = now - share * step_CE
        return now

    def influence(self, weight_M: Tensor, theta_CE: Tensor, by_theta_CE: Tensor) -> Tensor:
        """`-d/dw_i` [M] of what has the slope `by_theta_CE` at the fit, w divided by its sum of 1."""
        through_CE = conjugate_gradients(self._curvature(theta_CE, weight_M), by_theta_CE)
        left_MC = _p(theta_CE, self.inputs_ME)
        left_MC[torch.arange(len(self.label_M)), self.label_M] -= 1
        of_row_M = (left_MC * (self.inputs_ME @ through_CE.T)).sum(dim=1)
        return of_row_M + 2 * self.weight_decay * (theta_CE * through_CE).sum()  # the mean row, at the fit, is this

    def _value(self, theta_CE: Tensor, weight_M: Tensor) -> float:
        log_p_MC = torch.log_softmax(self.inputs_ME @ theta_CE.T, dim=1)
        own_M = log_p_MC.gather(1, self.label_M.unsqueeze(1)).squeeze(1)
        return float(self.weight_decay * theta_CE.square().sum() - weight_M @ own_M)

    def _slope(self, theta_CE: Tensor, weight_M: Tensor) -> Tensor:
        return slope(theta_CE, self.inputs_ME, self.label_M, weight_M) + 2 * self.weight_decay * theta_CE

    def _curvature(self, theta_CE: Tensor, weight_M: Tensor) -> Callable[[Tensor], Tensor]:
        p_MC = _p(theta_CE, self.inputs_ME)

        def times(by_CE: Tensor) -> Tensor:
            moved_MC = p_MC * (self.inputs_ME @ by_CE.T)
            moved_MC = weight_M.unsqueeze(1) * (moved_MC - p_MC * moved_MC.sum(dim=1, keepdim=True))
            return moved_MC.T @ self.inputs_ME + 2 * self.weight_decay * by_CE

        return times


def slope(theta_CE: Tensor, inputs_ME: Tensor, label_M: Tensor, weight_M: Tensor) -> Tensor:
    """Of `sum_i w_i CE_i` by theta, [C, E]."""
    left_MC = _p(theta_CE, inputs_ME)
    left_MC[torch.arange(len(label_M)), label_M] -= 1
    return (weight_M.unsqueeze(1) * left_MC).T @ inputs_ME


def conjugate_gradients(times: Callable[[Tensor], Tensor], wanted_CE: Tensor) -> Tensor:
    """x with `times(x) = wanted_CE`, of a symmetric positive definite map (Hestenes & Stiefel 1952)."""
    x_CE, left_CE = torch.zeros_like(wanted_CE), wanted_CE
    along_CE, squared = left_CE, float(left_CE.square().sum())
    enough = 1e-20 * squared
    for _ in range(2 * wanted_CE.numel()):
        if squared <= enough:
            break
        curved_CE = times(along_CE)
        share = squared / float((along_CE * curved_CE).sum())
        x_CE, left_CE = x_CE + share * along_CE, left_CE - share * curved_CE
        before, squared = squared, float(left_CE.square().sum())
        along_CE = left_CE + squared / before * along_CE
    return x_CE


def _with_ones(last: LastLayer) -> Tensor:
    if last.bias_C is None:
        return last.inputs_ND
    return torch.cat([last.inputs_ND, last.inputs_ND.new_ones(len(last.inputs_ND), 1)], dim=1)


def _p(theta_CE: Tensor, inputs_ME: Tensor) -> Tensor:
    return torch.softmax(inputs_ME @ theta_CE.T, dim=1)


def _accuracy(theta_CE: Tensor, inputs_TE: Tensor, label_T: Tensor, cell_T: Tensor) -> Tensor:
    """Of every cell, [K]."""
    right_T = ((inputs_TE @ theta_CE.T).argmax(dim=1) == label_T).double()
    return torch.bincount(cell_T, right_T) / torch.bincount(cell_T)


def _of_rows(share_K: Tensor, cell_T: Tensor) -> Tensor:
    """What a row weighs, [T], where the mean over a cell has its share."""
    return (share_K / torch.bincount(cell_T))[cell_T]
