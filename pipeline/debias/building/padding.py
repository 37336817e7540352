"""Before the first step: whether the model reads an example beside a longer one as it reads it alone."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback

from debias.building.task import Task
from debias.data.encode import EncodedExamples, Feature
from debias.models.rounding import tolerance

logger = logging.getLogger(__name__)
FIRST = 64  # examples of which the shortest and the longest are tried


class PaddingCheck(TrainerCallback):
    """Warns where padding changes what the model says of an example: its gradients would depend on the batch.

    A padded pair against the shorter one alone, two small forward passes. What is in pieces on many ranks, compiled or
    packed is not tried.
    """

    def __init__(self, task: Task, encoded: EncodedExamples) -> None:
        self.task = task
        few = sorted((encoded[i] for i in range(min(FIRST, len(encoded)))), key=_length)
        self.pair = [few[-1], few[0]] if few and _length(few[0]) < _length(few[-1]) else []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Called by the Trainer when the model is where it trains."""
        if not self.pair or self.task.pictures or self.task.packing or _is_elsewhere(model):
            return
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            alone, beside = self.log_p(model, device)
            most = tolerance(model, abs(alone))
        if not abs(alone - beside) <= most:
            logger.warning(
                "WARNING: %s does not skip padding: it says something else of an example beside a longer one"
                " (log-probabilities differ by %.2g); per_device_train_batch_size=1 has no padding",
                *(type(getattr(model, "get_base_model", lambda: model)()).__name__, abs(alone - beside)),
            )

    def log_p(self, model: Any, device: torch.device) -> tuple[float, float]:
        """The log-probability of the shorter example's right answer, alone and beside the longer one."""
        training = model.training
        model.eval()
        with torch.no_grad():
            (alone,), (_, beside) = (self._said(model, rows, device) for rows in (self.pair[1:], self.pair))
        model.train(training)
        return alone, beside

    def _said(self, model: Any, rows: list[Feature], device: torch.device) -> list[float]:
        batch = {
            half: {name: tensor.to(device) for name, tensor in tensors.items()}
            for half, tensors in self.task.collate(rows).items()
        }
        said: list[float] = self.task.readout.said(model, batch).log_p_B.double().tolist()
        return said


def _length(feature: Feature) -> int:
    return len(feature["tokens"].get("input_ids", ()))


def _is_elsewhere(model: Any) -> bool:
    sharded = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    return sharded or any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
