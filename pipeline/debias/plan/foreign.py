"""The plan of a PEFT adapter of any kind, by its adapter_config.json: what PEFT puts on the model, counted.

`debias train` trains the forms of `ADAPTERS`; a loop with `attach` takes adapters of any kind, and this is their plan.
What a step keeps alive depends on the kind's own code, so activations are not promised, and neither is single_pass.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from debias.adapters import ADAPTERS
from debias.config.run import RunConfig
from debias.engines.adapter_kinds import unknown_adapter
from debias.engines.parameters import chosen_by, selection
from debias.errors import InputError
from debias.gradients.choice import Choice, choose
from debias.gradients.single_pass import refusal
from debias.plan.checks import check_penalty, check_run
from debias.plan.count import Counts, active_share, sizes_of
from debias.plan.memory import Masked, memory_of
from debias.plan.planner import Planner, held, parameters_of
from debias.plan.sheet import Machine, Plan
from debias.plan.skeleton import base_skeleton, quantized_skeleton
from debias.plan.trace import Traced

FILE = "adapter_config.json"


def plan_adapter(run: RunConfig, machine: Machine, adapter: Path, *, length: int | None = None) -> Plan:
    """What the run's model and step need with this adapter in the place of the run's own, without activations.

    `adapter`: a folder with adapter_config.json, or that file. `fits` is False where the rest alone is too much, else
    None: not known. InputError for a file that PEFT does not read, and an adapter that does not fit the model.
    """
    settings = _settings(adapter)
    planner = Planner(run, machine, length)
    check_run(run.model_copy(update={"max_length": planner.length}), planner.config)
    model = _with_adapter(run, planner.config, settings, adapter)
    check_penalty(run, model)
    share = active_share(planner.config)
    counts = Counts(tuple(sizes_of(model, selection(debias_head=run.debias_head))), share)
    base = Counts(tuple(sizes_of(base_skeleton(run, planner.config), selection(debias_head=False))), share)
    choice = _choice(planner, model, counts, base)
    spread, seen = planner.spread, planner.rule.combines
    more: dict[str, Any] = {"cuda": machine.cuda, "held": held(run), "masked": Masked.of(run)}
    memory = memory_of(counts, Traced(0, 0, 0), spread, choice.name, run.optim, looks_at=seen, **more)
    limit = machine.gpu_memory
    return planner.told(
        memory,
        parameters=parameters_of(counts).model_copy(update={"base": base.base, "active": base.active}),
        gradients=choice.name,
        sent=0,
        fits=False if limit is not None and memory.total > limit else None,
        largest_micro_batch=None,
        assumptions=[f"gradients {choice.name}: {choice.why}"] if choice.why else [],
        unknown=f"of {settings.peft_type.value} adapters: activations, and what ranks send; {_taken(settings)}",
    )


def _settings(adapter: Path) -> Any:
    """PEFT's settings, of whichever kind they name."""
    from peft import PeftConfig

    path = adapter / FILE if adapter.is_dir() else adapter
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or "peft_type" not in told:
            raise InputError(f"--adapter: {path} names no peft_type, as PEFT's {FILE} does")
        return PeftConfig.from_peft_type(**told)
    except OSError as error:
        raise InputError(f"--adapter: {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"--adapter: {path} is nothing that PEFT here reads: {_first(error)}") from None


def _taken(settings: Any) -> str:
    """Who takes an adapter of that kind."""
    kind = settings.peft_type.value.lower()
    if kind in ADAPTERS:
        return f"a run's own `adapter: {kind}` is planned whole"
    return "`debias train` has none of that kind, attach(model, optimizer, rule) takes it"


def _with_adapter(run: RunConfig, config: Any, settings: Any, adapter: Path) -> nn.Module:
    from peft import get_peft_model

    settings.inference_mode = False  # as saved adapters say, of which nothing would train
    base = quantized_skeleton(run, config)
    try:
        with torch.device("meta"):
            model: nn.Module = get_peft_model(base, settings)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        kind = settings.peft_type.value
        raise InputError(f"--adapter: {adapter}: {kind} does not fit {run.model}: {_first(error)}") from None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--adapter: {adapter}: nothing of {run.model} trains with it")
    return model


def _choice(planner: Planner, model: nn.Module, counts: Counts, base: Counts) -> Choice:
    """The way to two gradients: never single_pass where nobody has read the kind's code."""
    chosen = chosen_by(selection(debias_head=planner.run.debias_head), model)
    try:
        return choose(
            planner.run.gradients,
            lambda: unknown_adapter(model, chosen) or refusal(model, chosen),
            uses_bias=planner.rule.uses_bias,
            stage=planner.spread.stage or 0,
            selected=counts.elements(selected=True),
            whole=base.base + counts.elements(selected=True),
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def _first(error: Exception) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:200]
