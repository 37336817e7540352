"""Debiased gradients of an FSDP2 model.

The main gradient takes FSDP's own way: each backward pass is averaged over the ranks, and this rank keeps its rows. The
bias gradient is brought to the same rows, the row sums are made whole by one all-reduce, and the update is left in
`p.grad`, where the optimizer sees it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from debias.engines.followers import Followers
from debias.engines.fsdp.ground import FsdpGround
from debias.engines.fsdp.shards import fsdp_modules, local, sync_each_pass, whole, whole_parameters
from debias.engines.layout import ByRows
from debias.engines.loop_hook import LoopHook
from debias.engines.marks import Marks
from debias.engines.parameters import learning_rates
from debias.engines.pieces import combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.engines.step import StepReport, raise_empty, raise_silent, report
from debias.gradients import GradientSource, ProvenSharedForward, SinglePass, Verified
from debias.gradients.trials import NOBODY, Watch, leaves_of, spared
from debias.masks import Mask
from debias.methods import Rule, Vector
from debias.projections import Projection


class FsdpHook(LoopHook):
    """What `attach` returns for a model that `fully_shard` was called on: `backward` for each micro-batch, then `step`.

    Order: sum over micro-batches and ranks, divide by the one count, combine by the rule, clip, step. All ranks run
    every micro-batch, as FSDP itself needs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        rule: Rule,
        source: GradientSource,
        *,
        max_grad_norm: float | None,
        max_nonfinite_steps: int,
        gradient_mask: Mask | None = None,
        weight_projection: Projection | None = None,
    ) -> None:
        # Held from now on: between a forward and a backward pass the model holds whole parameters in their place.
        self._held = dict(model.named_parameters())
        self._trainable: dict[str, Any] = {name: p for name, p in self._held.items() if p.requires_grad}
        combined = {} if rule.is_plain else source.selected
        self._modules = fsdp_modules(model)
        mesh = next(iter(self._trainable.values())).device_mesh
        shapes = {name: p.shape for name, p in combined.items()}
        self._world, self._group = mesh.size(), mesh.get_group()
        self._layout, of_all = (
            ByRows(some, mesh.get_local_rank(), self._world, self._group)
            for some in (shapes, {name: p.shape for name, p in self._trainable.items()})
        )
        self._device = next(iter(self._trainable.values())).to_local().device
        self._plan = make_plan(self._layout, shapes, self._group, self._device)
        state = RuleState(rule, combined, self._weights, lambda: learning_rates(optimizer, source.selected))
        limits: Any = {"max_grad_norm": max_grad_norm, "max_nonfinite_steps": max_nonfinite_steps}
        ground = functools.partial(FsdpGround, model, optimizer, self._trainable, of_all)
        followers = Followers(ground, gradient_mask, weight_projection)
        super().__init__(model, optimizer, state, source, **limits, followers=followers)
        self._marks = Marks(self._trainable)
        source.passes = self
        if isinstance(source, Verified | ProvenSharedForward):
            source.trials = self

    def _clip(self, most: float, norm: float) -> None:
        if norm > most:
            torch._foreach_mul_(list(self._mains().values()), most / (norm + 1e-6))

    # The passes of the gradient source.

    def main(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """See `debias.gradients.base.Passes`."""
        # What waits unreduced for a later pass would be added to whichever gradient comes next.
        sync_each_pass(self._modules)
        loss.backward(retain_graph=retain_graph)

    def bias(self, make_loss: Callable[[], Tensor]) -> None:
        """See `debias.gradients.base.Passes`."""
        with spared(self._trainable.values()):
            for name, p in self.selected.items():
                p.grad = self.source.bias.get(name)
            self.main(make_loss())
            self.source.bias = {name: p.grad for name, p in self.selected.items() if p.grad is not None}

    # See `debias.gradients.trials.Trials`.

    lockstep = True

    def aside(self, loss: Tensor, watch: Watch = NOBODY) -> None:
        """See `Trials`."""
        with spared([*leaves_of(loss, ()), *self._trainable.values()]), watch:
            self.main(loss, retain_graph=True)

    def leaves(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """See `Trials`."""
        return whole_parameters(self.model, parameters)

    def agree(self, numbers: Tensor) -> Tensor:
        """See `Trials`."""
        everywhere = numbers.to(self._device)
        dist.all_reduce(everywhere, group=self._group)
        return everywhere.cpu()

    def _refuse_strangers(self, loss_B: Tensor) -> None:
        """Autograd's leaves are the gathered parameters here, none of them the model's; the optimizer was looked at."""

    # At the end of a step.

    def _combined(self) -> StepReport:
        mains = self._mains()
        vectors = self._vectors(mains)
        others = [main for name, main in mains.items() if name not in self._combined_names]
        silent, used = self._silent(), [float(self._got(name)) for name in self._trainable]
        seen = float(any(p.grad is not None for p in self.selected.values()))
        squared = torch.stack([main.double().square().sum() for main in others]).sum() if others else 0.0
        extras: list[Tensor | float] = [self._count, squared, float(self.asks_to_stop), seen]
        extras += [*silent.values(), *used]
        factor: list[float] = []

        def scale_of(summed: list[float]) -> tuple[float, float]:
            flags, uses = summed[4 : 4 + len(silent)], summed[4 + len(silent) :]
            raise_empty(summed[0], used=summed[3] > 0)
            raise_silent(self.gradients, [name for name, n in zip(silent, flags, strict=True) if n])
            self._check_uses(uses)
            factor.append(self._world / summed[0])  # FSDP's are means over the ranks
            return factor[0], factor[0]

        done = combine_pieces(self._plan, self.state, vectors, extras, scale_of)
        if others:
            torch._foreach_mul_(others, factor[0])
        self.stops = done.extras[2] > 0
        return self._masked(report(done.sums, 1.0, done.extras[0], others=done.extras[1] * factor[0] ** 2))

    def _masked(self, made: StepReport) -> StepReport:
        """The report of a step whose update is left where a `gradient_mask` has it, if there is one. Collective."""
        mask = self._followers.mask
        if mask is None or not made.finite:  # of what is not finite nothing is chosen
            return made
        mains = self._mains()
        rows = {name: mains.get(name) for name in self._trainable}
        if mask.apply(rows, lambda name: torch.zeros_like(local(self._trainable[name]))):
            return dataclasses.replace(made, measured=True)
        squared = sum((main.double().square().sum() for main in mains.values()), torch.zeros((), dtype=torch.float64))
        squared = squared.to(self._device)
        dist.all_reduce(squared, group=self._group)
        return dataclasses.replace(made, grad_norm=float(squared) ** 0.5)

    def _mains(self) -> dict[str, Tensor]:
        """This rank's rows of the main gradients that there are, flat, where the optimizer reads them."""
        return {name: local(p.grad) for name, p in self._trainable.items() if p.grad is not None}

    @property
    def _combined_names(self) -> Mapping[str, Any]:
        return {} if self.rule.is_plain else self.selected

    def _vectors(self, mains: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """This rank's pieces of what the rule looks at, in its order; zeros of what this step did not use."""
        self.state.begin()
        names = self._layout.pieces
        zeros = {name: torch.zeros_like(local(self._trainable[name])) for name in names if name not in mains}
        found: dict[Vector, Mapping[str, Tensor]] = {Vector.MAIN: {**mains, **zeros}}
        if self.rule.uses_bias:
            found[Vector.BIAS] = self._bias_pieces(found[Vector.MAIN])
        return [found[v] if v in found else self.state.vector(v) for v in self.rule.looks_at]

    def _bias_pieces(self, main: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows of the mean over ranks of the bias gradients."""
        bias = self.source.bias
        if self.source.name == SinglePass.name:  # each rank's own sum, whole
            pieces = self._layout.reduce(bias, self._device)
            return {name: piece.div_(self._world) for name, piece in pieces.items()}
        return {n: local(bias[n]) if n in bias else torch.zeros_like(main[n]) for n in self._layout.pieces}

    def _silent(self) -> dict[str, float]:
        """single_pass: parameters that got a main gradient, and no bias gradient on this rank."""
        if self.source.name != SinglePass.name:
            return {}
        bias = self.source.bias
        return {name: float(self._got(name) and name not in bias) for name in self.selected}

    def _got(self, name: str) -> bool:
        """Whether a parameter got a gradient in this step."""
        return self._trainable[name].grad is not None and not self._marks.untouched(name)

    def _check_uses(self, users: Sequence[float]) -> None:
        """RuntimeError, on every rank, where ranks used different layers: FSDP adds up different parameters then."""
        for name, count in zip(self._trainable, users, strict=True):
            if count not in (0, self._world):
                raise RuntimeError(
                    f"{name} got a gradient on {count:g} of {self._world} ranks: FSDP2 then adds up gradients of"
                    " different parameters; use DistributedDataParallel, or a model that uses the same layers on every"
                    " rank"
                )

    # What a micro-batch must find.

    def _check(self, *, last: bool) -> None:
        try:
            self._marks.check(last=last)
            self._check_trained()
        except RuntimeError:
            self._forget()
            raise

    def _check_trained(self) -> None:
        odd = next((name for name, p in self._held.items() if p.requires_grad != (name in self._trainable)), None)
        if odd is not None:
            raise RuntimeError(f"{odd} was frozen or unfrozen after the hook was attached; call detach(), attach again")

    def _after_backward(self) -> None:
        self._marks.take()

    def _forget(self) -> None:
        self.source.reset()
        self._ran = False
        self._count = 0.0
        self._marks.forget()

    # What a rule keeps.

    def _weights(self) -> dict[str, Tensor]:
        return {name: local(self._trainable[name]) for name in self._layout.pieces}

    def _whole(self, part: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        nothing = torch.zeros(0, device=self._device)
        names = self._combined_names
        return {name: whole(self._trainable[name], part.get(name, nothing)).to("cpu", copy=True) for name in names}

    def _piece(self, name: str, whole: Tensor) -> Tensor:
        piece = self._layout.pieces[name]
        return whole.reshape(-1)[piece.start : piece.stop]
