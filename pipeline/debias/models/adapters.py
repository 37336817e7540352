"""What trains: LoRA matrices, biases (BitFit), or everything; and the table of what that came to."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from debias.errors import InputError

logger = logging.getLogger(__name__)
PEFT_HEADS = ("classifier", "score")  # PEFT itself saves these with an adapter
HEADS = ("classifier", "score", "classification_head")


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: Literal["auto", "all-linear"] | Sequence[str],
    classification: bool,
    fresh: Sequence[str] = (),
) -> Any:
    """`model` as a PeftModel with LoRA on `targets`; a classification head trains whole and is saved with the adapter.

    So do the modules named in `fresh`: with only LoRA on a random layer, nobody could load the adapter again. Raises
    InputError that lists the module names there are when a target matches none.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    pictures = getattr(model, "main_input_name", None) == "pixel_values"
    chosen = "all-linear" if isinstance(targets, str) else list(targets)
    if pictures and isinstance(targets, str):
        chosen = linear_names(model)  # without a task type PEFT takes the head for a layer like any other
    if not isinstance(chosen, str):
        _check_targets(model, chosen)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        modules_to_save=_saved_whole(model, fresh, pictures) or None,
        task_type=None if pictures else TaskType.SEQ_CLS if classification else TaskType.CAUSAL_LM,
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # PEFT sees to LoRA's own, not to a head that trains whole
            parameter.data = parameter.data.float()
    return adapted


def _saved_whole(model: nn.Module, fresh: Sequence[str], pictures: bool) -> list[str]:
    """What PEFT must be told to train whole and to save; of texts it knows the heads itself."""
    if not pictures:
        return [name for name in fresh if name.partition(".")[0] not in PEFT_HEADS]
    heads = [name for name, _ in model.named_children() if name in HEADS]
    return [*heads, *(name for name in fresh if name not in heads)]


def linear_names(model: nn.Module) -> list[str]:
    """The distinct last names of the linear layers that could be targets (`query`, `q_proj`, ...), head excluded."""
    names = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if _is_linear(module) and path.rpartition(".")[2] not in {*HEADS, "lm_head"}
    }
    return sorted(names)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, a linear layer transposed


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    paths = [path for path, module in model.named_modules() if _is_linear(module)]
    for target in targets:
        if not any(path == target or path.endswith("." + target) for path in paths):
            raise InputError(
                f"adapter.targets: {target!r} matches no linear layer; there are {', '.join(linear_names(model))}"
            )


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


def prepare_quantized(model: Any) -> Any:
    """PEFT's preparation of a 4-bit base: frozen, norms in float32, inputs that carry gradients."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them (non-reentrant); InputError if it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise InputError(f"gradient_checkpointing: a {type(model).__name__} has none; remove it")
    # transformers 5.22 renamed it; both names are in use.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()


def describe(model: nn.Module) -> dict[str, int]:
    """Element counts: trainable, 4-bit, and all (a 4-bit parameter packs two or more elements in one)."""
    counts = {"trainable": 0, "four_bit": 0, "all": 0}
    for parameter in model.parameters():
        elements = whole = int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves a slice of it here
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            elements = state.shape.numel()
            counts["four_bit"] += elements
        counts["all"] += elements
        counts["trainable"] += whole if parameter.requires_grad else 0
    return counts
