"""Full fine-tuning: everything trains."""

from dataclasses import dataclass
from typing import Any, ClassVar

from debias.adapters.base import Adapter, RunFacts


@dataclass(frozen=True)
class Full(Adapter):
    """No adapter: every parameter of the base trains.

    Needs a base in 16 or 32 bits. Costs gradients and optimizer state of every weight. Fails where memory is short, and
    it has the most room to forget what the base knew.

    Source: Devlin et al., BERT, NAACL 2019, arXiv 1810.04805 (fine-tuning of all parameters).
    """

    name: ClassVar[str] = "full"

    def attach(self, model: Any, run: RunFacts) -> Any:
        return model

    @classmethod
    def owns(cls, parameter: str) -> bool:
        return True
