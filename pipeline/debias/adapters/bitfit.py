"""BitFit: all biases train, and nothing else (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from debias.adapters.base import Adapter, RunFacts, fresh_of, is_head
from debias.errors import InputError


@dataclass(frozen=True)
class BitFit(Adapter):
    """All bias vectors of the base train, and its head.

    Needs a base that has biases: Llama and Qwen3 have few or none. Costs about a thousandth of the parameters in BERT;
    the base itself is changed, so it may not be in 4 bits. Fails where a task asks for more than a shift of outputs.

    Source: Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models, ACL 2022, arXiv 2106.10199.
    """

    name: ClassVar[str] = "bitfit"

    def attach(self, model: Any, run: RunFacts) -> Any:
        return train_biases(model, run.fresh)

    @classmethod
    def owns(cls, parameter: str) -> bool:
        return parameter.endswith("bias") or is_head(parameter)


def train_biases(model: nn.Module, fresh: Sequence[str] | None = None) -> nn.Module:
    """Freeze all but bias vectors, the head and the modules in `fresh` (BitFit, Ben Zaken et al., ACL 2022).

    `fresh`: by default those that `load_model` drew at random (`fresh_modules`). InputError for a model without
    any bias.
    """
    found, fresh = 0, fresh_of(model, fresh)
    for name, parameter in model.named_parameters():
        is_bias = name.endswith("bias")
        of_head = is_head(name) or name.rpartition(".")[0] in fresh
        found += is_bias and not of_head
        parameter.requires_grad = is_bias or of_head
    if not found:
        raise InputError("adapter.type: 'bitfit' trains bias vectors, and this model has none; use lora or full")
    return model
