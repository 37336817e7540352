"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): low-rank matrices beside frozen weights, fused experts included."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from debias.adapters.base import Beside, RunFacts, is_skeleton, saved_whole, task_type, train_in_float32
from debias.adapters.experts import route_experts
from debias.adapters.families import (
    Experts,
    Targets,
    choose_targets,
    describe_skipped,
    ends,
    expert_parameters,
)
from debias.errors import InputError

logger = logging.getLogger(__name__)
TARGETS = {"expects": "auto, all-linear or a list of module names"}


@dataclass(frozen=True)
class Lora(Beside):
    """LoRA on the layers in `targets`: `auto` (attention, MLP and fused experts), `all-linear`, or endings of names.

    `target_parameters`: endings of fused expert parameters, where targets are given by hand. `experts`: `auto` (with
    targets auto), true, false, or `partial`, which lets `target_parameters` leave some out. `experts_r`: LoRA's rank
    for each expert, by default `lora_r`; all have the scaling `lora_alpha / lora_r`.

    Needs linear layers; the run's `lora_r`, `lora_alpha` and `lora_dropout` belong to it. Costs `r (I + O)` parameters
    for each layer, and little time; the base stays frozen and may be in 4 bits. Fails where a task asks for a change of
    high rank. A low rank is no guard against a shortcut: in the demo LoRA learns it.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv 2106.09685.
    """

    name: ClassVar[str] = "lora"
    reads: ClassVar[tuple[str, ...]] = ("lora_r", "lora_alpha", "lora_dropout")
    marks: ClassVar[tuple[str, ...]] = (".lora_A.", ".lora_B.")
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = field(default="auto", metadata=TARGETS)
    target_parameters: tuple[str, ...] = ()
    experts: bool | Literal["auto", "partial"] = field(
        default="auto", metadata={"expects": "auto, true, false or partial"}
    )
    experts_r: int | None = None

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if self.experts_r is not None and self.experts_r < 1:
            raise ValueError(f"experts_r is {self.experts_r}, expected a rank greater than 0")
        if self.target_parameters and self.targets == "auto":
            raise ValueError(
                "target_parameters goes with targets given by hand (a list, or all-linear); add adapter.targets"
            )
        if self.target_parameters and self.experts is False:
            raise ValueError("experts is false, but target_parameters names some; remove one of the two")
        if self.experts == "partial" and not self.target_parameters:
            raise ValueError("experts is 'partial', but target_parameters names none; add those that are to be adapted")

    def attach(self, model: Any, run: RunFacts) -> Any:
        chosen: dict[str, Any] = {
            "target_parameters": self.target_parameters,
            "experts": self.experts,
            "experts_r": self.experts_r,
        }
        return attach_lora(model, run, targets=self.targets, **chosen)


def attach_lora(model: Any, run: RunFacts, **settings: Any) -> Any:
    """`add_lora` with the sizes, the head and the fresh modules of a run."""
    sizes: dict[str, Any] = {"r": run.lora_r, "alpha": run.lora_alpha, "dropout": run.lora_dropout}
    return add_lora(model, **sizes, classification=run.classification, fresh=run.fresh, **settings)


def attach_to_layers(model: Any, run: RunFacts, row: str, targets: str | Sequence[str], **settings: Any) -> Any:
    """`attach_lora` on linear layers alone, for forms that fused experts do not take; a warning where there are any."""
    warn_of_experts(model, row)
    return attach_lora(model, run, targets=targets, experts=False, **settings)


def warn_of_experts(model: nn.Module, row: str) -> None:
    """A warning where a model has fused experts, of an adapter that they do not take."""
    stacks = sum(1 for _ in expert_parameters(model))
    if stacks and not is_skeleton(model):
        logger.warning("adapter.type: %s: %d stacks of fused experts get no adapter; lora adapts them", row, stacks)


def check_targets(targets: str | Sequence[str]) -> None:
    """ValueError for a list of names that names nothing."""
    if not targets:
        raise ValueError(f"targets is {list(targets)}, expected {TARGETS['expects']}")


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: Literal["auto", "all-linear"] | Sequence[str],
    classification: bool,
    fresh: Sequence[str] | None = None,
    target_parameters: Sequence[str] = (),
    experts: Experts = "auto",
    experts_r: int | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> Any:
    """`model` as a PeftModel with LoRA on `targets`; a classification head trains whole and is saved with the adapter.

    So do the modules named in `fresh`, by default those that `load_model` drew at random (`fresh_modules`; of a model
    that came another way, name them): with only LoRA on a random layer, nobody could load the adapter again.
    `target_parameters` and `experts` reach fused experts (`families.choose_targets`), each expert with rank `experts_r`
    (default `r`) and the same scaling `alpha / r` as the rest. `use_dora`: DoRA, and `use_rslora`: the scaling
    `alpha / sqrt(r)`, both on linear layers alone. Raises InputError that lists what there is when a target matches
    nothing, when expert stacks would be missed, and for dropout on fused experts.
    """
    from peft import LoraConfig, get_peft_model

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
        modules_to_save=saved_whole(model, fresh),
        task_type=task_type(model, classification=classification),
        use_dora=use_dora,
        use_rslora=use_rslora,
    )
    with warnings.catch_warnings():
        # PEFT looks for rank patterns among modules only, and says that those of parameters match nothing.
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        adapted = get_peft_model(model, config)
    _check_attached(adapted, chosen)
    route_experts(adapted)
    train_in_float32(adapted)
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
    # Many whole paths PEFT shortens to ends that name the same modules.
    names, shortened = given[1] or set(), done[1] or set()
    turned = sorted(one for one in names if not any(ends(one, end) for end in shortened))
    added = [end for end in shortened if not any(ends(one, end) for one in names)]
    if turned or added or given[0] != done[0] or (given[1] is None) != (done[1] is None):
        raise InputError(
            f"adapter.targets: PEFT takes {', '.join(turned)} of a {adapted.config.model_type} for its fused experts;"
            " leave them out, and give adapter.target_parameters for the experts"
        )
    found = adapted.base_model.targeted_parameter_names
    lost = [one for one in chosen.parameters if not any(ends(name, one) for name in found)]
    if lost:
        raise InputError(f"adapter.target_parameters: PEFT attached nothing to {', '.join(lost)}")
