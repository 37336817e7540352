"""Activation checkpointing."""

from typing import Any

from debias.errors import InputError


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them (non-reentrant); InputError if it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise InputError(f"gradient_checkpointing: a {type(model).__name__} has none; remove it")
    # transformers 5.22 renamed it; both names are in use.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
