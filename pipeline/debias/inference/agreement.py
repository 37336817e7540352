"""What is done for speed compared with what it stands for: padded batches, trees of tokens. C labels, N prompts."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from debias.inference.batches import Scores
from debias.models.rounding import HALF, tolerance

logger = logging.getLogger(__name__)
KNOWN_HALF = 2.0  # times the tolerance in half precision, of families of which trees are known to be exact
# Families whose trees are tested to be exact: what differs in half precision is rounding.
TREES_EXACTLY = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text", "gpt2", "gpt_neox", "opt", "phi"}
)
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention", "sliding_window_size")


def tree_tolerance(model: Any, largest: float) -> float:
    """`tolerance` of trees: a family that no test knows is held to less, where rounding could hide a wrong mask."""
    allowed = tolerance(model, largest)
    known = getattr(model.config.get_text_config(), "model_type", None) in TREES_EXACTLY
    return KNOWN_HALF * allowed if known and allowed >= HALF else allowed


class PaddingGuard:
    """Whether examples may be padded to a batch: whether the most padded one is scored as it is alone.

    Where it is not, batches are of examples of one length from then on, and one line says so.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reason = "a learned prompt, whose positions padding moves" if learned_prompt(model) else None
        self._proved = 0  # the most padding that has been tried
        self._said = False

    def forbids(self, lengths: Sequence[int], compute: Callable[[Sequence[int]], Scores]) -> bool:
        """Whether the items of `lengths` must not be padded; `compute` scores a batch of their indices."""
        if not lengths or min(lengths) == max(lengths):
            return False
        padding = max(lengths) - min(lengths)
        if self.reason is None and padding > self._proved:
            self._proved = padding
            self._try(lengths.index(min(lengths)), lengths.index(max(lengths)), compute)
        if self.reason is not None and not self._said:
            self._said = True
            kind = type(getattr(self.model, "get_base_model", lambda: self.model)()).__name__
            logger.info("batches are of examples of one length: %s does not skip padding (%s)", kind, self.reason)
        return self.reason is not None

    def _try(self, short: int, long: int, compute: Callable[[Sequence[int]], Scores]) -> None:
        alone_1C, both_2C = compute([short])[1], compute([long, short])[1]
        difference = float(np.abs(alone_1C[0] - both_2C[1]).max())
        if not difference <= tolerance(self.model, float(np.abs(alone_1C).max())):
            self.reason = f"scores differ by {difference:.2g} from those of one example at a time"


def attention_of(model: Any) -> str:
    """Which implementation of attention a model was loaded with."""
    return str(getattr(model.config, "_attn_implementation", "") or "")


def learned_prompt(model: Any) -> bool:
    """Whether an adapter puts tokens of its own before the text (prompt tuning and its kin)."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def no_trees(model: Any, longest: int) -> str | None:
    """Why a model cannot take trees of tokens, as far as it says itself; None if it may.

    `longest`: tokens of the longest prompt with an answer.
    """
    if attention_of(model) not in ("sdpa", "eager"):
        return f"attention is {attention_of(model) or 'its own'}, not sdpa or eager"
    base = getattr(model, "get_base_model", lambda: model)()
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return f"{type(base).__name__} takes no position_ids, which are the depths in a tree"
    if learned_prompt(model):
        return "a learned prompt"
    if getattr(getattr(model, "active_peft_config", None), "alora_invocation_tokens", None):
        return "an adapter that waits for its invocation, which a row of several prompts has in one of them"
    return _own_distances(model.config.get_text_config(), longest)


def _own_distances(config: Any, longest: int) -> str | None:
    """Why attention looks at places in the row, where a tree's mask and depths are not asked."""
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        return f"layers of the kind {', '.join(sorted(kinds))}"
    if any(getattr(config, name, None) is not None and getattr(config, name) < longest for name in WINDOWS):
        return f"a window shorter than {longest} tokens"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "local attention, which counts places in the row"
    alibi = getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False)
    if alibi or getattr(config, "position_embedding_type", None) == "alibi" or config.model_type == "bloom":
        return "ALiBi, which counts places in the row"
    return None
