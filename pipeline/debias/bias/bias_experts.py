"""Bias Experts: a yes or no for each label, learned by what an auxiliary model is sure of (Jeon et al., EMNLP 2023)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from debias.bias.first_learned import EarlyModels


@dataclass(frozen=True)
class BiasExperts(EarlyModels):
    """The base with a small adapter, trained one label against the rest, what an auxiliary model finds easy first.

    An auxiliary model of the same base is trained plainly for `auxiliary_steps` and asked about what it was trained on;
    its probability of the right label, to the power `q`, weighs what the experts are trained on for `steps`: each label
    against the others (loss `one_vs_rest`). What they score of a label, by softmax, is the bias model's answer, out of
    fold as for `first_learned`. With labels of their own classes do not interfere: a model of all at once is unsure of
    a rare label beside a frequent one. The paper's auxiliary model is a BERT of two layers, its temperature 1.45 (here
    one is fitted: `calibrated`), and its loss for the run `{name: logit_correction, cross_entropy: 0.3}`.

    Needs a classification head, and training data whose shortcut is easier than its task. Costs twice as many short
    runs as `first_learned`, and one more forward pass over the training data. Fails where `first_learned` does.

    Source: Jeon et al., Improving Bias Mitigation through Bias Experts in Natural Language Understanding, EMNLP 2023,
    arXiv 2312.03577, and its authors' code, whose experts share one encoder, too; cross-fitting and early stop are
    ours.
    """

    name: ClassVar[str] = "bias_experts"
    auxiliary_steps: int = 100
    q: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary_steps < 1:
            raise ValueError(f"auxiliary_steps is {self.auxiliary_steps}, expected 1 or more")
        if self.q < 0:
            raise ValueError(f"q is {self.q}, expected 0 (all examples count the same) or more")

    def own_settings(self) -> dict[str, Any]:
        """A run before each of its own, and the experts' loss."""
        auxiliary = {"keep": "log_p", "settings": {"max_steps": self.auxiliary_steps}}
        return {"first_stage": auxiliary, "loss": {"name": "one_vs_rest", "q": self.q}}
