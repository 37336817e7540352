"""One call for people with a training loop of their own, whatever holds their gradients."""

import sys
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from debias.engines.parameters import Select, not_head
from debias.engines.torch_engine import TorchHook, attach_model
from debias.engines.weight_term import refuse_penalty
from debias.engines.wrapping import is_sharded
from debias.masks import Mask
from debias.methods import Rule
from debias.penalties import Penalty
from debias.projections import Projection
from debias.sharpness import Sharpness

if TYPE_CHECKING:
    from debias.engines.zero.hook import ZeroHook


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    rule: Rule,
    gradients: str = ...,
    *,
    select: Select = ...,
    max_grad_norm: float | None = ...,
    max_nonfinite_steps: int = ...,
    verify: bool = ...,
    sharpness: Sharpness | None = ...,
    weight_penalty: Penalty | None = ...,
    weight_projection: Projection | None = ...,
    gradient_mask: Mask | None = ...,
) -> TorchHook: ...


@overload
def attach(
    model: Any,
    optimizer: Rule,
    /,
    *,
    gradients: str = ...,
    select: Select = ...,
    max_nonfinite_steps: int = ...,
    verify: bool = ...,
    weight_projection: Projection | None = ...,
    gradient_mask: Mask | None = ...,
) -> "ZeroHook": ...


def attach(
    model: Any,
    optimizer: Any = None,
    rule: Any = None,
    gradients: str = "auto",
    *,
    select: Select = not_head,
    max_grad_norm: float | None = None,
    max_nonfinite_steps: int = 10,
    verify: bool = True,
    sharpness: Sharpness | None = None,
    weight_penalty: Penalty | None = None,
    weight_projection: Projection | None = None,
    gradient_mask: Mask | None = None,
) -> Any:
    """Hook debiased gradients into a training loop of your own.

    `attach(model, optimizer, rule)`: `hook.backward(loss_B, weight_B)` for each micro-batch, then `hook.step()`; the
    model may be wrapped in DistributedDataParallel, before or after. In Accelerate's `accumulate()`, with the optimizer
    that Accelerate prepared, `hook.step()` may stand in every micro-batch. Call `fully_shard` (FSDP2) first, make the
    optimizer of what it left, then attach. `attach(engine, rule)` for a DeepSpeed engine: `hook.backward(...)` for
    `engine.backward(loss)`, then `engine.step()` as ever.

    `gradients`: `auto`, `single_pass`, `shared_forward` or `two_pass`. `select(name, parameter)` says which trainable
    tensors the rule acts on (default: all but a task head). `max_grad_norm` clips the update in `hook.step` (an engine
    clips by its own `gradient_clipping`). `verify`: single_pass compares its bias gradient with an ordinary backward
    pass, twice in a run; where they differ `auto` goes a slower way and says so, and a `single_pass` that was asked for
    raises `debias.gradients.NotExact`, a ValueError (false: for those who measure time). `sharpness`: such as
    `debias.sharpness.SAM()`, by which each micro-batch has a second pass, for which `backward` needs `again`.
    `weight_penalty`: such as `debias.penalties.PEGO()`, added once a step to the update. `gradient_mask`: such as
    `debias.masks.SAFT()`, which elements of it are left. `weight_projection`: such as `debias.projections.SPD()`, after
    the optimizer's step, whoever calls it. A penalty and `sharpness` with whole weights alone. Raises ValueError when
    the rule would act on nothing, when the optimizer lacks a selected parameter, when `single_pass` is asked for where
    it is not exact, for embeddings with sparse gradients, and for a wrapper or an engine's option that is not
    supported. What is done to the model afterwards and would leave the rule without its parameters (FSDP, an adapter)
    is a RuntimeError in the next step. A rule that looks at how far the weights moved, and a projection, measure from
    here: to go on with an earlier run load the weights, attach, and give the hook what its `state_dict()` was. Hooks on
    modules are called in the passes of a comparison too; hooks on parameters are not.

    fp16 with torch.amp.GradScaler has one exact order, in which the count takes the scale off before the rule looks:
    `hook.backward(scaler.scale(loss_B), weight_B, count=len(loss_B) * scaler.get_scale())`, `report = hook.step()`, and
    `scaler.update(scaler.get_scale() * (1.0 if report.finite else 0.5))`. A step that overflowed is skipped, and counts
    for `max_nonfinite_steps`. `scaler.unscale_` before, and `scaler.step` after `combine()`, are a RuntimeError.
    """
    options: dict[str, Any] = {"select": select, "max_nonfinite_steps": max_nonfinite_steps, "verify": verify}
    options |= {"weight_projection": weight_projection, "gradient_mask": gradient_mask}
    more: dict[str, Any] = {"sharpness": sharpness, "weight_penalty": weight_penalty}
    if not _is_engine(model):
        if is_sharded(model):
            refuse_more("weights that FSDP shards", **more)
            from debias.engines.fsdp.attach import attach_sharded

            return attach_sharded(model, optimizer, rule, gradients, max_grad_norm=max_grad_norm, **options)
        return attach_model(model, optimizer, rule, gradients, max_grad_norm=max_grad_norm, **options, **more)
    refuse_more("weights that DeepSpeed holds", **more)
    _refuse_clipping(max_grad_norm)
    from debias.engines.zero.attach import attach_engine

    return attach_engine(model, _one_rule(optimizer, rule), gradients, **options)


def _refuse_clipping(max_grad_norm: float | None) -> None:
    if max_grad_norm is not None:
        raise ValueError(
            "attach: max_grad_norm has no effect on a DeepSpeed engine; set gradient_clipping in its config"
        )


def _one_rule(*given: Any) -> Rule:
    """What stands where an optimizer and a rule may."""
    found = [one for one in given if one is not None]
    if len(found) != 1 or not isinstance(found[0], Rule):
        raise ValueError("attach: a DeepSpeed engine has its own optimizer; call attach(engine, rule)")
    return found[0]


def refuse_more(what: str, sharpness: Sharpness | None, weight_penalty: Penalty | None) -> None:
    """ValueError where a step has more than its rule, and `what` keeps what that needs whole."""
    refuse_penalty(weight_penalty, what)
    if sharpness is not None:
        raise ValueError(
            f"attach: sharpness {sharpness.name} moves the weights within a step, and cannot move {what}; use one"
            " process or DistributedDataParallel, or leave it out"
        )


def _is_engine(model: Any) -> bool:
    """Without importing deepspeed: if nobody has, this is no engine."""
    if "deepspeed" not in sys.modules:
        return False
    from debias.engines.zero.attach import is_engine

    return is_engine(model)
