"""Which attention a model is loaded with, and whether it keeps samples apart that are packed in one row."""

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from debias.errors import InputError
from debias.models.source import ModelSource, resolve_model

logger = logging.getLogger(__name__)

AUTO, FLASH = "auto", "flash_attention_2"
HALF = (torch.bfloat16, torch.float16)

# Families whose packed rows are tested to be those of their samples alone; others are tried before training.
PACKS_EXACTLY = frozenset({"llama", "qwen2", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text", "gpt2"})
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
LEAK_TOLERANCE, LEAK_TOLERANCE_HALF = 1e-3, 5e-2  # of the largest logit; a sample that sees another is far above


def choose_attention(
    requested: str,
    model: str | ModelSource,
    head: str,
    dtype: torch.dtype,
    *,
    bf16: bool = False,
    training: bool = True,
) -> str | None:
    """What to load the model with; None: sdpa where its architecture has it, else eager.

    `auto` is flash attention for training in half precision on a GPU that has it, else None: scoring sums over trees of
    tokens, whose masks flash attention cannot take. Raises InputError for flash attention that is asked for by name and
    not there; `bf16` tells that weights which are not half precision run under autocast.
    """
    if requested.startswith("flash_attention"):
        reason = _no_flash(torch.bfloat16 if bf16 else dtype, package=requested == FLASH)
        if reason:
            raise InputError(f"attn_implementation is {requested!r}, but {reason}; use auto or sdpa")
    if requested != AUTO:
        return requested
    if not training or head == "image_classification":
        return None
    reason = _no_flash(dtype) or _class_without_flash(model, head)
    logger.info("attn_implementation: auto takes %s", f"no flash attention: {reason}" if reason else FLASH)
    return None if reason else FLASH


def check_attention(requested: str, model: Any) -> None:
    """Say what `auto` became; InputError where transformers quietly took another attention than the one asked for."""
    found = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if requested == AUTO:
        logger.info("attn_implementation: %s", found or "the model has no choice")
    elif found is not None and found != requested:
        raise InputError(
            f"attn_implementation is {requested!r}, but {type(model).__name__} would run with {found!r}; use auto"
        )


def _no_flash(dtype: torch.dtype, package: bool = True) -> str | None:
    """Why flash attention cannot run here, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, flash attention needs 8.0"
    if dtype not in HALF:
        return f"the model is loaded in {str(dtype).removeprefix('torch.')}; flash attention needs bf16: true"
    if package:
        try:
            importlib.import_module("flash_attn")
        except Exception as error:  # a build for another torch or CUDA fails in many ways
            return f"flash_attn cannot be imported ({type(error).__name__}); pip install 'debias[flash]'"
    return None


def _class_without_flash(model: str | ModelSource, head: str) -> str | None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto.auto_factory import _get_model_class

    try:
        config = resolve_model(model).config
        auto = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
        kind = _get_model_class(config, auto._model_mapping)
    except (OSError, ValueError, KeyError):
        return "the model's class is not known before it is loaded"
    if getattr(config.get_text_config(), "attention_chunk_size", None) is not None:
        return f"{kind.__name__} attends in chunks"
    if not kind._supports_flash_attn or getattr(kind, "_compatible_flash_implementations", None):
        return f"{kind.__name__} does not support it"
    return None


# Packed rows.


# A model, token ids and positions (None: its own) -> logits of all tokens, by the arguments that it is trained with.
Ask = Callable[[Any, Tensor, Tensor | None], Tensor]


def packing_refusal(model: Any, longest_row: int, ask: Ask) -> str | None:
    """Why samples packed in one row of at most `longest_row` tokens would not be as they are alone, or None."""
    config = model.config.get_text_config()
    attention = getattr(model.config, "_attn_implementation", None)
    flash = str(attention).startswith("flash_attention")
    others = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    chunk = getattr(config, "attention_chunk_size", None)
    if attention != "sdpa" and not flash:
        return f"its attention is {attention or 'its own'}, not sdpa or flash attention"
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return f"{type(model).__name__} takes no position_ids, by which samples are told apart"
    if others:
        return f"layers of the kind {', '.join(sorted(others))} carry a state from sample to sample"
    if getattr(config, "attn_temperature_tuning", False) and longest_row >= config.floor_scale:
        return (
            f"attention is scaled by the place in a row from token {config.floor_scale} on; it may have {longest_row}"
        )
    if flash and chunk is not None and longest_row > chunk:
        return f"flash attention cannot attend in chunks of {chunk}, a row may have {longest_row} tokens"
    return None if config.model_type in PACKS_EXACTLY else _tried(model, ask)


def _tried(model: Any, ask: Ask) -> str | None:
    """Two samples in one row against the second one alone, at the positions that the model gives it."""
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        known = ", ".join(sorted(PACKS_EXACTLY))
        return f"it cannot be tried out at stage 3 of DeepSpeed, where only {known} are known to be exact"
    device = next(model.parameters()).device
    ids = torch.arange(7, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=device)
    training = model.training
    model.eval()
    with torch.no_grad():
        packed = ask(model, ids, positions)[0, 3:]
        alone = ask(model, ids[:, 3:], None)[0]
    model.train(training)
    tolerance = LEAK_TOLERANCE_HALF if alone.dtype in HALF else LEAK_TOLERANCE
    difference, size = float((packed - alone).abs().max()), float(alone.abs().max())
    return None if difference <= tolerance * size else "its samples see each other: logits differ from those alone"


def check_packing(model: Any, samples: int, max_length: int, ask: Ask) -> None:
    """InputError, with the reason, for a model that rows of `samples` packed samples would be wrong for."""
    if reason := packing_refusal(model, samples * max_length, ask):
        raise InputError(f"packing: {type(model).__name__} cannot train on packed rows: {reason}; set packing to false")
