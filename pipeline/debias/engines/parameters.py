"""Which trainable parameters a rule acts on."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from debias.engines.wrapping import own_names
from debias.methods import Rule

logger = logging.getLogger(__name__)

# What Hugging Face calls a task head. It starts from random values, so its first gradients say little about shortcuts.
HEAD_NAMES = frozenset({"classifier", "score", "qa_outputs", "classification_head", "modules_to_save"})

# Hugging Face's classes whose own layers, outside the backbone, are a head: not those of language models, whose head
# comes with the checkpoint.
TASK_CLASS = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice)$")

Select = Callable[[str, nn.Parameter], bool]


def not_head(name: str, parameter: nn.Parameter) -> bool:
    """The default selection: every trainable tensor but those of a task head.

    By its name alone; where the whole model is known, `for_model` adds layers of its head that are called otherwise.
    """
    return HEAD_NAMES.isdisjoint(name.split("."))


def selection(*, debias_head: bool) -> Select:
    """On which tensors a run's rule acts: all that train, or all but those of a task head."""
    return (lambda name, parameter: True) if debias_head else not_head


def for_model(select: Select, model: nn.Module) -> Select:
    """`select` for the parameters of this model, asked by their own names, whatever wraps them.

    The default also leaves out a head's layers that no name tells.

    DistilBERT's `pre_classifier`, DeBERTa's `pooler`, XLNet's `sequence_summary`: what `load_model` found missing in
    the checkpoint and drew at random (`fresh_modules`); of a model that came another way, and is of a class of Hugging
    Face's with a task head, all that lies outside the backbone.
    """
    if select is not not_head:
        own = own_names(model)
        return lambda name, parameter: select(own(name), parameter)
    fresh = tuple(_fresh(model))
    return lambda name, parameter: not_head(name, parameter) and not f"{name}.".startswith(fresh)


def _fresh(model: nn.Module) -> Iterator[str]:
    """The beginnings of names of parameters in freshly initialised layers."""
    for path, module in model.named_modules():
        # Asked of the class: PEFT's wrappers answer for what they wrap.
        known, backbone = vars(module).get("fresh_modules"), getattr(type(module), "base_model_prefix", "")
        before = f"{path}." if path else ""
        if known is not None:
            yield from (f"{before}{name}." for name in known)
        elif TASK_CLASS.search(type(module).__name__) and backbone in module._modules:
            yield from (f"{before}{name}." for name in _own_names(module) if name != backbone)
        else:
            continue
        return  # the outermost that knows


def _own_names(module: nn.Module) -> Iterator[str]:
    """Of its children and of the parameters that are its own."""
    yield from (name for name, _ in module.named_children())
    yield from (name for name, _ in module.named_parameters(recurse=False))


def chosen_by(select: Select, model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters that `select` accepts, in the model's order."""
    select = for_model(select, model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and select(name, p)}


def select_parameters(model: nn.Module, select: Select = not_head) -> dict[str, nn.Parameter]:
    """The trainable parameters that `select(name, parameter)` accepts, logged by kind; ValueError if none is."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    selected = chosen_by(select, model)
    if not selected:
        raise ValueError(f"the rule would act on nothing: {len(trainable)} trainable tensors, none selected")
    others = [name for name in trainable if name not in selected]
    logger.info(
        "the rule acts on %d tensors, %s elements (%s); %d other trainable tensors follow main only%s",
        len(selected),
        f"{sum(elements(p) for p in selected.values()):,}",
        ", ".join(f"{count} {kind}" for kind, count in kinds(selected).items()),
        len(others),
        f": {', '.join(others[:4])}{', ...' if len(others) > 4 else ''}" if others else "",
    )
    return selected


def check_optimizer(
    optimizer: torch.optim.Optimizer | None, rule: Rule, selected: Mapping[str, nn.Parameter], model: nn.Module
) -> None:
    """ValueError where the optimizer lacks a parameter of the rule, has one that is not the model's and trains, or is
    missing for a rule that asks for its rates.
    """
    if optimizer is None:
        if rule.memory and rule.reads_rate:
            raise ValueError(
                f"attach: {rule.name} needs the learning rate of each step; give the optimizer (None was given)"
            )
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if lost := [name for name, p in selected.items() if id(p) not in held]:
        raise ValueError(
            f"{lost[0]} is trainable but not in the optimizer ({len(lost)} such parameters); make it after"
            " fully_shard, or of the parameters that train now"
        )
    own = {id(p) for p in model.parameters()}
    held_by = (p for group in optimizer.param_groups for p in group["params"])
    if others := [p for p in held_by if p.requires_grad and id(p) not in own]:
        raise ValueError(f"optimizer: {strangers(others)}")
    if rule.memory and rule.reads_rate and any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"attach: {rule.name} needs the learning rate of each step, and lr of {type(optimizer).__name__} is None;"
            " give it one"
        )


def say_unfollowed(optimizer: torch.optim.Optimizer | None, model: nn.Module, name: str) -> None:
    """A warning where something trains by another optimizer than the one whose steps a method of that name follows."""
    groups = [] if optimizer is None else optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    if lost := [own for own, p in model.named_parameters() if p.requires_grad and id(p) not in held]:
        logger.warning(
            "%s follows the steps of the optimizer that attach was given, and %s trains but is not in it (%d such"
            " parameters): what another optimizer does to these is not followed",
            name,
            lost[0],
            len(lost),
        )


def strangers(others: Sequence[Tensor]) -> str:
    """What is wrong with parameters that train beside the model, and what to do."""
    shapes = ", ".join(str(list(whole_shape(p))) for p in others[:3])
    return (
        f"{len(others)} trainable tensors of shapes {shapes}{', ...' if len(others) > 3 else ''} are not of the"
        " attached model: the hook would neither average, reduce nor clip their gradients; attach it to one module that"
        " holds them all, such as nn.ModuleDict({'model': model, 'classifier': head})"
    )


def learning_rates(optimizer: torch.optim.Optimizer | None, selected: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The learning rate of each selected parameter in this step."""
    assert optimizer is not None  # `check_optimizer` saw to it
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in selected.items()}


def elements(parameter: nn.Parameter) -> int:
    """How many elements a parameter has, also where ZeRO-3 left only a slice of it here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole_shape(parameter: Tensor) -> torch.Size:
    """The whole parameter's shape, also where ZeRO-3 left only a slice of it here."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def kinds(parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    """How many tensors of each kind: the last name that is not `default` or `weight` (lora_A, bias, q_proj, ...)."""
    counts: dict[str, int] = {}
    for name in parameters:
        parts = [part for part in name.split(".") if part not in {"weight", "default"}]
        kind = parts[-1] if parts else name
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
