"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): low-rank matrices beside frozen weights, fused experts included."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from debias.adapters.experts import route_experts
from debias.adapters.families import (
    HEADS,
    Experts,
    Targets,
    choose_targets,
    describe_skipped,
    ends,
)
from debias.errors import InputError

logger = logging.getLogger(__name__)
PEFT_HEADS = ("classifier", "score")  # PEFT itself saves these with an adapter


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: Literal["auto", "all-linear"] | Sequence[str],
    classification: bool,
    fresh: Sequence[str] = (),
    target_parameters: Sequence[str] = (),
    experts: Experts = "auto",
    experts_r: int | None = None,
) -> Any:
    """`model` as a PeftModel with LoRA on `targets`; a classification head trains whole and is saved with the adapter.

    So do the modules named in `fresh`: with only LoRA on a random layer, nobody could load the adapter again.
    `target_parameters` and `experts` reach fused experts (`families.choose_targets`), each expert with rank `experts_r`
    (default `r`) and the same scaling `alpha / r` as the rest. Raises InputError that lists what there is when a target
    matches nothing, when expert stacks would be missed, and for dropout on fused experts.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    pictures = getattr(model, "main_input_name", None) == "pixel_values"
    chosen = choose_targets(model, targets, target_parameters, experts)
    if targets == "auto" and (skipped := describe_skipped(model, chosen)):
        logger.warning("adapter.targets: auto: %s", skipped)
    _check_experts(model, chosen, dropout, experts_r)
    rank = experts_r or r
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen.modules,
        target_parameters=chosen.parameters or None,
        rank_pattern=dict.fromkeys(chosen.parameters, rank) if rank != r else {},
        alpha_pattern=dict.fromkeys(chosen.parameters, alpha * rank / r) if rank != r else {},
        modules_to_save=_saved_whole(model, fresh, pictures) or None,
        task_type=None if pictures else TaskType.SEQ_CLS if classification else TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings():
        # PEFT looks for rank patterns among modules only, and says that those of parameters match nothing.
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        adapted = get_peft_model(model, config)
    _check_attached(adapted, chosen)
    route_experts(adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # PEFT sees to LoRA's own, not to a head that trains whole
            parameter.data = parameter.data.float()
    return adapted


def _check_experts(model: nn.Module, chosen: Targets, dropout: float, experts_r: int | None) -> None:
    if chosen.parameters and dropout:
        raise InputError(
            f"lora_dropout is {dropout}, and adapters on fused experts ({chosen.parameters[0]}) have none; set"
            " lora_dropout: 0, or adapter.experts: false"
        )
    if experts_r is not None and not chosen.parameters:
        raise InputError(f"adapter.experts_r is {experts_r}, but no expert gets an adapter; remove it")


def _check_attached(adapted: Any, chosen: Targets) -> None:
    """PEFT renames targets of some architectures, to fused experts for one: what it did must be what was chosen."""
    config = adapted.peft_config[adapted.active_adapter]
    given = set(chosen.parameters), None if chosen.modules == "all-linear" else set(chosen.modules)
    done = set(config.target_parameters or ()), None if given[1] is None else set(config.target_modules)
    if given != done:
        turned = sorted((given[1] or set()) - (done[1] or set()))
        raise InputError(
            f"adapter.targets: PEFT takes {', '.join(turned)} of a {adapted.config.model_type} for its fused experts;"
            " leave them out, and give adapter.target_parameters for the experts"
        )
    found = adapted.base_model.targeted_parameter_names
    lost = [one for one in chosen.parameters if not any(ends(name, one) for name in found)]
    if lost:
        raise InputError(f"adapter.target_parameters: PEFT attached nothing to {', '.join(lost)}")


def _saved_whole(model: nn.Module, fresh: Sequence[str], pictures: bool) -> list[str]:
    """What PEFT must be told to train whole and to save; of texts it knows the heads itself."""
    if not pictures:
        return [name for name in fresh if name.partition(".")[0] not in PEFT_HEADS]
    heads = [name for name, _ in model.named_children() if name in HEADS]
    return [*heads, *(name for name in fresh if name not in heads)]
