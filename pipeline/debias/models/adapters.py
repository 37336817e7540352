"""What trains: LoRA matrices, biases (BitFit), or everything; and the table of what that came to."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from debias.errors import InputError

logger = logging.getLogger(__name__)
HEADS = ("classifier", "score", "classification_head")


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: Literal["auto", "all-linear"] | Sequence[str],
    classification: bool,
) -> Any:
    """`model` as a PeftModel with LoRA on `targets`; a classification head trains whole and is saved with the adapter.

    Raises InputError that lists the module names there are when a target matches none.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    chosen = "all-linear" if isinstance(targets, str) else list(targets)
    if not isinstance(chosen, str):
        _check_targets(model, chosen)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        task_type=TaskType.SEQ_CLS if classification else TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, config)


def linear_names(model: nn.Module) -> list[str]:
    """The distinct last names of the linear layers that could be targets (`query`, `q_proj`, ...), head excluded."""
    names = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] not in {*HEADS, "lm_head"}
    }
    return sorted(names)


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(path == target or path.endswith("." + target) for path in paths):
            raise InputError(
                f"adapter.targets: {target!r} matches no linear layer; there are {', '.join(linear_names(model))}"
            )


def train_biases(model: nn.Module) -> nn.Module:
    """Freeze all but bias vectors and the head (BitFit, Ben Zaken et al., ACL 2022). InputError without any bias."""
    found = 0
    for name, parameter in model.named_parameters():
        is_bias = name.endswith("bias")
        found += is_bias
        parameter.requires_grad = is_bias or any(part in HEADS for part in name.split("."))
    if not found:
        raise InputError("adapter.type: 'bitfit' trains bias vectors, and this model has none; use lora or full")
    return model


def prepare_quantized(model: Any) -> Any:
    """PEFT's preparation of a 4-bit base: frozen, norms in float32, inputs that carry gradients."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them (non-reentrant)."""
    # transformers 5.22 renamed it; both names are in use.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()


def describe(model: nn.Module) -> dict[str, int]:
    """Element counts: trainable, 4-bit, and all (a 4-bit parameter packs two or more elements in one)."""
    counts = {"trainable": 0, "four_bit": 0, "all": 0}
    for parameter in model.parameters():
        elements = parameter.numel()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            elements = state.shape.numel()
            counts["four_bit"] += elements
        counts["all"] += elements
        counts["trainable"] += parameter.numel() if parameter.requires_grad else 0
    return counts
