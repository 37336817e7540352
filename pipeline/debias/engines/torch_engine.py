"""Gradients that live in `p.grad`: one process, or DistributedDataParallel over gloo or nccl."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from debias.engines.adapter_kinds import way_for
from debias.engines.followers import Followers
from debias.engines.grounds import WholeGround
from debias.engines.loop_hook import LoopHook
from debias.engines.marks import Marks
from debias.engines.parameters import (
    Select,
    check_optimizer,
    for_model,
    learning_rates,
    not_head,
    say_unfollowed,
    select_parameters,
)
from debias.engines.reduce import all_reduce_sum, broadcast_first
from debias.engines.rule_state import RuleState, on_the_cpu, rescale
from debias.engines.second_pass import SecondPass
from debias.engines.stacks import Looked, blocks, groups_of_one_shape, stacked
from debias.engines.step import GramSums, StepReport, raise_empty, raise_silent, report
from debias.engines.weight_term import WeightTerm
from debias.engines.wrapping import (
    Guard,
    active_ddp,
    buffers_of,
    by_own_names,
    check_whole,
    ddp_in,
    keep_buffers,
    own_names,
    refuse,
    refuse_options,
    why_lost,
)
from debias.gradients import GradientSource, MicroBatch, Verified, make_source
from debias.masks import Mask
from debias.methods import GRADIENTS, Gram, Rule, Vector, as_rows, gram_of_rows, write_update
from debias.penalties import Penalty
from debias.projections import Projection
from debias.sharpness import Sharpness

logger = logging.getLogger(__name__)


class TorchHook(LoopHook):
    """What `attach` returns: `backward` for each micro-batch, then `step`.

    Order: sum over micro-batches and ranks, divide by the one count, combine by the rule, mask elements, clip, step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        rule: Rule,
        source: GradientSource,
        *,
        select: Select,
        max_grad_norm: float | None,
        max_nonfinite_steps: int,
        sharpness: Sharpness | None = None,
        term: WeightTerm | None = None,
        followers: Followers | None = None,
    ) -> None:
        rates = functools.partial(learning_rates, optimizer, source.selected)
        state = RuleState(rule, source.selected, lambda: source.selected, rates)
        limits: Any = {"max_grad_norm": max_grad_norm, "max_nonfinite_steps": max_nonfinite_steps}
        super().__init__(model, optimizer, state, source, **limits, followers=followers)
        # What trains, looked up once a step: a walk over thousands of modules takes 10 ms and more.
        self._trainable: dict[str, nn.Parameter] = {}
        self._frozen: dict[str, nn.Parameter] = {}
        self._marks = Marks(self._trainable)
        self._select = for_model(select, model)
        self._own_name = own_names(model)
        self._at_attach = {name for name, p in model.named_parameters() if p.requires_grad}
        self._ddp: DistributedDataParallel | None = None
        self._guards = [model.register_forward_pre_hook(Guard(self._meet_wrapper))]
        self._second = None if sharpness is None else SecondPass(model, sharpness)
        self._term = term
        if (ddp := ddp_in(model)) is not None:
            self._join(ddp)

    def _join(self, ddp: DistributedDataParallel) -> None:
        """The sum over ranks is ours, once, for both gradients; DDP must not average main by itself."""
        refuse_options(ddp)
        self._ddp, self._buffers = ddp, buffers_of(ddp)
        if isinstance(self.source, Verified):
            self.source.waits = True
        # Said before every forward, where DDP decides, because leaving a `no_sync` block turns its averaging on again.
        self._guards.append(ddp.register_forward_pre_hook(_no_averaging))

    def _meet_wrapper(self, model: nn.Module, inputs: Any) -> None:
        """A forward pre-hook for the model: DDP may be put around it after `attach`."""
        if getattr(model, "_is_replica", False):
            raise RuntimeError("the model was wrapped in DataParallel after the hook was attached; use torchrun")
        ddp = active_ddp()
        if self._ddp is None and ddp is not None:
            check_whole(self.model, ddp)
            self._join(ddp)
            _no_averaging(ddp, inputs)  # it decides after this forward pass

    def _both(self, batch: MicroBatch) -> None:
        if self._second is None:
            super()._both(batch)
        else:
            self._second.backward(batch, self.source, self._trainable)

    def _after_backward(self) -> None:
        self._marks.take()

    def _takes_part_without(self) -> bool:
        return self._ddp is not None

    def _combined(self) -> StepReport:
        self._check_frozen()
        count = self._reduce(self._trainable)
        self.state.begin()
        sums = self._write_update(1.0 / count)
        if self._term is not None:
            self._term.add()
        norm, measured, mask = self._norm(), False, self._followers.mask
        if mask is not None and math.isfinite(norm):  # of what is not finite nothing is chosen
            gradients = {name: p.grad for name, p in self._trainable.items()}
            measured = mask.apply(gradients, lambda name: torch.zeros_like(self._trainable[name]))
            norm = norm if measured else self._norm()
        return dataclasses.replace(report(sums, 1.0, count, grad_norm=norm), measured=measured)

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self._trainable.values() if p.grad is not None])

    def _clip(self, most: float, norm: float) -> None:
        parameters = [p for p in self._trainable.values() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, most, torch.as_tensor(norm))

    def detach(self) -> None:
        """Leave model, optimizer and DDP wrapper as they were before `attach`."""
        super().detach()
        for guard in self._guards:
            guard.remove()
        if self._second is not None:
            self._second.detach()
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = True
            self._ddp.require_forward_param_sync = True

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Hook.load_state_dict`; of older versions, names may have what a wrapper puts before them."""
        super().load_state_dict(by_own_names(state, self.model))

    def _reduce(self, trainable: Mapping[str, nn.Parameter]) -> float:
        """Sum gradients and counts over the ranks; returns the whole batch's count."""
        used = {name: p.grad is not None and not self._marks.untouched(name) for name, p in trainable.items()}
        silent = {name: used[name] and self._needs_bias(name) and name not in self.source.bias for name in trainable}
        if self._ddp is None:
            raise_silent(self.gradients, [name for name in silent if silent[name]])
            raise_empty(self._count, used=any(used.get(name, False) for name in self.selected))
            self.stops = self.asks_to_stop
            return self._count
        group = self._ddp.process_group
        device = next(iter(trainable.values())).device
        faults = self.source.faults if isinstance(self.source, Verified) else {}
        wrong = [faults.get(name, 0.0) for name in trainable]
        flags = [
            self._count,
            float(self.asks_to_stop),
            *map(float, used.values()),
            *map(float, silent.values()),
            *wrong,
        ]
        seen = torch.tensor(flags, dtype=torch.float64, device=device)
        dist.all_reduce(seen, group=group)
        count, asked, *counts = seen.tolist()
        self.stops = asked > 0
        users, missing, wrong = (counts[start : start + len(used)] for start in range(0, len(counts), len(used)))
        # On every rank, or the others would wait for this one.
        self._hear({name: share for name, share in zip(trainable, wrong, strict=True) if share})
        raise_silent(self.gradients, [name for name, n in zip(trainable, missing, strict=True) if n])
        ever_used = {name for name, n in zip(trainable, users, strict=True) if n}
        raise_empty(count, used=not ever_used.isdisjoint(self.selected))
        # A parameter that only some ranks used has a zero gradient on the others; one that none used has none.
        names = [name for name in trainable if name in ever_used]
        for name in names:
            if trainable[name].grad is None:
                trainable[name].grad = torch.zeros_like(trainable[name])
            if self._needs_bias(name) and name not in self.source.bias:
                self.source.bias[name] = torch.zeros_like(
                    trainable[name], dtype=self.source.bias_dtype(trainable[name])
                )
        mains = [trainable[name].grad for name in names]
        biases = [self.source.bias[name] for name in names if name in self.source.bias]
        all_reduce_sum([g for g in mains if g is not None] + biases, group)
        if self._ddp.broadcast_buffers:
            # As DistributedDataParallel has it in the forward pass after one whose gradients it averaged.
            held = (place.get(name) for place, name in self._buffers)
            broadcast_first([buffer for buffer in held if buffer is not None], group)
        return float(count)

    def _hear(self, faults: Mapping[str, float]) -> None:
        """Some rank found that single_pass is not exact: all of them go another way from the next step on, or raise."""
        if faults and isinstance(self.source, Verified):
            self.source.complain(faults)

    def _needs_bias(self, name: str) -> bool:
        return self.rule.uses_bias and name in self.selected

    def _check(self, *, last: bool) -> None:
        """Both gradients hold the same micro-batches: whoever else writes `p.grad` in between changes main alone."""
        if self._marks.is_fresh:
            self._look_up()
        try:
            self._marks.check(last=last)
        except RuntimeError:
            self._forget()
            raise

    def _look_up(self) -> None:
        """What trains in this step. RuntimeError where the rule should act on it and cannot."""
        whole = dict(self.model.named_parameters())
        self._trainable = {name: p for name, p in whole.items() if p.requires_grad}
        self._marks = Marks(self._trainable)
        self._frozen = {name: p for name, p in whole.items() if not p.requires_grad}
        if lost := why_lost(self.selected, whole, self.model):
            raise RuntimeError(lost)
        new = (name for name in self._trainable if name not in self._at_attach)
        thawed = next((name for name in new if self._select(name, self._trainable[name])), None)
        if thawed is not None:
            raise RuntimeError(
                f"{thawed} trains now and did not when the hook was attached: it would follow main alone; call detach()"
                " and attach again after unfreezing"
            )

    def _check_frozen(self) -> None:
        thawed = next((name for name, p in self._frozen.items() if p.requires_grad), None)
        if thawed is not None:
            self._forget()
            raise RuntimeError(f"{thawed} was unfrozen in the middle of a step; do that between steps")

    def _forget(self) -> None:
        self.source.reset()
        self._ran = False
        self._count = 0.0
        self._marks.forget()
        if self._second is not None:
            self._second.forget()

    def _write_update(self, scale: float) -> GramSums:
        """Turn the sums in `p.grad` into the update; `scale` is one over the whole batch's count."""
        sums = GramSums(self.rule.looks_at)
        looked: list[Looked] = []
        others = []
        for name, p in self._trainable.items():
            if p.grad is not None:
                vectors = self._vectors(name, p.grad)
                if vectors is None:
                    others.append(p.grad)
                else:
                    looked.append((name, vectors))
        for same in groups_of_one_shape(looked):
            self._write_group(same, scale, sums)
        if others:
            torch._foreach_mul_(others, scale)
        return sums

    def _vectors(self, name: str, main: Tensor) -> list[Tensor] | None:
        """What the rule looks at of a parameter; None where it does not act on it."""
        if self.rule.is_plain or name not in self.selected or (self.rule.uses_bias and name not in self.source.bias):
            return None
        gradients = {Vector.MAIN: main, Vector.BIAS: self.source.bias.get(name)}
        found = [gradients[v] if v in GRADIENTS else self.state.vector(v)[name] for v in self.rule.looks_at]
        return [tensor for tensor in found if tensor is not None]

    def _write_group(self, looked: list[Looked], scale: float, sums: GramSums) -> None:
        """Parameters of one shape at once: hundreds of adapter tensors would otherwise be thousands of tiny kernels."""
        names = [name for name, _ in looked]
        sides = list(zip(*(vectors for _, vectors in looked), strict=True))
        vectors_KOI = [stacked([as_rows(tensor) for tensor in side]) for side in sides]
        # Rules see means: the scale goes into the Gram squared and comes back out of the coefficients.
        scales = [scale if vector in GRADIENTS else 1.0 for vector in self.rule.looks_at]
        gram_KOG = rescale(gram_of_rows(*vectors_KOI), scales)
        for part in blocks(gram_KOG):
            gram = Gram.of(gram_KOG[part])
            coefficients = self.state.coefficients(names[part], gram)
            sums.add(names[part], gram, coefficients)
            of_sums = [x_KO * factor for x_KO, factor in zip(coefficients, scales, strict=True)]
            write_update(of_sums, [vector_KOI[part] for vector_KOI in vectors_KOI])
        if vectors_KOI[0].data_ptr() != sides[0][0].data_ptr():  # of a stack, which is a copy
            updates = [main_OI.view_as(grad) for grad, main_OI in zip(sides[0], vectors_KOI[0].unbind(), strict=True)]
            torch._foreach_copy_(list(sides[0]), updates)

    def _saved_name(self, name: str) -> str:
        return self._own_name(name)

    def _whole(self, part: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: on_the_cpu(tensor) for name, tensor in part.items()}

    def _piece(self, name: str, whole: Tensor) -> Tensor:
        return whole


def _no_averaging(ddp: nn.Module, inputs: Any) -> None:
    """A forward pre-hook for DistributedDataParallel: neither gradients nor buffers, which the end of a step sees to.

    A rank may have no sample in a step, and so no forward pass: there is nothing collective in one.
    """
    vars(ddp).update(require_backward_grad_sync=False, require_forward_param_sync=False)


def attach_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    rule: Rule,
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
) -> TorchHook:
    """`debias.attach` for gradients in `p.grad`: one process, or a model in DistributedDataParallel.

    `model` may be wrapped in DistributedDataParallel, before or after. `gradients`: `auto`, `single_pass`,
    `shared_forward` or `two_pass`. `select(name, parameter)` says which trainable tensors the rule acts on (default:
    all but a task head). `max_grad_norm` clips the update in `step`. `verify`: single_pass proves itself. `sharpness`:
    where the gradients are taken. `weight_penalty`: a term of the weights. `gradient_mask`: which elements move.
    `weight_projection`: what is done to weights after the optimizer's step. Raises ValueError when the rule would act
    on nothing, when the optimizer lacks a selected parameter, when `single_pass` is asked for where it is not exact,
    and for what `wrapping.refuse` refuses, with the reason.
    """
    refuse(model, optimizer)
    selected = select_parameters(model, select)
    alone = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if alone and ddp_in(model) is None:
        logger.warning(
            "the model is not in DistributedDataParallel: gradients are not summed over ranks unless it will be"
        )
    check_optimizer(optimizer, rule, selected, model)
    term = None if weight_penalty is None else WeightTerm(model, weight_penalty)
    way = way_for(gradients, model, selected) if rule.uses_bias else gradients
    source = make_source(way, model, selected, bias=rule.uses_bias, verify=verify, asked=gradients)
    if source.name == "shared_forward" or isinstance(source, Verified):  # which may come to it, and compares by it
        keep_buffers()
    followers = Followers(lambda: WholeGround(model, optimizer), gradient_mask, weight_projection)
    follower = weight_projection or (gradient_mask if gradient_mask is not None and gradient_mask.holds else None)
    if follower is not None:
        say_unfollowed(optimizer, model, follower.name)
    return TorchHook(
        model,
        optimizer,
        rule,
        source,
        select=select,
        max_grad_norm=max_grad_norm,
        max_nonfinite_steps=max_nonfinite_steps,
        sharpness=sharpness,
        term=term,
        followers=followers,
    )
