"""What the hooks have whose updates are left in `p.grad`, for a loop, or an optimizer, that steps by them."""

from collections.abc import Mapping
from typing import Any

import torch

from debias.engines.followers import Followers
from debias.engines.hook import Hook
from debias.engines.parameters import check_optimizer
from debias.engines.rule_state import RuleState
from debias.engines.step import StepReport, check_skipped
from debias.engines.wrapping import before_each_step, refuse_scaled_step, step_goes_on
from debias.gradients import GradientSource


class LoopHook(Hook):
    """`backward` for each micro-batch, then `step`; or `combine`, where somebody else clips and steps."""

    _trainable: Mapping[str, Any]  # what trains, by name; sharded or whole

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer | None,
        state: RuleState,
        source: GradientSource,
        *,
        max_grad_norm: float | None,
        max_nonfinite_steps: int,
        followers: Followers | None = None,
    ) -> None:
        super().__init__(model, state, source, max_nonfinite_steps, followers)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self._known = _held_by(optimizer)
        self._waits = False  # whether an update lies in `p.grad` for an optimizer that has not stepped yet
        self._ends = [] if optimizer is None else before_each_step(optimizer, self._check_stepper)

    def detach(self) -> None:
        """Leave model and optimizer as they were before `attach`."""
        self.source.detach()
        self._followers.detach()
        for end in self._ends:
            end()
        self._ends = []

    def _check_stepper(self) -> None:
        """Before the optimizer steps: RuntimeError where a loss scaler does it, which has divided the update."""
        waits, self._waits = self._waits, False
        if waits:
            refuse_scaled_step()

    def _before_backward(self) -> None:
        if self._known != (held := _held_by(self.optimizer)):  # a parameter group was added since
            check_optimizer(self.optimizer, self.rule, {}, self.model)
            self._known, self._met = held, False
        self._check(last=False)

    def _check(self, *, last: bool) -> None:
        """RuntimeError where gradients or parameters are not what they were; `last`: nothing of the step follows."""
        raise NotImplementedError

    def combine(self) -> StepReport:
        """Reduce, combine, and leave the update in `p.grad`, or no gradient where it is not finite or only measured.

        For loops in which somebody else clips and steps. Collective. Raises RuntimeError without a `backward` before
        it, and NonFiniteGradients after too many skipped steps.
        """
        if step_goes_on(self.optimizer):
            raise RuntimeError(
                "combine() inside Accelerate's accumulate(), before its last micro-batch; call it only where"
                " accelerator.sync_gradients is true, or leave all to step()"
            )
        if not self._ran and not self._takes_part_without():
            raise RuntimeError("step without a backward before it: there is no gradient to combine")
        self._check(last=True)
        self.last = self._combined()
        self._forget()
        self._waits = self.last.finite and not self.last.measured
        if self._waits:
            self.state.keep()
        elif self.last.measured:
            self.measured += 1
            self.state.drop()
            self._clear()
        else:
            self.skipped += 1
            self.state.drop()
            self._clear()
            check_skipped(self.skipped, self.max_nonfinite_steps)
        return self.last

    def step(self) -> StepReport | None:
        """Combine, clip to `max_grad_norm`, step the optimizer where there is an update, clear the gradients.

        Inside Accelerate's `accumulate()` it may stand in every micro-batch, as `optimizer.step()` does: before the
        last one of a step it does nothing and returns None.
        """
        if self.optimizer is None:
            raise RuntimeError("step: this hook was attached without an optimizer; call combine() and step it yourself")
        if step_goes_on(self.optimizer):
            return None
        done = self.combine()
        if done.finite and not done.measured:
            if self.max_grad_norm:
                self._clip(self.max_grad_norm, done.grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # What trains but is not the optimizer's would pile up, and count in the next norm.
        self._clear()
        return done

    def _takes_part_without(self) -> bool:
        """Whether a rank without samples may step: the others would wait for it."""
        return False

    def _combined(self) -> StepReport:
        """Write the update in `p.grad`, and say what it is."""
        raise NotImplementedError

    def _clip(self, most: float, norm: float) -> None:
        """Scale the update, whose norm is `norm`, to a norm of at most `most`."""
        raise NotImplementedError

    def _clear(self) -> None:
        for p in self._trainable.values():
            p.grad = None


def _held_by(optimizer: Any) -> int:
    """How many parameters an optimizer has."""
    return 0 if optimizer is None else sum(len(group["params"]) for group in optimizer.param_groups)
