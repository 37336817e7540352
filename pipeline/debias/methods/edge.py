"""EDGE: Enhanced Debiased Gradient Extraction (Li et al., CCL 2025, 2025.ccl-1.68)."""

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, Vector, divide, each_row, logger, totals


@dataclass(frozen=True)
class Edge(Rule):
    """Remove from `main` the part of `bias` that is exclusive to it: `main - alpha * (bias - shared part of bias)`.

    The shared direction is `c = main/|main| + bias/|bias|` with the tensor's norms. `projection` says how bias is
    projected on it; these are different methods with different results:

    - `published` (the authors' code): `s_r = <bias_r, c_r>`, exclusive `bias_r - s_r c_r`, c not renormalised. Not
      defined for one-row tensors (the sign flips and the update adds bias): they take the `tensor` form, with a notice.
    - `row` (the paper's words, row by row): the same with the unit direction `c_r / |c_r|`.
    - `tensor` (the paper's words, whole tensor): the same with `c / |c|`.

    Needs a bias weight that is large where the shortcut decides (`bias_weight`). Costs one backward pass in all with
    `gradients: single_pass`, two otherwise. Fails where the bias weight does not know the shortcut: with the model's
    own confidence, a model that has learned nothing else keeps the shortcut. On tensors of many rows the published form
    is `subtract` to three digits.

    Source: Li et al., EDGE: Enhanced Debiased Gradient Extraction, CCL 2025, 2025.ccl-1.68, and its authors' code.
    """

    name: ClassVar[str] = "edge"
    alpha: float = 1.0
    projection: Literal["published", "row", "tensor"] = "published"

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        form = self._form(gram.count)
        # Of the whole tensor there is one share and one length, whatever the rows.
        mm_O, mb_O, bb_O = (gram.whole_1G if form == "tensor" else gram.rows_OG).unbind(dim=-1)
        mm, _, bb = totals(gram)
        main_norm, bias_norm = mm.sqrt(), bb.sqrt()
        # A zero gradient has no direction to share: `divide` drops its term of c.
        share_O = divide(mb_O, main_norm).add_(divide(bb_O, bias_norm))
        if form != "published":  # c to length 1
            parts_O = divide(mm_O, mm) + divide(bb_O, bb)
            length_O = parts_O + 2 * divide(mb_O, main_norm * bias_norm)
            share_O = divide(share_O, length_O.masked_fill(length_O <= CANCELLED * parts_O, 0.0))
        x_O = divide(share_O, main_norm).mul_(self.alpha).add_(1)
        y_O = divide(share_O, bias_norm).sub_(1).mul_(self.alpha)
        return each_row(gram, x_O), each_row(gram, y_O)

    def _form(self, count: int) -> str:
        if self.projection == "published" and count == 1:
            _notice_one_row()
            return "tensor"
        return self.projection


@functools.cache
def _notice_one_row() -> None:
    logger.warning(
        "edge: a one-row tensor uses the 'tensor' projection; 'published' is not defined there (it would add bias)"
    )


@dataclass(frozen=True)
class Subtract(Rule):
    """`main - alpha * bias`: what published EDGE is on tensors with many rows, to three digits (a reweighted loss).

    Needs a bias weight (`bias_weight`). Costs one backward pass in all with `gradients: single_pass`, two otherwise.
    Fails where `alpha` times the bias weight passes 1: the loss of such a sample is then climbed, not descended.

    Source: no paper of its own; the limit of the published form of Li et al., CCL 2025, 2025.ccl-1.68.
    """

    name: ClassVar[str] = "subtract"
    alpha: float = 1.0

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        return each_row(gram, 1.0), each_row(gram, -self.alpha)


@dataclass(frozen=True)
class MainOnly(Rule):
    """The ordinary gradient (empirical risk minimisation): the baseline, through the same machinery.

    Needs nothing beside the labels. Costs nothing more: no bias gradient is computed. Fails where a shortcut explains
    the labels of the training data, and not those that the model will meet.

    Source: Vapnik, Principles of risk minimization for learning theory, NIPS 1991.
    """

    name: ClassVar[str] = "erm"
    also_called: ClassVar[tuple[str, ...]] = ("main_only",)
    looks_at: ClassVar[tuple[Vector, ...]] = (Vector.MAIN,)
    is_plain: ClassVar[bool] = True

    def coefficients(self, gram: Gram) -> tuple[Tensor, ...]:
        return (each_row(gram, 1.0),)


@dataclass(frozen=True)
class Orthogonal(Rule):
    """Remove from `main` its component along `bias`, tensor by tensor: `main - alpha * <main, bias>/|bias|^2 * bias`.

    With alpha = 1 the update is orthogonal to bias. Needs a bias weight (`bias_weight`). Costs one backward pass in all
    with `gradients: single_pass`, two otherwise. Fails where the two gradients are nearly parallel: little is left of
    the step, and honest signal goes with the shortcut.

    Source: no paper of its own; the projection of PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782) at every step,
    conflict or not.
    """

    name: ClassVar[str] = "orthogonal"
    alpha: float = 1.0

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        _, mb, bb = totals(gram)
        return each_row(gram, 1.0), each_row(gram, -self.alpha * divide(mb, bb))
