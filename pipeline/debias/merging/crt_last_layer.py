"""Classifier re-training (Kang et al., ICLR 2020, arXiv 1910.09217): a last layer for which labels weigh the same.

Shapes: N rows, C labels, D what the last layer is given, E = D + 1 with a column of ones.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.errors import InputError
from debias.merging.edits import Edit, LastLayer

logger = logging.getLogger(__name__)
SETTLED = 1e-6  # how far from zero the slope of a fit may be, where the mean cross-entropy is one of its terms


@dataclass(frozen=True)
class CRTLastLayer(Edit):
    """A new last layer, fitted to rows of which every label weighs the same: cRT.

    What becomes smallest is `1/C sum_c mean_{i of c} CE_i + weight_decay / 2 (|W|^2 + |b|^2)`: what sampling labels
    evenly gives in the mean. Of the old layer nothing stays, and of the adapter all else does. `rows`: those that the
    run was trained on, as in the paper, or its `validation` rows, which the adapter has not learned by heart. `steps`
    bounds the fit, which ends when it has settled.

    Needs an adapter whose head was trained whole (a classifier), and of its run the settings, which name the rows.
    Labels alone are read, and no group. Costs one pass over the rows, and seconds. Fails where the shortcut is not that
    a label is frequent: with labels of one size it is the layer that was there, fitted once more. `dfr_last_layer`
    balances labels and groups.

    The authors draw a new layer and train it for ten epochs with momentum, labels drawn evenly, at a rate for pictures'
    features; here the same thing is made smallest, which has one minimum wherever a fit begins. `weight_decay` is
    theirs.

    Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020, arXiv
    1910.09217, section 4.1, and its authors' code.
    """

    name: ClassVar[str] = "crt_last_layer"
    retrains: ClassVar[bool] = True
    balances: ClassVar[bool] = True
    weight_decay: float = 5e-4
    rows: Literal["training", "validation"] = "training"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.weight_decay <= 0:
            raise ValueError(
                f"weight_decay is {self.weight_decay}, expected more than 0: without it nothing is smallest"
            )
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more")

    @property
    def fits_training_rows(self) -> bool:
        """Whether its rows are those that the run was trained on."""
        return self.rows == "training"

    def retrained(self, last: LastLayer) -> LastLayer:
        """The layer that is fitted; InputError where a label has no row."""
        missing = set(range(len(last.weight_CD))) - set(last.label_N.tolist())
        if missing:
            raise InputError(f"edit: {self.name}: no row has label number {min(missing)}; give more of them")
        weight_CD, bias_C, settled = self._fit(last)
        if not settled:
            logger.warning("WARNING: %s: the fit has not settled after %d steps; take more", self.name, self.steps)
        return dataclasses.replace(last, weight_CD=weight_CD, bias_C=bias_C if last.bias_C is not None else None)

    def _fit(self, last: LastLayer) -> tuple[Tensor, Tensor, bool]:
        """W [C, D], b [C] (zero where the layer has none), and whether it has settled; L-BFGS from zero."""
        ones_N1 = torch.full((len(last.label_N), 1), float(last.bias_C is not None), dtype=torch.float64)
        inputs_NE = torch.cat([last.inputs_ND, ones_N1], dim=1)
        # Columns of one size, or a fit takes thousands of steps; what is made smallest is told of the layer itself.
        size_E = inputs_NE.square().mean(dim=0).sqrt()
        size_E = torch.where(size_E > 0, size_E, 1.0)
        inputs_NE = inputs_NE / size_E
        weight_N = 1.0 / (torch.bincount(last.label_N)[last.label_N] * len(last.weight_CD))
        made_CE = torch.zeros(len(last.weight_CD), inputs_NE.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [made_CE],
            max_iter=self.steps,
            tolerance_grad=SETTLED / 10,
            tolerance_change=0.0,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            ce_N = torch.nn.functional.cross_entropy(inputs_NE @ made_CE.T, last.label_N, reduction="none")
            total = (weight_N * ce_N).sum() + self.weight_decay / 2 * (made_CE / size_E).square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            optimizer.step(loss)
            loss()
        assert made_CE.grad is not None
        settled = float(made_CE.grad.abs().max()) < SETTLED
        layer_CE = made_CE.detach() / size_E
        return layer_CE[:, :-1], layer_CE[:, -1], settled
