"""Which layers of which architecture take an adapter: attention, MLP, fused experts; never a router."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from debias.errors import InputError

HEADS = ("classifier", "score", "classification_head")
ROUTERS = ("router", "gate", "shared_expert_gate")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
Experts = bool | Literal["auto", "partial"]


@dataclass(frozen=True)
class Family:
    """The linear layers that `auto` adapts, by last name, and the fused expert parameters by the end of their path."""

    linears: tuple[str, ...]
    experts: tuple[str, ...] = ()


# By `config.model_type`. Qwen3-MoE has no MLP among its linears: PEFT takes these names for its experts, fused since
# transformers 5 (`auto_targets` tells where a mixed model has dense layers that stay without adapter for that).
FAMILIES = {
    "llama": Family(ATTENTION + MLP),
    "qwen3": Family(ATTENTION + MLP),
    "gemma3_text": Family(ATTENTION + MLP),
    "qwen3_moe": Family(ATTENTION, ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    "llama4_text": Family(ATTENTION + MLP, ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")),
}


@dataclass(frozen=True)
class Targets:
    """What PEFT is told: `all-linear` or endings of module paths, and endings of parameter paths."""

    modules: Literal["all-linear"] | list[str]
    parameters: list[str]


def choose_targets(
    model: nn.Module,
    targets: Literal["auto", "all-linear"] | Sequence[str],
    target_parameters: Sequence[str] = (),
    experts: Experts = "auto",
) -> Targets:
    """The targets of an adapter on `model`, each known to match something.

    `experts`: the family's fused experts too (`auto`: with targets `auto`); `partial` allows `target_parameters` that
    leave some expert stacks out. InputError for what matches nothing, for stacks that would be missed, and for `auto`
    on an architecture with experts that no family here describes.
    """
    parameters = list(target_parameters)
    family = family_of(model)
    if experts is True or (experts == "auto" and targets == "auto"):
        parameters += [] if family is None else list(family.experts)
    if experts is True and (family is None or not family.experts):
        raise InputError(f"adapter.experts: true, but {_kind(model)} has no fused experts that are known; {_by_hand()}")
    modules = _modules(model, targets, family)
    check_parameters(model, parameters, partial=experts == "partial")
    return Targets(modules, parameters)


def _modules(
    model: nn.Module, targets: Literal["auto", "all-linear"] | Sequence[str], family: Family | None
) -> Literal["all-linear"] | list[str]:
    if not isinstance(targets, str):
        check_names(model, targets)
        return list(targets)
    sparse = is_sparse(model)
    if targets == "auto" and family is not None:
        present = linear_names(model)
        return [name for name in family.linears if name in present]
    if targets == "auto" and sparse:
        raise InputError(f"adapter.targets: 'auto' knows no {_kind(model)}, which has experts or routers; {_by_hand()}")
    if not sparse and getattr(model, "main_input_name", None) != "pixel_values":
        return "all-linear"
    # PEFT would take routers for layers like any other, and without a task type the head of pictures too.
    return linear_names(model)


def family_of(model: nn.Module) -> Family | None:
    """The family of a model's architecture, None where none is known."""
    return FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", None)))


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _by_hand() -> str:
    return (
        f"known are {', '.join(FAMILIES)}; for others give adapter.targets: [q_proj, ...] (endings of linear layers)"
        " and adapter.target_parameters: [mlp.experts.down_proj, ...] (endings of fused expert parameters)"
    )


def linear_names(model: nn.Module) -> list[str]:
    """The distinct last names of linear layers that could be targets (`query`, `q_proj`, ...): no head, no router."""
    names = {path.rpartition(".")[2] for path in _linear_paths(model)}
    return sorted(names - {*HEADS, "lm_head"})


def _linear_paths(model: nn.Module) -> Iterator[str]:
    return (path for path, module in model.named_modules() if _is_linear(module) and not is_router(path, module))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, a linear layer transposed


def is_router(path: str, module: nn.Module) -> bool:
    """Whether a module chooses experts: by its name, or that of its class."""
    return path.rpartition(".")[2] in ROUTERS or re.search("Router|TopKGate", type(module).__name__) is not None


def is_sparse(model: nn.Module) -> bool:
    """Whether a model has experts or a router."""
    routers = (is_router(path, module) for path, module in model.named_modules())
    return any(True for _ in expert_parameters(model)) or any(routers)


def expert_parameters(model: nn.Module) -> Iterator[str]:
    """Paths of fused expert parameters `[experts, ., .]`."""
    for path, module in model.named_modules():
        if "expert" not in f"{path}.{type(module).__name__}".lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if len(getattr(parameter, "ds_shape", parameter.shape)) == 3:  # ZeRO-3 leaves a flat slice of it here
                yield f"{path}.{name}"


def sparse_blocks(model: nn.Module) -> list[type[nn.Module]]:
    """Classes of the modules that route tokens to fused experts: the parents of the experts."""
    holders = {path.rpartition(".")[0].rpartition(".")[0] for path in expert_parameters(model)}
    return sorted({type(model.get_submodule(path)) for path in holders}, key=lambda kind: kind.__name__)


def check_names(model: nn.Module, targets: Sequence[str], setting: str = "targets") -> None:
    """InputError for the first target that is the end of no linear layer's path; it lists what there is."""
    paths = list(_linear_paths(model))
    for target in targets:
        if not any(ends(path, target) for path in paths):
            raise InputError(
                f"adapter.{setting}: {target!r} matches no linear layer; there are {', '.join(linear_names(model))}"
            )


def check_parameters(model: nn.Module, targets: Sequence[str], *, partial: bool = False) -> None:
    """InputError for a target that is no parameter's path, and for expert stacks that are left out beside others."""
    names = [name for name, parameter in model.named_parameters()]
    stacks = list(expert_parameters(model))
    for target in targets:
        if not any(ends(name, target) for name in names):
            there = ", ".join(sorted({".".join(name.split(".")[-3:]) for name in stacks})) or "none"
            raise InputError(f"adapter.target_parameters: {target!r} matches no parameter; fused experts: {there}")
    missed = [name for name in stacks if not any(ends(name, target) for target in targets)]
    if targets and missed and not partial:
        raise InputError(
            f"adapter.target_parameters: {len(missed)} of {len(stacks)} expert stacks get no adapter, {missed[0]} the"
            " first; name them too, or set adapter.experts: partial"
        )


def ends(path: str, target: str) -> bool:
    """As PEFT matches: the whole path, or its end after a dot."""
    return path == target or path.endswith("." + target)


def describe_skipped(model: Any, targets: Targets) -> str | None:
    """What `auto` leaves without adapter though it is an ordinary linear layer; None where nothing is."""
    if targets.modules == "all-linear":
        return None
    missed = [
        path
        for path in _linear_paths(model)
        if path.rpartition(".")[2] not in {*HEADS, "lm_head"} and not any(ends(path, name) for name in targets.modules)
    ]
    return f"{len(missed)} linear layers get no adapter, {missed[0]} the first" if missed else None
