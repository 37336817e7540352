"""Adapters that act on some tokens alone: texts without them are read as by the base."""

from typing import Any


def acts_on_some(model: Any) -> bool:
    """Whether texts without certain tokens are left as they are: trainable tokens, LoRA behind an invocation."""
    config = getattr(model, "active_peft_config", None)
    kind = getattr(config, "peft_type", None)
    return getattr(kind, "value", kind) == "TRAINABLE_TOKENS" or bool(getattr(config, "alora_invocation_tokens", None))


def tokens_of(model: Any) -> list[int]:
    """The tokens that an adapter trains one by one, or that wake it; none where it acts on all."""
    config = getattr(model, "active_peft_config", None)
    found: list[int] = []
    for name in ("token_indices", "trainable_token_indices", "alora_invocation_tokens"):
        given = getattr(config, name, None) or []
        found += [token for tokens in given.values() for token in tokens] if isinstance(given, dict) else list(given)
    return sorted(set(found)) if getattr(config, "alora_invocation_tokens", None) is None else found
