"""What is done to weights after the optimizer's step, by hooks on the optimizer: whoever calls its step, it follows.

A step that is left out (an update that is not finite, a micro-batch of Accelerate's `accumulate()`) calls no hook.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines.rule_state import on_the_cpu
from debias.engines.step_hooks import AroundSteps, has_hooks, inner
from debias.projections import Projection

KEPT = "held_at"  # in what a hook saves: where a tensor is held


class ProjectedSteps:
    """The trainable parameters of an optimizer, where each is held, and what is taken back after each step.

    Every rank has whole weights and the same gradients, and does the same. What was frozen at first and is thawed later
    is held where it is at its first step. Raises ValueError, with its name, for an optimizer that cannot be followed.
    """

    def __init__(self, model: nn.Module, optimizer: Any, projection: Projection) -> None:
        self.projection = projection
        self._model = model
        self._optimizer = inner(optimizer)
        if reason := _refusal(optimizer, self._optimizer):
            raise ValueError(f"weight_projection {projection.name} {reason}")
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._held_at: dict[str, Tensor] = {}
        self._waiting: list[tuple[Tensor, Tensor]] = []  # of this step: what moves, and what is to be known of it
        for p in self._trainable():
            self._hold(p)
        self._around = AroundSteps(self._optimizer, self._before, self._after)

    @property
    def keeps(self) -> bool:
        """Whether a run goes on only from what `state` gives."""
        return self.projection.towards == "start"

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        self._around.remove()

    def state(self, saved: Callable[[str], str]) -> dict[str, Tensor]:
        """Where each tensor is held, on the CPU; `saved`: a parameter's name without what a wrapper puts before it."""
        return {f"{saved(name)}/{KEPT}": on_the_cpu(tensor) for name, tensor in self._held_at.items()}

    def load(self, state: Mapping[str, Tensor], saved: Callable[[str], str]) -> dict[str, Tensor]:
        """Go on from `state`; returns what is not of it. ValueError where it is of other parameters."""
        own = {key: tensor for key, tensor in state.items() if key.endswith(f"/{KEPT}")}
        if not self.keeps:
            return dict(state)
        parameters = {f"{saved(name)}/{KEPT}": (name, p) for name, p in self._model.named_parameters()}
        missing = [f"{saved(name)}/{KEPT}" for name in self._held_at if f"{saved(name)}/{KEPT}" not in own]
        if odd := sorted(missing + [key for key in own if key not in parameters]):
            where = "what weight_projection keeps here" if odd[0] in missing else "the saved state"
            raise ValueError(f"load_state_dict: {odd[0]} is only in {where} ({len(odd)} tensors differ)")
        for key, tensor in own.items():
            name, p = parameters[key]
            if tensor.shape != p.shape:
                raise ValueError(f"load_state_dict: {key} has shape {list(tensor.shape)}, {list(p.shape)} is wanted")
            self._held_at[name] = tensor.to(p, copy=True)
        return {key: tensor for key, tensor in state.items() if key not in own}

    def _trainable(self) -> list[Tensor]:
        held = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p for p in held if p.requires_grad and id(p) in self._names]

    def _hold(self, p: Tensor) -> None:
        if self.keeps:
            self._held_at.setdefault(self._names[id(p)], p.detach().clone())

    def _moved(self, p: Tensor) -> Tensor:
        """The way from where it is held, in float32 or wider; for `zero` it may be the weights themselves."""
        wide = p.detach().to(_wide(p))
        return wide - self._held_at[self._names[id(p)]] if self.keeps else wide

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Before the optimizer's step."""
        if any(given is not None for given in (*args[1:], kwargs.get("closure"))):
            raise RuntimeError(
                f"weight_projection {self.projection.name} looks at the gradient before the optimizer's step, and step"
                " was given a closure, which makes another; call it without"
            )
        self._waiting = []
        for p in self._trainable():
            if p.grad is not None:
                self._hold(p)
                self._waiting.append((p, self.projection.before(p.grad.to(_wide(p)), self._moved(p))))

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """After it."""
        waiting, self._waiting = self._waiting, []
        for p, known in waiting:
            moved = self._moved(p)
            p.addcmul_(moved, self.projection.taken_back(known, moved), value=-1.0)


def check_projection(projection: Projection | None, optim: Any, *, deepspeed: bool) -> None:
    """ValueError, before anything is trained, for what a run's weights cannot have."""
    name = str(getattr(optim, "value", optim))
    if projection is not None and name.startswith("schedule_free"):
        raise ValueError(f"weight_projection {projection.name} {SCHEDULE_FREE}; optim is {name!r}")
    if deepspeed:
        refuse_projection(projection, "weights that DeepSpeed holds")


def refuse_projection(projection: Projection | None, what: str) -> None:
    """ValueError where there is a projection, and `what` keeps the weights that it moves."""
    if projection is not None:
        raise ValueError(
            f"weight_projection {projection.name} moves whole weights, and cannot have {what}; use one process or"
            " DistributedDataParallel, or leave it out"
        )


SCHEDULE_FREE = "moves the weights that train, and a schedule-free optimizer is judged by others; take another one"


def _refusal(given: Any, optimizer: Any) -> str | None:
    """Why an optimizer cannot be followed, None where it can."""
    if given is None:
        return "follows the optimizer's step; give attach the optimizer (None was given)"
    if not has_hooks(optimizer):
        return f"follows the step of a torch.optim.Optimizer; {type(given).__name__} is none"
    if isinstance(optimizer, torch.optim.LBFGS):
        return "follows a step by one gradient, and LBFGS takes several in a step; take another one"
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        return SCHEDULE_FREE
    return None


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
