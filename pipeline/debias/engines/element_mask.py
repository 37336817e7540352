"""Single elements of what trains, chosen by their gradients: the others get a gradient of zero, and may be held."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debias.engines.rule_state import on_the_cpu
from debias.engines.step_hooks import AroundSteps, inner
from debias.masks import Mask

logger = logging.getLogger(__name__)

# In a saved state: how many steps were measured; by parameter the mask, eight elements a byte, or the sum until then.
STEPS, CHOSEN, SUM = "mask_steps", "mask", "gradient_sum"

Named = Mapping[str, nn.Parameter]


class ElementMask:
    """What a mask does to the update in `p.grad`, once a step, and what it keeps. Gradients are the same on every rank,
    and so are masks. ValueError where it holds elements and there is no optimizer whose steps it can see.
    """

    def __init__(self, model: nn.Module, mask: Mask, optimizer: Any) -> None:
        self.mask = mask
        self._model = model
        self.measured = 0
        self.chosen: dict[str, Tensor] = {}  # of a mask that is chosen once
        self._sums: dict[str, Tensor] = {}
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        self._before: list[Tensor] = []
        self._left = 0  # how often they are still put back in this step
        self._optimizer = _followed(mask, optimizer) if mask.holds else None
        self._around: list[AroundSteps] = []
        if self._optimizer is not None:
            self._around.append(AroundSteps(self._optimizer, self._keep, self._put_back))

    @property
    def remembers(self) -> str:
        """The mask's name, where it goes on only from what `state` gives; else nothing."""
        return self.mask.name if self.mask.measures else ""

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for around in self._around:
            around.remove()
        self._around, self._before = [], []

    def last_too(self) -> None:
        """Put elements back once more after what was hung on the optimizer since, which looks at a step as it is."""
        if self._optimizer is not None:
            self._around.append(AroundSteps(self._optimizer, None, self._put_back))

    @torch.no_grad()
    def apply(self, trainable: Named) -> bool:
        """Zero the gradient of what is not chosen; true where the step only measured, and nothing is to be trained."""
        if self.measured < self.mask.measures:
            self._measure(trainable)
            return True
        used = {name: p for name, p in trainable.items() if p.grad is not None}
        if self.mask.measures:
            self._check_known(trainable)
            masks = iter([self.chosen[name] for name in used])
        else:
            masks = self.mask.chosen([_gradient(p) for p in used.values()])
        held = []
        for p, mask in zip(used.values(), masks, strict=True):
            _gradient(p).masked_fill_(~mask, 0)
            held += [(p, mask)] if self.mask.holds else []
        self._held = held
        return False

    def _measure(self, trainable: Named) -> None:
        self.measured += 1
        if self.mask.measures > 1:
            for name, p in trainable.items():
                gradient = _gradient(p)
                wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                self._sums[name] = wide.clone() if name not in self._sums else self._sums[name].add_(wide)
        if self.measured < self.mask.measures:
            return
        found = [self._sums[name] if self._sums else _gradient(p) for name, p in trainable.items()]
        self.chosen = dict(zip(trainable, self.mask.chosen(found), strict=True))
        self._sums = {}
        sizes = [int(mask.sum()) for mask in self.chosen.values()]
        whole = sum(mask.numel() for mask in self.chosen.values())
        told = f"{sum(sizes):,} of {whole:,} elements, in {sum(map(bool, sizes))} of {len(sizes)} tensors"
        logger.info("gradient_mask %s: %s train from here on", self.mask.name, told)

    def _check_known(self, trainable: Named) -> None:
        if new := [name for name in trainable if name not in self.chosen]:
            raise RuntimeError(
                f"{new[0]} trains now and did not when gradient_mask {self.mask.name} chose its elements: call detach()"
                " and attach again after unfreezing"
            )

    @torch.no_grad()
    def _keep(self, *_: Any) -> None:
        """Before the optimizer's step."""
        self._before = [p.detach().clone() for p, _ in self._held]
        self._left = len(self._around)

    @torch.no_grad()
    def _put_back(self, *_: Any) -> None:
        """After it."""
        for (p, mask), before in zip(self._held, self._before, strict=True):
            p.copy_(torch.where(mask, p, before))
        self._left -= 1
        if not self._left:
            self._before = []

    def state(self, saved_name: Callable[[str], str]) -> dict[str, Tensor]:
        """Of a mask that is chosen once, on the CPU; `saved_name`: a name without what a wrapper puts before it."""
        if not self.mask.measures:
            return {}
        packed = {f"{saved_name(name)}/{CHOSEN}": _packed(mask) for name, mask in self.chosen.items()}
        sums = {f"{saved_name(name)}/{SUM}": on_the_cpu(one) for name, one in self._sums.items()}
        return {STEPS: torch.tensor(self.measured), **packed, **sums}

    def load(self, state: Mapping[str, Tensor], saved_name: Callable[[str], str]) -> dict[str, Tensor]:
        """Go on from `state`; returns what else is in the state. ValueError, naming the tensor, for a state of
        other parameters, or of a mask that measures otherwise.
        """
        if not self.mask.measures:
            return dict(state)
        steps = int(state[STEPS]) if STEPS in state else 0
        kind = CHOSEN if steps >= self.mask.measures else SUM
        known = {f"{saved_name(name)}/{kind}": (name, p) for name, p in self._model.named_parameters()} if steps else {}
        own = {key for key in state if key.endswith((f"/{CHOSEN}", f"/{SUM}"))}
        trains = {key for key, (_, p) in known.items() if p.requires_grad}  # what was frozen since may be there, too
        if odd := sorted((own - known.keys()) | (trains - own) | ({STEPS} - state.keys())):
            where = "the saved state" if odd[0] in state else f"what gradient_mask {self.mask.name} keeps here"
            raise ValueError(f"load_state_dict: {odd[0]} is only in {where} ({len(odd)} tensors differ)")
        for key, (name, p) in ((key, known[key]) for key in known if key in own):
            held = state[key]
            if held.shape != ((p.numel() + 7) // 8,) if kind == CHOSEN else held.shape != p.shape:
                raise ValueError(f"load_state_dict: {key} does not fit a parameter of shape {list(p.shape)}")
            if kind == CHOSEN:
                self.chosen[name] = _unpacked(held, p)
            else:
                self._sums[name] = held.to(p.device, copy=True)
        self.measured = steps
        return {key: held for key, held in state.items() if key not in own and key != STEPS}


def _gradient(p: nn.Parameter) -> Tensor:
    """Of what had no part in the step it is zero."""
    return torch.zeros_like(p) if p.grad is None else p.grad


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def _unpacked(packed: Tensor, p: nn.Parameter) -> Tensor:
    bits = np.unpackbits(packed.cpu().numpy(), count=p.numel())
    return torch.from_numpy(bits).bool().view(p.shape).to(p.device)


def _followed(mask: Mask, optimizer: Any) -> Any:
    """The optimizer whose steps are seen, under whatever wraps it; ValueError where there is none."""
    told = f"gradient_mask {mask.name} puts elements back after the optimizer's step"
    optimizer = inner(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{told}, and needs one of torch.optim, or of a class of it; {type(optimizer).__name__} given")
    if callable(getattr(optimizer, "eval", None)):
        raise ValueError(
            f"{told}, and {type(optimizer).__name__} moves weights outside of its steps too; take another optimizer"
        )
    return optimizer


def refuse_mask(mask: Mask | None, what: str) -> None:
    """ValueError where there is a mask, and `what` keeps the gradients that it chooses among."""
    if mask is not None:
        raise ValueError(
            f"gradient_mask {mask.name} chooses among whole gradients, and cannot have {what}; use one process or"
            " DistributedDataParallel, or leave it out"
        )
