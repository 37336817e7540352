"""What models add to their own loss, which is never asked here: taken, or refused by name.

Of transformers: the load balancing loss of a mixture of experts, and losses of other kinds. Of PEFT: the orthogonality
of AdaLoRA. `labels` never reach the model, whose loss is one number of a batch, so none of this comes by itself.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from debias.readouts import Answers, Classification, Readout, RouterLoss, add_router_loss, router_loss_of

# Attributes of models of transformers that make their own loss another one, where they are not 0.
COEFFICIENTS = {"z_loss_coefficient": "the size of logits", "label_smoothing": "smoothed labels"}


def refuse_own_losses(model: nn.Module, readout: Readout) -> None:
    """ValueError where the model's own loss, for what `readout` reads, is of a kind that is not taken here."""
    for module in _of_transformers(model):
        kind = getattr(module.config, "problem_type", None)
        if isinstance(readout, Classification) and kind not in (None, "single_label_classification"):
            raise ValueError(
                f"config.problem_type is {kind!r}: readout Classification is of one label of several; set it to None,"
                " or give a readout of your own"
            )
        for name, what in COEFFICIENTS.items():
            told = getattr(module, name, None)
            if isinstance(readout, Answers) and isinstance(told, float) and told:
                raise ValueError(
                    f"{name} of {type(module).__name__} is {told}: the loss of {what} is a part of the model's own,"
                    " which is not asked; set it to 0"
                )


class OwnTerms:
    """The terms of a batch that a model's own loss has beside the labels', for `main` alone.

    `sharpness`: its name, where there is one. ValueError where a term is there that cannot be had. `end` leaves the
    model as it was.
    """

    def __init__(self, model: nn.Module, *, deepspeed: bool = False, sharpness: str = "") -> None:
        self._orthogonal = _Orthogonality.of(model)
        if self._orthogonal is not None and (deepspeed or sharpness):
            other = f"sharpness {sharpness}" if sharpness else "DeepSpeed"
            raise ValueError(
                f"orth_reg_weight is {self._orthogonal.weight}: AdaLoRA's orthogonality does not go with {other}; set"
                " it to 0, or remove one of the two"
            )
        self._added = router_loss_asked_for(model)
        self._router = router_loss_of(model)  # a walk over all modules, so not in each micro-batch

    def take(self) -> Tensor | None:
        """The terms of the last forward pass that had gradients, with their graph; None where there are none."""
        terms = [] if self._router is None else [self._router.take()]
        if self._orthogonal is not None:
            terms.append(self._orthogonal())
        return sum(terms[1:], terms[0]) if terms else None

    def end(self) -> None:
        """Take off the model what was put on it."""
        if self._added is not None:
            self._added.end()
        self._added = self._router = None


def router_loss_asked_for(model: nn.Module) -> RouterLoss | None:
    """The load balancing loss that `config.output_router_logits` asks for, put on `model` with its own coefficient.

    None where nothing asks, or one was put there before. ValueError where it is not known how.
    """
    if router_loss_of(model) is not None:
        return None
    for module in _of_transformers(model):
        names = inspect.unwrap(type(module).forward).__code__.co_varnames
        if not any(name.endswith("aux_loss") for name in names) or not _asks_for_routers(module.config):
            continue
        coefficient = getattr(module, "router_aux_loss_coef", None)
        if coefficient is None or {"encoder_aux_loss", "z_loss"} & set(names):
            raise ValueError(
                f"config.output_router_logits is true: how {type(module).__name__} adds the loss of its routers is not"
                " known here; set it to false"
            )
        return add_router_loss(model, float(coefficient)) if coefficient else None
    return None


def _of_transformers(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(type(module), "base_model_prefix") and hasattr(module, "config"):
            yield module


def _asks_for_routers(config: Any) -> bool:
    parts = (config, getattr(config, "text_config", None))
    return any(getattr(part, "output_router_logits", False) for part in parts)


class _Orthogonality:
    """AdaLoRA's pull of A and B towards orthogonal ones (arXiv 2303.10512, eq. 4), as PEFT's model adds it."""

    def __init__(self, weight: float, factors: list[tuple[Tensor, bool]]) -> None:
        self.weight = weight
        self._factors = factors

    @classmethod
    def of(cls, model: nn.Module) -> "_Orthogonality | None":
        adalora, peft = sys.modules.get("peft.tuners.adalora"), sys.modules.get("peft")
        if adalora is None or peft is None:
            return None
        # The plain PeftModel, of an adapter without a task, goes past the tuner to what it wraps.
        passed = {id(one.base_model) for one in model.modules() if type(one) is peft.PeftModel}
        modules: Iterable[Any] = model.modules()
        for module in modules:
            ours = isinstance(module, adalora.AdaLoraModel) and id(module) not in passed
            if ours and (name := module.trainable_adapter_name):
                named = module.model.named_parameters()
                kept = [(n, p) for n, p in named if ("lora_A" in n or "lora_B" in n) and name in n]
                weight = float(module.peft_config[name].orth_reg_weight)
                return cls(weight, [(p, "lora_A" in n) for n, p in kept]) if weight and kept else None
        return None

    def __call__(self) -> Tensor:
        norms = [self._norm(p if is_a else p.T) for p, is_a in self._factors]
        return self.weight * torch.stack(norms).mean()

    @staticmethod
    def _norm(rows_RI: Tensor) -> Tensor:
        gram_RR = rows_RI @ rows_RI.T
        return torch.linalg.norm(gram_RR - torch.eye(len(gram_RR), dtype=gram_RR.dtype, device=gram_RR.device))
