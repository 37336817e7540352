"""Several bias models as one: what each finds easy counts once. Shapes: N examples, C labels, K bias models."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import BaseBiasModel, BiasModel, Floats, labels_of
from debias.bias.calibration import log_softmax, out_of_fold
from debias.config.blocks import EXPECTS, canonical, make, table_of
from debias.data.examples import Example


@dataclass(frozen=True)
class Product(BiasModel):
    """Several bias models at once: `p(y)` is in proportion to the product of theirs over the label's share, K-1 times.

    `log p = sum_k log p_k - (K - 1) log share(y)`, normalised: exact where what they look at is independent given the
    label. Needs two or more blocks in `of`, none that asks the run's own base; what each said is kept beside. Costs
    what its parts cost. Fails where the parts look at the same thing, which then counts twice; `calibrated`: one
    temperature makes up for that on average.

    Source: products of experts, Hinton, Neural Computation 2002; of bias models, Clark et al., EMNLP 2019, arXiv
    1909.03683; with the labels' shares taken out, as in naive Bayes.
    """

    name: ClassVar[str] = "product"
    of: tuple[str | dict[str, Any], ...] = field(metadata={EXPECTS: "a list of bias models, each a block with a name"})
    calibrated: bool = True

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise ValueError(f"of: {len(self.of)} given, expected two or more bias models")
        blocks = tuple(canonical("of", table_of("bias_model"), block) for block in self.of)
        object.__setattr__(self, "of", blocks)  # with every default filled in: they are what a digest is made of
        if asking := [part.name for part in self.parts if isinstance(part, BaseBiasModel)]:
            raise ValueError(
                f"of: {asking[0]} asks the run's own base and is no part of a product; give what a run with it alone "
                f"keeps, {{name: column, file: RUN/bias/{asking[0]}.npz}}"
            )

    @property
    def parts(self) -> tuple[BiasModel, ...]:
        return tuple(make("bias_model.of", table_of("bias_model"), block) for block in self.of)

    @property
    def p_columns(self) -> tuple[str, ...]:
        return next((part.p_columns for part in self.parts if part.p_columns), ())

    def check(self, text_fields: Sequence[str]) -> None:
        for part in self.parts:
            part.check(text_fields)
        if len({part.p_columns for part in self.parts if part.p_columns}) > 1:
            raise ValueError("bias_model.of: two bias models with columns of their own; only one may have them")

    def digest(self, examples: Sequence[Example], labels: int, seed: int) -> str:
        told = repr((self, [part.digest(examples, labels, seed) for part in self.parts]))
        return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        return self.joined([part.log_p(examples, labels, text_fields, seed, others) for part in self.parts], examples)

    def joined(self, said: Sequence[Floats], examples: Sequence[Example]) -> Floats:
        label_N = labels_of(examples)
        share_C = np.bincount(label_N, minlength=said[0].shape[1]) / len(label_N)
        log_share_C = np.log(np.maximum(share_C, 1 / (len(label_N) + 1)))  # of a label that does not occur
        p_NC = np.exp(log_softmax(sum(said) - (len(said) - 1) * log_share_C))
        return out_of_fold(p_NC, label_N, calibrated=self.calibrated)
