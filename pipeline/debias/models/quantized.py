"""A 4-bit base: how it is stored, and what must be put right before it trains."""

from typing import Any

import torch
from torch import nn

from debias.errors import InputError

# Modules that stay 16- or 32-bit. Given by name, because the default list lets a head with a bias become 4-bit. The
# last two are layers that many encoders' checkpoints lack: drawn at random here, they train whole.
NOT_QUANTIZED = ["classifier", "score", "lm_head", "pre_classifier", "pooler.dense"]


def prepare_quantized(model: Any) -> Any:
    """A 4-bit base, frozen, and all that is not in 4 bit left in the dtype it was loaded in.

    PEFT's own preparation casts every 16-bit weight to float32: fused experts (of Qwen3-30B-A3B 58 GB more), the
    embedding and the head (2.5 GB more for Qwen3-8B), and through the norms the residual stream. Norms compute in
    float32 inside, whatever their weight is stored in.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
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


def close_cpu_trap(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights in place in eval mode on CPUs with AVX512-bf16 (wrong under ZeRO-3)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
