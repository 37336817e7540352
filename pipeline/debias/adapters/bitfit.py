"""BitFit: all biases train, and nothing else (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from collections.abc import Sequence

from torch import nn

from debias.adapters.families import HEADS
from debias.errors import InputError


def train_biases(model: nn.Module, fresh: Sequence[str] = ()) -> nn.Module:
    """Freeze all but bias vectors, the head and the modules in `fresh` (BitFit, Ben Zaken et al., ACL 2022).

    InputError for a model without any bias.
    """
    found = 0
    for name, parameter in model.named_parameters():
        is_bias = name.endswith("bias")
        is_head = any(part in HEADS for part in name.split(".")) or name.rpartition(".")[0] in fresh
        found += is_bias and not is_head
        parameter.requires_grad = is_bias or is_head
    if not found:
        raise InputError("adapter.type: 'bitfit' trains bias vectors, and this model has none; use lora or full")
    return model
