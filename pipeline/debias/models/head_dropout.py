"""Very large dropout (Zhang and Bottou, arXiv 2403.00946): of what the head reads, nine tenths are dropped."""

import functools
from typing import Any

from torch import Tensor, nn

from debias.errors import InputError


def drop_before_head(model: Any, p: float, *, causal: bool) -> None:
    """While `model` trains, a share `p` of the last hidden states is zero where its head reads them, the rest larger.

    The mask is drawn in the head's own call: once in a forward pass, so that gradients of one pass share it, and again
    the same where a chunk of the head is computed again. Nothing is dropped where the model judges. Call it before an
    adapter is attached, whose trained copy of the head then drops as well, and `drop_before_adapters` after. InputError
    where no head is found.
    """
    head = model.get_output_embeddings() if causal else _last_layer(model)
    if not isinstance(head, nn.Module):
        raise InputError(
            f"head_dropout: a {type(model).__name__} has no linear head to drop what it reads; set it to 0"
        )
    head.register_forward_pre_hook(functools.partial(_dropped, p))


def drop_before_adapters(adapted: nn.Module) -> None:
    """Where an adapter stands around the head, its own branch reads what the head reads: one mask for both."""
    for outer in reversed(list(adapted.modules())):  # the innermost first, should one stand around another
        inner = getattr(outer, "base_layer", None)
        hooks = inner._forward_pre_hooks if isinstance(inner, nn.Module) else {}
        for key in [key for key, hook in hooks.items() if getattr(hook, "func", None) is _dropped]:
            outer.register_forward_pre_hook(hooks.pop(key))


def _last_layer(model: Any) -> nn.Module | None:
    """The linear layer that gives one logit for each label, behind whatever else a head does."""
    labels = model.config.num_labels
    found = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == labels]
    return found[-1] if found else None


def _dropped(p: float, head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, *others = given
    return (nn.functional.dropout(hidden, p, training=head.training), *others)
