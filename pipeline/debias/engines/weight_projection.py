"""What is done to weights after the optimizer's step, by hooks on the optimizer: whoever calls its step, it follows.

A step that is left out (an update that is not finite, a micro-batch of Accelerate's `accumulate()`) calls no hook.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from debias.engines.grounds import Ground, Stepped
from debias.engines.step_hooks import AroundSteps, has_hooks
from debias.projections import Projection

KEPT = "held_at"  # in what a hook saves: where a tensor is held


class ProjectedSteps:
    """The weights that an optimizer steps on, where each is held, and what is taken back after each step.

    Where ranks have pieces of a tensor, its sums are all ranks'. What was frozen at first and is thawed later is held
    where it is at its first step. Raises ValueError, with its name, for an optimizer that cannot be followed.
    """

    def __init__(self, ground: Ground, projection: Projection) -> None:
        self.projection = projection
        self._ground = ground
        if reason := _refusal(ground.optimizer):
            raise ValueError(f"weight_projection {projection.name} {reason}")
        self._held_at: dict[str, Tensor] = {}
        # Of this step: what moves, along which the gradient leads, and how far it was away.
        self._waiting: list[tuple[Stepped, Tensor, Tensor]] = []
        for name, weight in ground.held().items():
            self._hold(name, weight)
        self._around = AroundSteps(ground.optimizer, self._before, self._after)

    @property
    def keeps(self) -> bool:
        """Whether a run goes on only from what `state` gives."""
        return self.projection.towards == "start"

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        self._around.remove()

    def state(self, saved: Callable[[str], str]) -> dict[str, Tensor]:
        """Where each tensor is held, whole, on the CPU; `saved`: a parameter's name without what a wrapper puts before
        it. Collective where weights are sharded.
        """
        whole = self._ground.weights.whole(self._held_at) if self.keeps else {}
        return {f"{saved(name)}/{KEPT}": tensor for name, tensor in whole.items()}

    def load(
        self, state: Mapping[str, Tensor], saved: Callable[[str], str]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """What goes on from `state` when it is called, and what of it is not its own. ValueError, before anything has
        changed, where it is of other parameters.
        """
        own = {key: tensor for key, tensor in state.items() if key.endswith(f"/{KEPT}")}
        if not self.keeps:
            return _nothing, dict(state)
        parameters = {f"{saved(name)}/{KEPT}": (name, shape) for name, shape in self._ground.shapes().items()}
        missing = [f"{saved(name)}/{KEPT}" for name in self._held_at if f"{saved(name)}/{KEPT}" not in own]
        if odd := sorted(missing + [key for key in own if key not in parameters]):
            where = "what weight_projection keeps here" if odd[0] in missing else "the saved state"
            raise ValueError(f"load_state_dict: {odd[0]} is only in {where} ({len(odd)} tensors differ)")
        parts: dict[str, Tensor] = {}
        for key, tensor in own.items():
            name, shape = parameters[key]
            if tensor.shape != shape:
                raise ValueError(f"load_state_dict: {key} has shape {list(tensor.shape)}, {list(shape)} is wanted")
            parts[name] = self._ground.weights.part(name, tensor)
        return functools.partial(self._take, parts), {key: one for key, one in state.items() if key not in own}

    def _take(self, parts: Mapping[str, Tensor]) -> None:
        """Hold them there; of what was not held yet (thawed since) it is brought to its weights at its first step."""
        for name, part in parts.items():
            before = self._held_at.get(name)
            if before is not None:
                before.copy_(part.view_as(before))
            elif part.numel():
                self._held_at[name] = part.detach().clone()

    def _hold(self, name: str, weight: Tensor) -> None:
        if self.keeps:
            self._held_at.setdefault(name, weight.detach().clone())

    def _moved(self, one: Stepped) -> Tensor:
        """The way from where it is held, in float32 or wider; for `zero` it may be the weights themselves."""
        weight = one.weight
        wide = weight.to(_wide(weight))
        return wide - self._held_at[one.name].to(weight) if self.keeps else wide

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Before the optimizer's step."""
        if any(given is not None for given in (*args[1:], kwargs.get("closure"))):
            raise RuntimeError(
                f"weight_projection {self.projection.name} looks at the gradient before the optimizer's step, and step"
                " was given a closure, which makes another; call it without"
            )
        self._waiting = []
        for one in self._ground.stepping():
            self._hold(one.name, one.weight)
            moved = self._moved(one)
            along = torch.dot(one.gradient.to(moved.dtype).flatten(), moved.flatten())
            self._waiting.append((one, along, torch.linalg.vector_norm(moved)))

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """After it."""
        waiting, self._waiting = self._waiting, []
        everywhere = self._everywhere(waiting) if self._ground.sharded else {}
        for one, along, before in waiting:
            moved = self._moved(one)
            numbers = everywhere[one.name] if everywhere else (along, before, torch.linalg.vector_norm(moved))
            one.weight.addcmul_(moved, self.projection.taken_back(*numbers).to(moved), value=-1.0)

    def _everywhere(self, waiting: list[tuple[Stepped, Tensor, Tensor]]) -> dict[str, tuple[Tensor, ...]]:
        """The same three numbers of whole tensors, float64. Collective: this rank may have no part of any."""
        own = {}
        for one, along, before in waiting:
            after = torch.linalg.vector_norm(self._moved(one))
            own[one.name] = torch.stack([along.double(), before.double().square(), after.double().square()])
        summed = self._ground.summed(own, 3)
        return {name: (summed[name][0], *summed[name][1:].sqrt()) for name in own}


def check_projection(projection: Projection | None, optim: Any) -> None:
    """ValueError, before anything is trained, for what a run's weights cannot have."""
    name = str(getattr(optim, "value", optim))
    if projection is not None and name.startswith("schedule_free"):
        raise ValueError(f"weight_projection {projection.name} {SCHEDULE_FREE}; optim is {name!r}")


SCHEDULE_FREE = "moves the weights that train, and a schedule-free optimizer is judged by others; take another one"


def _nothing() -> None:
    """What there is to be done where nothing is kept."""


def _refusal(optimizer: Any) -> str | None:
    """Why an optimizer cannot be followed, None where it can."""
    if optimizer is None:
        return "follows the optimizer's step; give attach the optimizer (None was given)"
    if not has_hooks(optimizer):
        return f"follows the step of a torch.optim.Optimizer; {type(optimizer).__name__} is none"
    if isinstance(optimizer, torch.optim.LBFGS):
        return "follows a step by one gradient, and LBFGS takes several in a step; take another one"
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        return SCHEDULE_FREE
    return None


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
