"""A base model and its tokenizer, from a hub id, a local folder or a package; quantized to 4 bit where asked."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from debias.errors import InputError
from debias.models.packages import model_path

logger = logging.getLogger(__name__)
Head = Literal["classification", "causal_lm"]

# Modules that stay 16- or 32-bit. Given by name, because the default list lets a head with a bias become 4-bit.
NOT_QUANTIZED = ["classifier", "score", "lm_head"]


def load_tokenizer(name: str, head: Head) -> Any:
    """The model's tokenizer; causal models are padded on the left, with the end token where there is no pad token."""
    from transformers import AutoTokenizer

    with _readable_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(model_path(name))
    if tokenizer.pad_token_id is None:
        # Padding is told apart by the attention mask, never by the id.
        tokenizer.pad_token = tokenizer.eos_token
    if head == "causal_lm":
        tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    name: str, head: Head, labels: Sequence[str], *, dtype: torch.dtype = torch.float32, load_in_4bit: bool = False
) -> Any:
    """The base model with a head for `labels`; a classification head is freshly initialised (seed before this).

    Raises InputError when the model cannot be found, or bitsandbytes is asked for and missing.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    options: dict[str, Any] = {"dtype": dtype}
    if load_in_4bit:
        options["quantization_config"] = four_bit(dtype)
    kind: Any = AutoModelForCausalLM
    if head == "classification":
        kind = AutoModelForSequenceClassification
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: index for index, label in enumerate(labels)}
    with _readable_errors(name):
        model = kind.from_pretrained(model_path(name), **options)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(name, head).pad_token_id
    if load_in_4bit:
        _close_cpu_trap(model)
    return model


def four_bit(dtype: torch.dtype) -> Any:
    """nf4 with double quantization (Dettmers et al., QLoRA, NeurIPS 2023), stored in the model's own dtype."""
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError("load_in_4bit: bitsandbytes is not installed; pip install 'debias[quant]'") from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )


def _close_cpu_trap(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights in place in eval mode on CPUs with AVX512-bf16 (wrong under ZeRO-3)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"model: {name!r} could not be loaded: {first}") from error
