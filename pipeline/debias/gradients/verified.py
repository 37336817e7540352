"""single_pass that proves itself in every run, and what takes its place where it cannot. Shapes: B samples.

Its first micro-batch is looked at, the first of the eighth step (a fresh LoRA's B is zero, so that nothing reaches A
before), of the 64th, 512th and 4096th (samples may be mixed at times, or from some step on), and, where ranks need not
wait for each other, one whose layers see shapes that were not seen yet or whose dimensions are equal by chance. A look
costs two more backward passes; `proof` says what is compared, and `again` what a graph is that cannot be looked at.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from debias.gradients.again import CURE, WHY, OnceOnly, Prints, ProvenSharedForward, agreed, differ
from debias.gradients.base import GradientSource, MicroBatch, SharedForward, TwoPass
from debias.gradients.proof import Comparison, Trial, Verdict, powers_of_two
from debias.gradients.samples import NotExact
from debias.gradients.single_pass import SinglePass, hooked
from debias.gradients.taps import Rows
from debias.gradients.trials import LocalTrials, Trials, unchanged

logger = logging.getLogger(__name__)

# The steps whose first micro-batch is looked at, and after how many looks no other is: with LoRA a look costs as much
# as a step, or less.
STEPS, MOST_LOOKS = (1, 8, 64, 512, 4096), 3

# How many dimensions a layer's input has, which of them equal B, whether B is more than one, whether samples are first.
Kind = tuple[int, tuple[int, ...], bool, bool]


class Verified(SinglePass):
    """`SinglePass` that compares its bias gradient with an ordinary backward pass.

    Where they differ by more than rounding, the way `slower` takes over for the rest of the run, and `name` is its
    name; without one (single_pass was asked for by name) NotExact is raised. `waits`: a fault is kept in `faults`
    as well, for an engine whose ranks learn of it together at the end of the step and call `complain`.
    """

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter], slower: str | None = None) -> None:
        super().__init__(model, selected)
        self.trials: Trials = LocalTrials(self)
        self.waits = False
        self.faults: dict[str, float] = {}
        self._slower = slower
        self._instead: GradientSource | None = None
        self._looks, self._step, self._unsure = 0, 1, False
        self._began = False  # whether there was a micro-batch in this step
        self._runs_again = False  # whether a graph of this model was seen to give the same gradients twice
        # Inputs of the layers since the last backward pass, and the kinds of inputs at which they were compared.
        self._seen: dict[tuple[tuple[int, ...], Rows], set[str]] = {}
        self._proven: dict[Kind, set[str]] = {}

    def see(self, name: str, leading: tuple[int, ...], rows: Rows) -> None:
        self._seen.setdefault((leading, rows), set()).add(name)

    def backward(self, batch: MicroBatch) -> None:
        try:
            if self._instead is None and (reason := self._cannot(batch)):
                self._refused(reason)
            if self._instead is not None:
                self._otherwise(batch)
            elif self._is_due(batch):
                self._look(batch)
            else:
                super().backward(batch)
        finally:
            self._seen.clear()
            self._began = True

    def reset(self) -> None:
        super().reset()
        self._step += self._began
        self._began = False

    def complain(self, faults: Mapping[str, float]) -> None:
        """Some rank found these: take the slower way on every rank, or raise NotExact on every rank."""
        self.faults = {}
        self._refused(describe(faults))

    def _found(self, faults: Mapping[str, float], reason: str) -> None:
        if self.waits:
            self.faults = dict(faults)
        if self._slower is not None or not self.waits:
            self._refused(reason)
        else:
            self._instead = SharedForward(self.model, self.selected)  # until the step, where all ranks raise

    def _refused(self, reason: str) -> None:
        """The way is changed, or NotExact raised."""
        if self._slower is None:
            raise NotExact(f"gradients 'single_pass' is not exact here: {reason}; use auto or shared_forward")
        if self._instead is None:
            logger.warning("gradients: auto falls back to %s; single_pass is not exact here: %s", self._slower, reason)
            self._go(self._slow_way(self._slower))

    # What takes its place.

    def _slow_way(self, name: str) -> GradientSource:
        if name == TwoPass.name:
            return TwoPass(self.model, self.selected)
        if self._runs_again:
            return SharedForward(self.model, self.selected)
        proven = ProvenSharedForward(self.model, self.selected, may_change=True)
        proven.trials = self.trials
        return proven

    def _go(self, way: GradientSource) -> None:
        self._instead = way
        self.name = way.name  # type: ignore[misc]  # of this instance, from now on

    def _runs_once(self) -> None:
        """A graph of this model is garbage when it is run again, and so was the comparison."""
        if self._slower is None:
            raise NotExact(f"gradients 'single_pass' cannot be proven here: {WHY}; use auto or two_pass, or {CURE}")
        logger.warning("gradients: auto falls back to two_pass; %s", WHY)
        self._go(OnceOnly(self.model, self.selected))

    def _otherwise(self, batch: MicroBatch) -> None:
        """The bias gradient stays in the type that other ranks, and this step so far, keep it in."""
        assert self._instead is not None
        self._instead.passes = self.passes
        self.bias = {name: gradient.to(self.selected[name].dtype) for name, gradient in self.bias.items()}
        try:
            self._instead.backward(batch)
            if self._slower is not None:
                self._go(self._instead)  # which may itself have changed its way
        finally:
            self.bias = {name: g.to(self.bias_dtype(self.selected[name])) for name, g in self.bias.items()}

    # When to look.

    def _cannot(self, batch: MicroBatch) -> str | None:
        """What is known without a backward pass."""
        if self.trials.lockstep and self._began:
            return None  # in the middle of a step the engine cannot change its way
        if batch.batch_loss is not None and self._slower is not None:
            return "a loss of the whole batch (batch_loss) must stay out of the bias gradient"
        return hooked(self.selected)

    def _is_due(self, batch: MicroBatch) -> bool:
        if batch.batch_loss is not None:
            return False  # an error, and nothing to measure
        first = not self._began
        if first and (self._step in STEPS or (self._unsure and self._looks < MOST_LOOKS)):
            return True
        if self.trials.lockstep:
            return False  # what this rank sees, another may not
        new = [kind for kind, names in self._kinds(batch).items() if not names <= self._proven.get(kind, set())]
        fits = all(kind[-1] for kind in new)
        return bool(new) and (self._looks < MOST_LOOKS or not fits)

    def _kinds(self, batch: MicroBatch) -> dict[Kind, set[str]]:
        """The kinds of inputs that layers had in this micro-batch's forward pass."""
        samples = len(batch.weight_B)
        trial = Trial(batch.weight_B, batch.sample_index)
        found: dict[Kind, set[str]] = {}
        for (leading, rows), names in self._seen.items():
            equal = tuple(place for place, size in enumerate(leading[1:], 1) if size == samples)
            fits = trial.of(leading, rows, None) is not None
            found.setdefault((len(leading), equal, samples > 1, fits), set()).update(names)
        return found

    # How to look.

    def _look(self, batch: MicroBatch) -> None:
        """Two trials, then the step's own backward pass, which frees the graph as it always does: to keep it would hold
        this step's activations beside the next one's.
        """
        self._looks += 1
        kinds = self._kinds(batch)
        trial, left = self._try(batch)
        first = Prints(left)  # of a graph that nobody has run: right, whatever the kernels in it do
        comparison = Comparison(left, trial.dtypes | {p.dtype for p in self.selected.values()})
        with unchanged(self.model):
            self.trials.aside(batch.main_loss(), comparison.watch(self.trials.leaves(self.selected)))
        verdict = self._agree(comparison.verdict(list(self.selected)), trial.complaints)
        self._unsure = not verdict.sure
        if verdict.faults:
            # A look at that trial again tells whether it is single_pass that is wrong, or the graph that is worn out.
            worn_out = agreed(self.trials, differ(first, Prints(self._try(batch)[1])))
            if worn_out:
                self.faults = dict(verdict.faults) if self.waits else {}
                self._runs_once()
                self._otherwise(batch)
                return
            self._runs_again = worn_out is False
            self._found(verdict.faults, next(iter(trial.complaints.values()), describe(verdict.faults)))
            self._otherwise(batch)
            return
        if verdict.sure:
            for kind, names in kinds.items():
                self._proven.setdefault(kind, set()).update(names)
            logger.info(
                "gradients: single_pass agrees with an ordinary backward pass to %.1e (%s; up to %.1e is rounding)",
                *verdict.worst,
                verdict.allowed,
            )
        super().backward(batch)

    def _try(self, batch: MicroBatch) -> tuple[Trial, dict[str, Tensor]]:
        """What the layers leave as a bias gradient that should be main; nothing else has changed."""
        scale_B = powers_of_two(len(batch.weight_B), batch.weight_B)
        trial = Trial(1 / scale_B, batch.sample_index)
        kept, self.bias = self.bias, {}
        self.weights = trial
        try:
            with unchanged(self.model):
                self.trials.aside((scale_B * batch.loss_B).sum())
            return trial, self.bias
        finally:
            self.weights, self.bias = None, kept

    def _agree(self, verdict: Verdict, complaints: Mapping[str, str]) -> Verdict:
        """The verdict of all ranks that look at once: what one of them finds, all of them have found."""
        shares = {**dict.fromkeys(self.selected, 0.0), **verdict.faults, **dict.fromkeys(complaints, math.inf)}
        own = torch.tensor([*shares.values(), float(not verdict.sure)], dtype=torch.float64)
        *found, unsure = self.trials.agree(own).tolist()
        faults = {name: share for name, share in zip(shares, found, strict=True) if share}
        return replace(verdict, faults=faults, sure=not unsure)


def describe(faults: Mapping[str, float]) -> str:
    """One line about the parameter that is furthest off."""
    name = max(faults, key=lambda one: faults[one])
    more = f" (and {len(faults) - 1} others)" if len(faults) > 1 else ""
    if math.isinf(faults[name]):
        return (
            f"{name}{more} got a main gradient and no bias gradient (its layer's weight was used without calling the"
            " layer, or on rows that are not the samples)"
        )
    return (
        f"the bias gradient of {name}{more} is off by {faults[name]:.1%} from an ordinary backward pass of the weighted"
        " loss: samples mix or change places in the model, or loss_B reads the parameter beside its layer's call"
    )
