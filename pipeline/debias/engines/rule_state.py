"""What a rule sees of a parameter beside the gradients of a step, and what it keeps from one step to the next.

Tensors are kept where the engine keeps the gradients they go with: whole, or the piece that this rank owns. The memory
is a few numbers a tensor, the same on every rank. Shapes: K parameters of one shape, S numbers of memory, G products.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from debias.methods import GRADIENTS, Gram, Rule, StepFacts, Vector, pairs_of, seen

Named = Mapping[str, Tensor]

START, BEFORE, MEMORY = "start", "moved_before", "memory"


class RuleState:
    """The memory of each tensor, theta_0, and how far the weights had moved at the step before; by parameter's name.

    `weights()` are the weights now, float32 or wider pieces; asked only if the rule looks at how far they moved.
    `rates()` are the learning rates of this step; asked only if the rule has memory and reads them. For each step:
    `begin`, then `coefficients` for all parameters, then `keep` or, if it was skipped, `drop`.
    """

    def __init__(
        self, rule: Rule, names: Iterable[str], weights: Callable[[], Named], rates: Callable[[], Mapping[str, float]]
    ) -> None:
        self.rule = rule
        self.steps = 0
        self._weights, self._rates = weights, rates
        # By the rule and not by what is here: a rank may own nothing, and takes part in what is collective.
        self._moves, self._remembers = not GRADIENTS.issuperset(rule.looks_at), Vector.MOVED_BEFORE in rule.looks_at
        found = weights() if self._moves else {}
        self.start = {name: weight.detach().to(_wide(weight), copy=True) for name, weight in found.items()}
        self.before = {name: torch.zeros_like(start) for name, start in self.start.items() if self._remembers}
        zeros = torch.zeros(rule.memory, dtype=torch.float64)
        self.memory = {name: zeros for name in names} if rule.memory else {}
        self._next: dict[str, Tensor] = {}
        self._moved: dict[str, Tensor] = {}
        self._rate: Mapping[str, float] = {}

    def begin(self) -> None:
        """Look at the weights and learning rates of this step; collective where the engine has to gather weights."""
        self._next = {}
        if self._moves:
            self._moved = {name: weight.detach() - self.start[name] for name, weight in self._weights().items()}
        if self.memory:
            self._rate = self._rates() if self.rule.reads_rate else dict.fromkeys(self.memory, 0.0)

    def vector(self, vector: Vector) -> Named:
        """MOVED or MOVED_BEFORE of every parameter, in this step."""
        return self._moved if vector is Vector.MOVED else self.before

    def coefficients(self, names: Sequence[str], gram: Gram) -> tuple[Tensor, ...]:
        """The rule's coefficients [K, O] of parameters of one shape; what they will remember is set aside."""
        gram = seen(gram)
        if not self.memory:
            return self.rule.coefficients(gram)
        device = gram.rows_OG.device
        memory_KS = torch.stack([self.memory[name].to(device) for name in names])
        rate_K = torch.tensor([self._rate[name] for name in names], dtype=torch.float64, device=device)
        coefficients, memory_KS = self.rule.advance(gram, memory_KS, StepFacts(self.steps + 1, rate_K))
        self._next.update(zip(names, memory_KS.unbind(), strict=True))
        return coefficients

    def keep(self) -> None:
        """The step is taken: what it was to be remembered for is now what was before."""
        self.steps += 1
        self.memory.update(self._next)
        if self._remembers:
            self.before.update(self._moved)
        self.drop()

    def drop(self) -> None:
        """The step is skipped: nothing of it is remembered."""
        self._next, self._moved = {}, {}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of the weights' shapes, by kind: START and BEFORE, as far as the rule needs them."""
        kept = ((START, self.start, self._moves), (BEFORE, self.before, self._remembers))
        return {kind: part for kind, part, needed in kept if needed}


def rescale(gram_RG: Tensor, scales: Sequence[float]) -> Tensor:
    """The Gram, in place, of vectors that are each multiplied by a number."""
    factors = [scales[i] * scales[j] for i, j in pairs_of(len(scales))]
    if len(set(factors)) == 1:
        return gram_RG if factors[0] == 1.0 else gram_RG.mul_(factors[0])
    return gram_RG.mul_(torch.tensor(factors, dtype=gram_RG.dtype, device=gram_RG.device))


def on_the_cpu(tensor: Tensor) -> Tensor:
    """A copy that can be saved: its elements lie one after another."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
