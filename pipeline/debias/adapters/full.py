"""Full fine-tuning: everything trains."""

from dataclasses import dataclass
from typing import Any, ClassVar

from debias.adapters.base import Adapter, RunFacts


@dataclass(frozen=True)
class Full(Adapter):
    """No adapter: every parameter of the base trains."""

    name: ClassVar[str] = "full"

    def attach(self, model: Any, run: RunFacts) -> Any:
        return model

    @classmethod
    def owns(cls, parameter: str) -> bool:
        return True
