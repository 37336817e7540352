"""Debiased gradients under DeepSpeed, stages 0 to 3. Only the engine that is attached to is touched, never a class.

The main gradient takes the engine's own way: reduced over ranks and micro-batches into the partition that this rank
owns. The bias gradient is brought into the same partition, the two are combined there, and the update is left where the
engine's overflow check, clipping and optimizer see it.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import unregister_external_parameter
from torch import Tensor

from debias.engines.followers import Followers
from debias.engines.hook import Hook
from debias.engines.parameters import whole_shape
from debias.engines.pieces import combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.engines.step import StepReport, check_skipped, raise_empty, raise_silent, report
from debias.engines.zero.homes import Home, at_boundary, forget_fetch_order, left_out
from debias.engines.zero.state import gathered, local_weights, masters_of
from debias.engines.zero.trials import ZeroTrials
from debias.gradients import GradientSource, ProvenSharedForward, SinglePass, Verified
from debias.methods import Rule, Vector

logger = logging.getLogger(__name__)


class ZeroHook(Hook):
    """What `attach` returns for a DeepSpeed engine: `backward` for each micro-batch, then `engine.step()` or `step`.

    Order: sum over micro-batches and ranks, divide by the one count, combine by the rule, then the engine's own clip
    and step.
    """

    def __init__(
        self,
        engine: Any,
        rule: Rule,
        source: GradientSource,
        home: Home,
        *,
        max_nonfinite_steps: int,
        followers: Followers | None = None,
    ) -> None:
        combined = {} if rule.is_plain else source.selected
        masters = functools.cache(lambda: masters_of(engine, home))
        state = RuleState(rule, combined, lambda: local_weights(engine, home, masters(), combined), home.rates)
        super().__init__(engine, state, source, max_nonfinite_steps, followers)
        self.engine = engine
        self.home = home
        self.trainable = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self._taken: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        # Which passes of this step gave a parameter a gradient on this rank, a bit for each.
        self._used: dict[str, int] = {}
        self._passes = 0
        self._running = False
        self._awaiting_step = False
        # Of the plain loss: where every micro-batch is full, the engine's gradient is the mean without a factor.
        self._nominal = 1.0 / (engine.train_micro_batch_size_per_gpu() * engine.gradient_accumulation_steps())
        self._group = group = getattr(engine, "seq_data_parallel_group", None)
        self._world = dist.get_world_size(group)
        self._layout = home.layout(combined)
        self._combined = {name: whole_shape(p) for name, p in combined.items()}
        self._plan = make_plan(self._layout, self._combined, group, engine.device)
        self._undo = [*self._patch_engine(), *self._watch()]
        source.passes = self
        if isinstance(source, Verified | ProvenSharedForward):
            source.trials = ZeroTrials(self)

    @property
    def _takes(self) -> bool:
        """Whether each pass is reduced by itself and taken at once; not the same for all of a run's steps."""
        return self.home.takes_each_pass or self.source.name in {"two_pass", "shared_forward"}

    def _before_backward(self) -> None:
        if self._awaiting_step and self._must_step():
            raise RuntimeError(
                "backward: engine.step() was not called after the last micro-batch (DeepSpeed counts there)"
            )

    def _after_backward(self) -> None:
        self._boundary = self.engine.is_gradient_accumulation_boundary()
        self._awaiting_step = True

    def step(self) -> StepReport | None:
        """`engine.step()`; the report of the optimizer step, None between the micro-batches of one."""
        boundary = self.engine.is_gradient_accumulation_boundary()
        self.engine.step()
        return self.last if boundary else None

    def detach(self) -> None:
        """Leave the engine as it was before `attach`."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self.source.detach()
        self._followers.detach()
        self._forget()

    # The passes of the gradient source: the engine's own backward, and where each one's result goes.

    def main(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """See `debias.gradients.base.Passes`."""
        self.run(loss, alone=self._takes, retain_graph=retain_graph)
        if self._takes:
            self._take(self._taken[0])

    def bias(self, make_loss: Any) -> None:
        """See `debias.gradients.base.Passes`."""
        self.run(make_loss(), alone=True)
        self._take(self._taken[1])

    def run(self, loss: Tensor, *, alone: bool, retain_graph: bool = False) -> None:
        """The engine's backward pass; `alone`: reduced by itself, and not added to what the engine has accumulated."""
        self._running = True
        try:
            if alone:
                self.home.clear()
                self.home.prepare()
                with at_boundary(self.engine):
                    self._backward(loss * self._nominal, retain_graph=retain_graph, scale_wrt_gas=False)
            else:
                self.home.prepare()
                self._backward(loss * self._nominal, retain_graph=retain_graph, scale_wrt_gas=False)
        finally:
            self._running = False
            self._passes += 1

    def forget_passes(self) -> None:
        """Drop what this step's passes gave; the bias gradient is the source's own."""
        self._taken = ({}, {})
        self._used.clear()
        self._passes = 0
        self.home.clear()

    def _take(self, into: dict[str, Tensor]) -> None:
        for name, gradient in self.home.local().items():
            if name in into:
                into[name].add_(gradient)
            else:
                into[name] = gradient.float().clone()

    # At the accumulation boundary.

    def _combine(self) -> StepReport:
        if not self._ran:
            raise RuntimeError("step without a backward before it: there is no gradient to combine")
        local = self.home.local()
        main = self._taken[0] if self._takes else local
        silent = self._silent()
        vectors = self._vectors(main)
        others = [gradient for name, gradient in main.items() if name not in self._layout.pieces]
        used = self._uses()
        seen = float(bool(self._used))
        extras: list[Tensor | float] = [self._count, self._squared(others), self.asks_to_stop, seen]
        extras += [*silent.values(), *used]
        loss_scale = float(getattr(self.engine.optimizer, "loss_scale", 1.0))
        factor: list[float] = []

        def scale_of(summed: list[float]) -> tuple[float, float]:
            flags, codes = summed[4 : 4 + len(silent)], summed[4 + len(silent) :]
            raise_empty(summed[0], used=summed[3] > 0)
            raise_silent(self.gradients, [name for name, n in zip(silent, flags, strict=True) if n])
            self._check_uses(codes)
            factor.append(self._world / (summed[0] * self._nominal))
            return factor[0] / loss_scale, factor[0]

        done = combine_pieces(self._plan, self.state, vectors, extras, scale_of)
        if others and factor[0] != 1.0:
            torch._foreach_mul_(others, factor[0])
        if self._takes:
            for name, gradient in local.items():
                gradient.copy_(main[name])
        squared = done.extras[1] * (factor[0] / loss_scale) ** 2
        made = self._masked(report(done.sums, 1.0, done.extras[0], others=squared), local, 1.0 / loss_scale)
        self.home.written()
        self.stops = done.extras[2] > 0
        return made

    def _masked(self, made: StepReport, local: Mapping[str, Tensor], unit: float) -> StepReport:
        """The report of a step whose update is left where a `gradient_mask` has it, if there is one. Collective."""
        mask = self._followers.mask
        if mask is None or not made.finite or self._overflows(local):  # of what is not finite nothing is chosen
            return made
        of_none = torch.zeros(0, device=self.engine.device)
        gradients: dict[str, Tensor | None] = {name: local.get(name, of_none) for name in self.trainable}
        if mask.apply(gradients, lambda name: of_none, unit):
            return dataclasses.replace(made, measured=True)
        squared = torch.as_tensor(self._squared(list(local.values())), device=self.engine.device)
        dist.all_reduce(squared, group=self._group)
        return dataclasses.replace(made, grad_norm=float(squared) ** 0.5 * unit)

    def _overflows(self, local: Mapping[str, Tensor]) -> bool:
        """Whether an update that was finite no longer is, in the narrower type in which it is left to the engine's own
        check. Collective.
        """
        sizes = [one.abs().amax().float() for one in local.values() if one.numel()]
        largest = torch.stack(sizes).amax() if sizes else torch.zeros((), device=self.engine.device)
        bad = (~largest.isfinite()).float().to(self.engine.device)
        dist.all_reduce(bad, group=self._group)
        return bool(bad > 0)

    def _vectors(self, main: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """This rank's pieces of what the rule looks at, in its order, each where main's piece lies."""
        self.state.begin()
        found: dict[Vector, Mapping[str, Tensor]] = {Vector.MAIN: main, Vector.BIAS: self._bias_pieces(main)}
        for vector in self.rule.looks_at:
            if vector not in found:
                moved = self.state.vector(vector)
                found[vector] = {name: moved[name].to(main[name].device) for name in self._layout.pieces}
        return [found[vector] for vector in self.rule.looks_at]

    def _bias_pieces(self, main: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's pieces of the mean bias gradient, each where main's piece lies."""
        if not self.rule.uses_bias:
            return {}
        if self._takes and self.source.name != SinglePass.name:
            taken = self._taken[1]
            return {
                name: taken[name] if name in taken else torch.zeros_like(main[name]) for name in self._layout.pieces
            }
        pieces = self._layout.reduce(self.source.bias, self.engine.device)
        self.source.reset()
        return {name: piece.div_(self._world).to(main[name].device) for name, piece in pieces.items()}

    def _squared(self, tensors: Sequence[Tensor]) -> Tensor | float:
        if not tensors:
            return 0.0
        total = torch.stack([t.double().square().sum() for t in tensors]).sum()
        return total if self._layout.sharded else total / self._world

    def _silent(self) -> dict[str, float]:
        """single_pass: parameters that got a main gradient on this rank, and no bias gradient."""
        if self.source.name != SinglePass.name:
            return {}
        return {name: float(name in self._used and name not in self.source.bias) for name in self.selected}

    def _uses(self) -> list[float]:
        """For each selected parameter the passes that gave it a gradient, as a number, then the squares of these."""
        if int(self.engine.zero_optimization_stage()) == 0:
            return []
        codes = [float(self._used.get(name, 0)) for name in self.selected]
        return [*codes, *(code**2 for code in codes)]

    def _check_uses(self, summed: list[float]) -> None:
        """RuntimeError, on every rank, where ranks used different layers: DeepSpeed then adds up different parameters.

        Equal numbers on W ranks are the only ones with `W * sum of squares = square of the sum`.
        """
        half = len(summed) // 2
        for name, total, squares in zip(self.selected, summed[:half], summed[half:], strict=False):
            if self._world * squares != total**2:
                raise RuntimeError(
                    f"{name} got a gradient on some ranks and none on others in the same micro-batch: stage"
                    f" {self.engine.zero_optimization_stage()} of DeepSpeed then reduces wrongly, without a word; use"
                    " stage 0 or DistributedDataParallel, or a model that uses the same layers on every rank"
                )

    # What is changed on the engine's instance, and how it is put back.

    def _patch_engine(self) -> list[Any]:
        engine = self.engine
        self._backward, self._step = engine.backward, engine.step
        undo = [_replace(engine, "backward", self._refuse_backward), _replace(engine, "step", self._engine_step)]
        optimizer = engine.optimizer
        if not _finds_nonfinite(optimizer):
            undo.append(_replace(optimizer, "check_grad_overflow", True))  # or it would step on NaN
        if isinstance(self.source, SinglePass) and engine.zero_optimization_partition_weights():
            undo.append(functools.partial(forget_fetch_order, engine))
            for layer, parameters in self.source.borrowed.items():
                known = dict(getattr(layer, "_external_params", {}))  # DeepSpeed registers what it sees read
                for parameter in (p for p in parameters if id(p) not in known):
                    deepspeed.zero.register_external_parameter(layer, parameter)
                    undo.append(functools.partial(unregister_external_parameter, layer, parameter))
            forget_fetch_order(engine)
        return undo

    def _watch(self) -> list[Any]:
        def used(name: str, _: Tensor) -> None:
            # Stage 1 reduces once a step; the others after each pass. With 8 bits the sums below are exact in float64
            # on a hundred thousand ranks.
            each = int(self.engine.zero_optimization_stage()) >= 2 or self._takes
            self._used[name] = self._used.get(name, 0) | 1 << (self._passes % 8 if each else 0)

        hooks = [
            p.register_post_accumulate_grad_hook(functools.partial(used, name)) for name, p in self.selected.items()
        ]
        return [hook.remove for hook in hooks]

    def _refuse_backward(self, *args: Any, **kwargs: Any) -> Any:
        if self._running:
            return self._backward(*args, **kwargs)
        raise RuntimeError("engine.backward beside the hook: only main would get this gradient; call hook.backward")

    def _must_step(self) -> bool:
        """Whoever sets the boundary by hand (accelerate) steps there alone; everybody else after each micro-batch."""
        return self._boundary or self.engine._is_gradient_accumulation_boundary is None

    def _engine_step(self, *args: Any, **kwargs: Any) -> Any:
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary:
            self.last = self._combine()
            if not self.last.finite:
                self.home.skip()
        elif not self._awaiting_step:
            raise RuntimeError("step without a backward before it: there is no gradient to combine")
        skipped = self.engine.skipped_steps
        measured = boundary and self.last is not None and self.last.measured
        with left_out(self.engine) if measured else contextlib.nullcontext():
            result = self._step(*args, **kwargs)
        self._awaiting_step = False
        if boundary:
            self.measured += measured
            # The engine's own check may find an overflow in the update's narrower type where our sums had none.
            taken = self.last is not None and self.last.finite and self.engine.skipped_steps == skipped
            self._settle(taken=taken and not measured)
            self._forget()
            self._count_skipped()
        return result

    def _settle(self, *, taken: bool) -> None:
        if taken:
            self.state.keep()
        else:
            self.state.drop()

    def _whole(self, part: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return gathered(part, self._layout, self._combined, self.engine)

    def _piece(self, name: str, whole: Tensor) -> Tensor:
        piece = self._layout.pieces[name]
        return whole.reshape(-1)[piece.start : piece.stop]

    def _count_skipped(self) -> None:
        assert self.last is not None
        if not self.last.finite:
            self.skipped += 1
            # A dynamic loss scale finds its size by overflowing.
            searching = self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()
            check_skipped(self.skipped, self.skipped if searching else self.max_nonfinite_steps)

    def _forget(self) -> None:
        self.source.reset()
        self._count = 0.0
        self._ran = False
        self._awaiting_step = False
        self.forget_passes()


def _finds_nonfinite(optimizer: Any) -> bool:
    """Whether this optimizer skips a step whose gradients are not finite, by a check of its own or by their norm."""
    if getattr(optimizer, "check_grad_overflow", True):
        return True
    return getattr(optimizer, "dtype", None) != torch.bfloat16 and getattr(optimizer, "compute_grad_norm", True)


def _replace(owner: Any, name: str, value: Any) -> Any:
    """Set an attribute of this instance; returns what puts back what the instance had (or had not)."""
    before = vars(owner).get(name)
    had = name in vars(owner)
    setattr(owner, name, value)
    return functools.partial(setattr, owner, name, before) if had else functools.partial(delattr, owner, name)
