"""Single elements of what trains, chosen by their gradients: the others get a gradient of zero, and may be held."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debias.engines.grounds import Ground, Stepped
from debias.engines.step_hooks import AroundSteps
from debias.masks import Mask

logger = logging.getLogger(__name__)

# In a saved state: how many steps were measured; by parameter the mask, eight elements a byte, or the sum until then.
STEPS, CHOSEN, SUM = "mask_steps", "mask", "gradient_sum"


class ElementMask:
    """What a mask does to a step's update, and what it keeps. Where each rank has the whole gradients, they are the
    same on every rank, and so are masks; elsewhere ranks have the pieces of one. ValueError where it holds elements and
    there is no optimizer whose steps it can see.
    """

    def __init__(self, ground: Ground, mask: Mask) -> None:
        self.mask = mask
        self._ground = ground
        self.measured = 0
        self.chosen: dict[str, Tensor] = {}  # of a mask that is chosen once
        self._sums: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        self._before: list[tuple[Stepped, Tensor]] = []
        self._left = 0  # how often they are still put back in this step
        self._around: list[AroundSteps] = []
        if mask.holds:
            _check_followed(mask, ground.optimizer)
            self._around.append(AroundSteps(ground.optimizer, self._keep, self._put_back))

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
        if self._around:
            self._around.append(AroundSteps(self._ground.optimizer, None, self._put_back))

    @torch.no_grad()
    def apply(self, gradients: Mapping[str, Tensor | None], zeros: Callable[[str], Tensor], unit: float = 1.0) -> bool:
        """Zero the gradient of what is not chosen; true where the step only measured, and nothing is to be trained.

        `gradients`: of all that trains, this rank's parts, which are written to, None of what has none in this step:
        then `zeros` of its shape count where elements are chosen for good. `unit`: by what gradients of several steps
        are to be multiplied, a loss scale taken off. Collective where gradients are sharded.
        """
        if self.measured < self.mask.measures:
            self._measure({name: zeros(name) if one is None else one for name, one in gradients.items()}, unit)
            return True
        used = {name: one for name, one in gradients.items() if one is not None}
        if self.mask.measures:
            self._check_known(gradients)
            self.chosen.update({name: self.chosen[name].to(one.device) for name, one in used.items()})
            masks = iter([self.chosen[name] for name in used])
        else:
            masks = self.mask.chosen(list(used.values()), self._ground.ranks)
        self._held = {}
        for (name, gradient), mask in zip(used.items(), masks, strict=True):
            gradient.masked_fill_(~mask, 0)
            if self.mask.holds:
                self._held[name] = mask
        return False

    def _measure(self, gradients: Mapping[str, Tensor], unit: float) -> None:
        self.measured += 1
        if self.mask.measures > 1:
            for name, gradient in gradients.items():
                wide = torch.promote_types(gradient.dtype, torch.float32)
                before = self._sums.get(name, torch.zeros_like(gradient, dtype=wide)).to(gradient.device)
                self._sums[name] = before.add_(gradient, alpha=unit)
        if self.measured < self.mask.measures:
            return
        found = self._sums or gradients
        masks = self.mask.chosen([found[name] for name in gradients], self._ground.ranks)
        self.chosen = dict(zip(gradients, masks, strict=True))
        self._sums = {}
        sizes = torch.tensor([[int(mask.sum()), mask.numel()] for mask in self.chosen.values()])
        if self._ground.ranks is not None:
            sizes = self._ground.ranks.counts(sizes).sum(0)
        (some, whole), tensors = sizes.sum(0).tolist(), int((sizes[:, 0] > 0).sum())
        told = f"{some:,} of {whole:,} elements, in {tensors} of {len(sizes)} tensors"
        logger.info("gradient_mask %s: %s train from here on", self.mask.name, told)

    def _check_known(self, trainable: Iterable[str]) -> None:
        if new := [name for name in trainable if name not in self.chosen]:
            raise RuntimeError(
                f"{new[0]} trains now and did not when gradient_mask {self.mask.name} chose its elements: call detach()"
                " and attach again after unfreezing"
            )

    @torch.no_grad()
    def _keep(self, *_: Any) -> None:
        """Before the optimizer's step."""
        held = [one for one in self._ground.stepping() if one.name in self._held]
        self._before = [(one, one.weight.clone()) for one in held]
        self._left = len(self._around)

    @torch.no_grad()
    def _put_back(self, *_: Any) -> None:
        """After it."""
        for one, before in self._before:
            weight = one.weight
            mask = self._ground.where_stepped(one.name, self._held[one.name]).view_as(weight).to(weight.device)
            weight.copy_(torch.where(mask, weight, before))
        self._left -= 1
        if not self._left:
            self._before = []

    def state(self, saved_name: Callable[[str], str]) -> dict[str, Tensor]:
        """Of a mask that is chosen once, whole, on the CPU; `saved_name`: a name without what a wrapper puts before it.
        Collective where gradients are sharded.
        """
        if not self.mask.measures:
            return {}
        whole = self._ground.gradients.whole
        packed = {f"{saved_name(name)}/{CHOSEN}": _packed(mask) for name, mask in whole(self.chosen).items()}
        sums = {f"{saved_name(name)}/{SUM}": one for name, one in whole(self._sums).items()}
        return {STEPS: torch.tensor(self.measured), **packed, **sums}

    def load(
        self, state: Mapping[str, Tensor], saved_name: Callable[[str], str]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """What goes on from `state` when it is called, and what else is in the state. ValueError, before anything has
        changed and naming the tensor, for a state of other parameters, or of a mask that measures otherwise.
        """
        if not self.mask.measures:
            return functools.partial(self._go_on, self.measured, {}, {}), dict(state)
        steps = int(state[STEPS]) if STEPS in state else 0
        kind = CHOSEN if steps >= self.mask.measures else SUM
        shapes = self._ground.shapes() if steps else {}
        known = {f"{saved_name(name)}/{kind}": (name, shape) for name, shape in shapes.items()}
        own = {key for key in state if key.endswith((f"/{CHOSEN}", f"/{SUM}"))}
        trains = {f"{saved_name(name)}/{kind}" for name in self._ground.trains()} if steps else set()
        # What was frozen since may be there, too.
        if odd := sorted((own - known.keys()) | (trains - own) | ({STEPS} - state.keys())):
            where = "the saved state" if odd[0] in state else f"what gradient_mask {self.mask.name} keeps here"
            raise ValueError(f"load_state_dict: {odd[0]} is only in {where} ({len(odd)} tensors differ)")
        chosen, sums = {}, {}
        for key, (name, shape) in ((key, known[key]) for key in known if key in own):
            held = state[key]
            if held.shape != ((shape.numel() + 7) // 8,) if kind == CHOSEN else held.shape != shape:
                raise ValueError(f"load_state_dict: {key} does not fit a parameter of shape {list(shape)}")
            if kind == CHOSEN:
                chosen[name] = self._ground.gradients.part(name, _unpacked(held, shape)).clone()
            else:
                sums[name] = self._ground.gradients.part(name, held).clone()
        left = {key: held for key, held in state.items() if key not in own and key != STEPS}
        return functools.partial(self._go_on, steps, chosen, sums), left

    def _go_on(self, measured: int, chosen: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        self.measured, self.chosen, self._sums = measured, chosen, sums


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.bool().numpy()))


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = np.unpackbits(packed.cpu().numpy(), count=shape.numel())
    return torch.from_numpy(bits).bool().view(shape)


def _check_followed(mask: Mask, optimizer: Any) -> None:
    """ValueError where there is no optimizer, under whatever wraps it, whose steps are seen."""
    told = f"gradient_mask {mask.name} puts elements back after the optimizer's step"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{told}, and needs one of torch.optim, or of a class of it; {type(optimizer).__name__} given")
    if callable(getattr(optimizer, "eval", None)):
        raise ValueError(
            f"{told}, and {type(optimizer).__name__} moves weights outside of its steps too; take another optimizer"
        )
