"""What one optimizer step did: the figures every engine reports, all from sums that the combination needs anyway."""

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from debias.methods import Gram, Vector, pairs_of, totals

logger = logging.getLogger(__name__)


class NonFiniteGradients(RuntimeError):
    """More steps than allowed were skipped because their gradients were not finite."""


def check_skipped(skipped: int, allowed: int) -> None:
    """Log a skipped step; NonFiniteGradients if there were more than `allowed`."""
    logger.warning("gradients are not finite: step skipped (%d so far)", skipped)
    if skipped > allowed:
        raise NonFiniteGradients(
            f"{skipped} steps had non-finite gradients, more than max_nonfinite_steps={allowed};"
            " lower the learning rate, or train in bf16 or fp32 instead of fp16"
        )


def raise_empty(count: float, *, used: bool) -> None:
    """RuntimeError for a step that has no samples, or none of whose gradients is one that the rule acts on."""
    if count <= 0:
        raise RuntimeError(
            f"the samples (or answer tokens) of this step count {count:g} on all ranks together: there is nothing to"
            " divide by; leave such a step out"
        )
    if not used:
        raise RuntimeError(
            "no parameter that the rule acts on has a gradient: another adapter was made active, an optimizer steps"
            " inside the backward pass, or the model was wrapped after attach; attach again"
        )


def raise_silent(gradients: str, names: Sequence[str]) -> None:
    """A selected parameter with one gradient and not the other was used where the gradient source cannot see it."""
    if names:
        raise RuntimeError(
            f"{gradients}: {names[0]} got a main gradient and no bias gradient (its layer's weight was used without"
            " calling the layer); use gradients='shared_forward'"
        )


@dataclass
class GramSums:
    """Float64 sums for each parameter that a rule acts on, `[K, 5]` a group: |main|^2, main.bias, |bias|^2,
    |main - update|^2, |update|^2. On the parameters' device until the step is reported. `looks_at`: the rule's vectors.
    """

    looks_at: Sequence[Vector] = (Vector.MAIN, Vector.BIAS)
    names: list[str] = field(default_factory=list)
    parts_K5: list[Tensor] = field(default_factory=list)

    def add(self, names: Sequence[str], gram: Gram, coefficients: Sequence[Tensor], skip: int = 0) -> None:
        """Add K parameters by name: their Gram and the coefficients [K, O] of their update, one for each vector.

        The last two of the five sums are over the Gram's rows, without the first `skip` of them.
        """
        gram_KOG, coefficients = gram.rows_OG[:, skip:], [x_KO[:, skip:] for x_KO in coefficients]
        if all(x_KO.stride(-1) == 0 for x_KO in coefficients):  # one number for all rows: their sums are enough
            gram_KOG = gram_KOG.sum(dim=1, keepdim=True)
            coefficients = [x_KO[:, :1] for x_KO in coefficients]
        of = dict(zip(pairs_of(len(self.looks_at)), gram_KOG.unbind(dim=-1), strict=True))
        x_KO, *others = coefficients
        mm_KO = of[0, 0]
        # Update = x main + the rest: what of it lies along main, and its own length.
        cross_KO = _sum([y_KO * of[0, j] for j, y_KO in enumerate(others, 1)], mm_KO)
        rest_KO = _sum([_product(coefficients, i, j, of[i, j]) for i, j in of if i], mm_KO)
        lost_KO, rest_K = 1 - x_KO, rest_KO.sum(dim=1)
        removed_K = (lost_KO * mm_KO).sub_(cross_KO, alpha=2).mul_(lost_KO).sum(dim=1) + rest_K
        update_K = (x_KO * mm_KO).add_(cross_KO, alpha=2).mul_(x_KO).sum(dim=1) + rest_K
        whole = dict(zip(of, totals(gram), strict=True))
        sums_K = [whole_K1.squeeze(1) for whole_K1 in (whole[0, 0], *self._of_bias(whole))]
        self.names.extend(names)
        self.parts_K5.append(torch.stack([*sums_K, removed_K, update_K], dim=1))

    def _of_bias(self, of: Mapping[tuple[int, int], Tensor]) -> tuple[Tensor, Tensor]:
        """`(main.bias, |bias|^2)`; zeros where the rule does not look at the bias gradient."""
        if Vector.BIAS not in self.looks_at:
            return (torch.zeros_like(of[0, 0]),) * 2
        at = self.looks_at.index(Vector.BIAS)
        return of[0, at], of[at, at]


def _product(coefficients: Sequence[Tensor], i: int, j: int, inner_KO: Tensor) -> Tensor:
    """What vectors i and j add to the squared length of a sum: twice where they are two."""
    product_KO = coefficients[i] * (coefficients[j] * inner_KO)
    return product_KO if i == j else 2 * product_KO


def _sum(terms: Sequence[Tensor], like: Tensor) -> Tensor:
    first, *others = terms or [torch.zeros_like(like)]
    return functools.reduce(torch.add, others, first)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. Norms are Frobenius norms over everything the rule acts on, of means over the whole batch.

    `cosine`: between main and bias (0, as is `bias_norm`, for a rule that does not look at bias). `removed_share`:
    |main - update| / |main|. `grad_norm`: of the update of all trainable parameters, before clipping. `finite`: False
    when the step was skipped. `measured`: a `gradient_mask` chose by it, or is to choose, and nothing is trained; then
    `grad_norm` is of all elements. `..._by_layer`: the same over the parameters of one transformer layer, by its index
    as text (see `layer_of`).
    """

    finite: bool
    samples: float
    main_norm: float
    bias_norm: float
    cosine: float
    removed_share: float
    grad_norm: float
    cosine_by_layer: Mapping[str, float] = field(default_factory=dict)
    removed_share_by_layer: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False


def report(
    sums: GramSums, scale: float, samples: float, *, grad_norm: Tensor | None = None, others: float = 0.0
) -> StepReport:
    """The figures of a step whose sums were taken on gradients that still need the factor `scale`.

    `grad_norm` as measured on the update itself; without it, of the sums and of `others`, the squared norm of what
    trains beside them, in the same units.
    """
    # One transfer from the device for all figures.
    measured = [] if grad_norm is None else [grad_norm.double().reshape(1)]
    tensors = (*sums.parts_K5, *measured)
    flat = [tensor.flatten().to(tensors[0].device) for tensor in tensors]  # a model may lie on several devices
    numbers = torch.cat(flat).cpu().numpy() if flat else np.zeros(0)
    sums_K5 = numbers[: 5 * len(sums.names)].reshape(-1, 5)
    whole = sums_K5.sum(axis=0)
    # Rounding may leave less than nothing of an update that cancels; NaN and inf must stay what they are.
    norm = float(numbers[-1]) if measured else max(float(whole[4]) + others, 0.0) ** 0.5 * abs(scale)
    by_layer = {layer: sums_K5[list(rows)].sum(axis=0) for layer, rows in rows_of_layers(tuple(sums.names)).items()}
    return StepReport(
        finite=math.isfinite(norm),
        samples=samples,
        main_norm=abs(float(whole[0])) ** 0.5 * scale,
        bias_norm=abs(float(whole[2])) ** 0.5 * scale,
        cosine=_cosine(whole),
        removed_share=_removed_share(whole),
        grad_norm=norm,
        cosine_by_layer={layer: _cosine(sums_5) for layer, sums_5 in by_layer.items()},
        removed_share_by_layer={layer: _removed_share(sums_5) for layer, sums_5 in by_layer.items()},
    )


def _cosine(sums_5: NDArray[np.float64]) -> float:
    mm, mb, bb = (float(value) for value in sums_5[:3])
    main, bias = abs(mm) ** 0.5, abs(bb) ** 0.5
    return mb / (main * bias) if main and bias else 0.0


def _removed_share(sums_5: NDArray[np.float64]) -> float:
    mm, removed = float(sums_5[0]), float(sums_5[3])
    return max(removed, 0.0) ** 0.5 / abs(mm) ** 0.5 if mm else 0.0


# What Hugging Face's models call their stack of layers; the outermost counts.
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def layer_of(name: str) -> str:
    """The index of the transformer layer that a parameter belongs to, by its name; `other` for all the rest."""
    found = LAYER.search(name)
    return found.group(1) if found else "other"


@lru_cache(maxsize=8)
def rows_of_layers(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Layer to the positions of its parameters in `names`, in the order of the layers, `other` last."""
    rows: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        rows.setdefault(layer_of(name), []).append(position)
    ordered = sorted(rows, key=lambda layer: (layer == "other", int(layer) if layer.isdigit() else 0))
    return {layer: tuple(rows[layer]) for layer in ordered}
