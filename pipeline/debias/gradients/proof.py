"""Whether the bias gradient of one backward pass is the one that it should be, measured. Shapes: B samples.

Sample i's loss is multiplied by a number v_i, and each layer is told that sample i's weight is 1 / v_i. Where no sample
mixes with another on the way, what the layers then leave as the bias gradient is the sum of all samples' gradients:
main, which an ordinary backward pass makes a moment later. Whatever reaches a parameter on another way
(its weight read beside the layer's call, a penalty on the parameter in `loss_B`) is in main and not in what the layers
left.

The v_i are powers of two, so that scaling a sample rounds nothing, in whatever precision the model runs: both sides
are sums of the same products, and may differ by the order of summation and the rounding of the result alone.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from debias.gradients.samples import SampleWeights

# Exponents of the v_i: neighbours differ by 2 at least, and nothing comes near an overflow, even in float16.
EXPONENTS = (-2, -1, 0, 1)
SEED = 20260

# What rounding can do, relative. Sums in float32 may lose three digits where their terms cancel. A result in 16 bits is
# off by half a spacing of its numbers on each side, and again by as much for each further call of the layer: three
# spacings are 2.3 % in bf16, 0.3 % in fp16.
LEAST_RELATIVE, SPACINGS = 1e-3, 3.0
# Gradients that are nothing but rounding (the key bias of an attention layer) are measured by the longest one.
LEAST_FLOOR, FLOOR_SPACINGS = 1e-5, 1e-2


class Trial(SampleWeights):
    """The weights of a trial: what cannot be told is noted, and the pass goes on."""

    def __init__(self, weight_B: Tensor, index_RT: Tensor | None = None) -> None:
        super().__init__(weight_B, index_RT)
        self.complaints: dict[str, str] = {}

    def unknown(self, name: str | None, complaint: str) -> Tensor | None:
        self.complaints.setdefault(str(name), complaint)
        return None


def powers_of_two(samples: int, like: Tensor) -> Tensor:
    """The v_B [B] of a trial, as unequal as B allows, in a random order that touches nobody's random state."""
    generator = torch.Generator().manual_seed(SEED + samples)
    turn_B = torch.randperm(samples, generator=generator) % len(EXPONENTS)
    exponent_B = torch.tensor(EXPONENTS, dtype=torch.float32)[turn_B]
    return torch.exp2(exponent_B).to(like.device)


def tolerance(dtypes: set[torch.dtype]) -> tuple[float, float]:
    """(relative to a gradient's own length, relative to the longest one): what rounding can do, by the widest step."""
    eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    return max(LEAST_RELATIVE, SPACINGS * eps), max(LEAST_FLOOR, FLOOR_SPACINGS * eps)


@contextmanager
def watching(parameters: Mapping[str, Tensor], arrived: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `arrived` is told of each gradient that arrives at one of these parameters; frozen ones apart."""
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    hooks = [p.register_hook(functools.partial(arrived, name)) for name, p in trained.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Verdict:
    """Of a comparison. `faults`: by parameter, how far its bias gradient is off, relative (inf: there is none at all);
    `sure`: there was something to compare, and all of it finite.
    """

    faults: dict[str, float] = field(default_factory=dict)
    sure: bool = True
    worst: tuple[float, str] = (0.0, "")
    allowed: float = 0.0


class Comparison:
    """Main gradients as they arrive, against what a trial left of each; what agrees is let go at once."""

    def __init__(self, left: dict[str, Tensor], dtypes: set[torch.dtype]) -> None:
        self.dtypes = dtypes
        self._rest = left
        self._left = frozenset(left)
        self._length = {name: _norm(gradient) for name, gradient in left.items()}
        self._settled: dict[str, float] = {}

    def watch(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, each gradient that arrives at one of these parameters is taken off what the trial left of it."""
        return watching(parameters, self._arrived)

    def verdict(self, names: Sequence[str]) -> Verdict:
        """Which of these parameters got another gradient than they should have."""
        off = {name: self._settled.get(name, 0.0) + _norm(self._rest.get(name)) for name in names}
        lengths = [self._length.get(name, 0.0) for name in names]
        if not all(map(math.isfinite, (*off.values(), *lengths))):
            return Verdict(sure=False)
        relative, floor = tolerance(self.dtypes)
        least = floor / relative * max(lengths, default=0.0)
        shares = {name: off[name] / max(length, least, 1e-300) for name, length in zip(names, lengths, strict=True)}
        worst = max(shares, key=lambda name: shares[name])
        wrong = {name: share for name, share in shares.items() if share > relative}
        faults = {name: share if name in self._left else math.inf for name, share in wrong.items()}
        return Verdict(faults, max(lengths) > 0, (shares[worst], worst), relative)

    def _arrived(self, name: str, gradient: Tensor) -> None:
        self.dtypes.add(gradient.dtype)
        length = _norm(gradient)
        self._length[name] = max(self._length.get(name, 0.0), length)
        rest = self._rest.pop(name, None)
        if rest is None:
            rest = torch.zeros_like(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        rest.sub_(gradient)
        # A parameter may get several gradients (reentrant checkpointing): what is nearly nothing is only noted, so that
        # memory does not hold a third gradient of a model that trains in full.
        if (off := _norm(rest)) <= LEAST_RELATIVE * length:
            self._settled[name] = self._settled.get(name, 0.0) + off
        else:
            self._rest[name] = rest


def _norm(tensor: Tensor | None) -> float:
    """The Frobenius norm, summed in float64 without a copy of the whole in it."""
    return 0.0 if tensor is None else float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
