"""What a training step keeps alive, found by running it on tensors without memory. Shapes: B samples, T tokens.

Not a formula by architecture: the run's own model, adapter, checkpointing and gradient source take one step under
`FakeTensorMode`, and every storage is followed from birth to death. The live bytes of a step are cut into stretches;
the peak of each grows linearly with the number of layers, so a deep model is traced twice at a few layers.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from debias.adapters import make_adapter
from debias.config.run import RunConfig
from debias.engines.parameters import chosen_by, selection
from debias.gradients import MicroBatch, make_source
from debias.gradients.base import Passes
from debias.losses import LearningLoss, make_loss
from debias.plan.live import Live, fake_in_place
from debias.plan.skeleton import base_skeleton, period_of, shallow, skeleton
from debias.readouts.answers import said_at
from debias.readouts.classification import Classification
from debias.readouts.router import router_loss_of
from debias.readouts.said import DONE, Said
from debias.smoothness import make_smoothness

WHOLE = 6  # models of so few layers are traced as they are


@dataclass(frozen=True)
class Load:
    """What one step works on."""

    micro_batch: int
    length: int
    answer_tokens: int = 1
    padded: bool = True  # rows of unequal length: attention gets a mask
    accumulated: bool = False  # gradients of earlier micro-batches are there already


@dataclass(frozen=True)
class Traced:
    """Peak live bytes of a step, beyond weights and optimizer state."""

    peak: int  # with gradients
    gradients: int  # of these, live at the peak
    others: int  # peak of all that is no gradient: activations and temporaries


def trace(run: RunConfig, config: Any, load: Load, gradients: str, *, uses_bias: bool = True, stage: int = 0) -> Traced:
    """The peak of one micro-batch's forward and backward passes with this gradient source, at this stage of ZeRO.

    `config`: transformers' configuration of the model. Raises InputError where the model cannot be built.
    """
    whole, ask = config.num_hidden_layers, (gradients, uses_bias, stage)
    period = period_of(base_skeleton(run, config), config)
    # A whole period of layers at both ends of a pass. Where everything trains, gradients of layers and of embeddings
    # make another curve: look a little deeper.
    few = max(2 * period, 2 if make_adapter(run.adapter).frozen_base else 4)
    if whole <= max(WHOLE, 2 * few):
        return _summary(_stretches(run, config, load, ask, 2))
    # Equally many layers in a part of both.
    low = _stretches(run, shallow(config, few), load, ask, 2)
    high = _stretches(run, shallow(config, 2 * few), load, ask, 4)
    factor = (whole - few) / few
    return _summary([_line(a, b, factor) for a, b in zip(low, high, strict=True)])


# Peaks of a stretch: with gradients, without them, and the gradients at the first of these.
Stretch = tuple[float, float, float]


def _line(low: Stretch, high: Stretch, factor: float) -> Stretch:
    first, second, third = (a + (b - a) * factor for a, b in zip(low, high, strict=True))
    return first, second, third


def _summary(stretches: list[Stretch]) -> Traced:
    peak, _, gradients = max(stretches)
    return Traced(round(peak), round(gradients), round(max(others for _, others, _ in stretches)))


def _stretches(run: RunConfig, config: Any, load: Load, ask: tuple[str, bool, int], parts: int) -> list[Stretch]:
    model = skeleton(run, config)
    with FakeTensorMode(allow_non_fake_inputs=True), experts_of_any_dtype():
        fake_in_place(model)
        selected = chosen_by(selection(debias_head=run.debias_head), model)
        gradients, uses_bias, stage = ask
        source = make_source(gradients, model, selected, bias=uses_bias, stage=stage, verify=False)
        with Live() as live:
            step = Step(run, model, load, live)
            source.passes = _Marked(source.passes, step)
            for _ in range(2 if load.accumulated else 1):
                step.marks = []
                source.backward(MicroBatch(*step.losses(), again=step.losses, batch_loss=step.balance()))
            held = [p.grad for p in model.parameters() if p.grad is not None]
            kept = live.serials([*held, *source.bias.values()])
            total, others = live.curve(), live.curve(kept)
        source.detach()
    return _cut(total, others, [*step.marks, len(total)], parts)


def _cut(total: list[int], others: list[int], marks: list[int], parts: int) -> list[Stretch]:
    """The curves in stretches: each pass's first and last of `parts` equal parts.

    While a pass goes from layer to layer the curve rises or falls by the same at each, so it peaks near one end.
    """
    found = []
    for start, stop in itertools.pairwise(sorted(set(marks))):
        part = max(1, -(-(stop - start) // parts))
        found += [_peak(total, others, start, start + part), _peak(total, others, stop - part, stop)]
    return found


def _peak(total: list[int], others: list[int], start: int, stop: int) -> Stretch:
    at = max(range(start, stop), key=lambda index: total[index])
    return float(total[at]), float(max(others[start:stop])), float(total[at] - others[at])


class _Marked:
    """The passes of a gradient source, with a mark where the second begins."""

    def __init__(self, passes: Passes, step: "Step") -> None:
        self.passes, self.step = passes, step

    def main(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        self.passes.main(loss, retain_graph=retain_graph)

    def bias(self, make_loss: Callable[[], Tensor]) -> None:
        self.step.mark()
        self.passes.bias(make_loss)


class Step:
    """The losses of one micro-batch, the run's own, on tokens that do not matter."""

    def __init__(self, run: RunConfig, model: nn.Module, load: Load, live: Live) -> None:
        self.run, self.model, self.load, self.live = run, model, load, live
        self.loss = _loss_of(run)
        self.smoothness = make_smoothness(run.smoothness)
        self.every_label = self.loss.every_label or self.smoothness is not None
        self.router = router_loss_of(model)
        self.marks: list[int] = []  # where passes begin, among the events of `live`
        # DeepSpeed runs a bf16 model as it is; everybody else runs bf16 by autocast.
        self.autocast = run.bf16 and run.deepspeed is None

    def mark(self) -> None:
        """Here a pass begins."""
        self.marks.append(self.live.events)

    def losses(self) -> tuple[Tensor, Tensor]:
        """`loss_B` and `weight_B` of a new forward pass."""
        load = self.load
        self.mark()
        ids_BT = torch.zeros(load.micro_batch, load.length, dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": ids_BT}
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            if load.padded:
                # The load balancing loss reads a mask of tokens; else attention gets its own, which is never left out.
                shape = (load.length,) if self.router else (1, load.length, load.length)
                inputs["attention_mask"] = torch.ones(load.micro_batch, *shape, dtype=torch.bool)
            said = self._said(inputs)
            # A step of this one micro-batch, each time: what is gathered ahead is small.
            loss_B = self.loss(said, self._facts(), counts=not self.loss.ahead)
            if self.smoothness is not None:  # one more answer, beside the first; a step up keeps no more than that
                first_BC, near_BC = said.log_p_BC, self._said(inputs).log_p_BC
                assert first_BC is not None
                assert near_BC is not None
                loss_B = loss_B + self.smoothness.term(first_BC, near_BC)
        self.mark()
        return loss_B, torch.ones(load.micro_batch)

    def balance(self) -> Tensor | None:
        """The load balancing loss of the last forward pass, of a run that asks for it."""
        return self.router.take() if self.router else None

    def _said(self, inputs: dict[str, Any]) -> Said:
        return self._answered(inputs) if self.run.head == "causal_lm" else self._classified(inputs)

    def _answered(self, inputs: dict[str, Any]) -> Said:
        load, ids_BT = self.load, inputs["input_ids"]
        keep_K = torch.arange(load.length - 1 - load.answer_tokens, load.length - 1)
        others = range(len(self.run.data.labels)) if self.every_label else None
        targets_BK = ids_BT[:, -load.answer_tokens :]
        log_p_BKN = said_at(self.model, inputs, keep_K, targets_BK, others, self.run.loss_chunk_size)
        log_p_BN = log_p_BKN.sum(dim=1)
        told = log_p_BN[:, 1:] if others else None
        return Said(log_p_BN[:, 0], log_p_BN[:, 0].detach(), load.micro_batch, told, self._hidden())

    def _classified(self, inputs: dict[str, Any]) -> Said:
        batch = {"inputs": inputs, "facts": self._facts()}
        said = Classification().said(self.model, batch, every_label=self.every_label)
        return replace(said, hidden_BH=self._hidden())

    def _hidden(self) -> Tensor | None:
        """In the place of what is averaged over tokens, which is small."""
        if "hidden" not in self.loss.asks:
            return None
        config: Any = self.model.config
        return torch.zeros(self.load.micro_batch, config.get_text_config().hidden_size)

    def _facts(self) -> dict[str, Tensor]:
        """Those that the run's loss reads, of samples that do not matter."""
        samples, labels = self.load.micro_batch, len(self.run.data.labels)
        zeros_B = torch.zeros(samples, dtype=torch.long)
        said = dict.fromkeys(("bias_log_p", "teacher_log_p"), torch.zeros(samples, labels))
        known = {"labels": zeros_B, "group": zeros_B, **said}
        return {**known, DONE: torch.zeros((), dtype=torch.float64)}


def _loss_of(run: RunConfig) -> LearningLoss:
    """The run's loss with a memory of real numbers: what it begins with depends on what the training set holds."""
    with unset_fake_temporarily():
        zero_N = torch.zeros(1, dtype=torch.long)
        known = {"group": zero_N, "labels": zero_N, "bias_log_p": torch.zeros(1, len(run.data.labels))}
        loss = LearningLoss(make_loss(run.loss).for_labels(run.data.labels), known)
        loss.memory_S  # noqa: B018 (is made when it is asked for)
        return loss


class _Grouped(torch.autograd.Function):
    """One matrix product for each group of rows, in sizes alone."""

    @staticmethod
    def forward(ctx: Any, rows_SI: Tensor, weight_GIO: Tensor) -> Tensor:
        ctx.save_for_backward(rows_SI if weight_GIO.requires_grad else None, weight_GIO)
        return rows_SI.new_empty(rows_SI.shape[0], weight_GIO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (delta,) = deltas
        rows_SI, weight_GIO = ctx.saved_tensors
        grad_rows = delta.new_empty(delta.shape[0], weight_GIO.shape[1]) if ctx.needs_input_grad[0] else None
        return grad_rows, None if rows_SI is None else torch.empty_like(weight_GIO)


@contextmanager
def experts_of_any_dtype() -> Iterator[None]:
    """The kernel of fused experts takes float32 as well, its description for fake tensors takes bfloat16 only."""
    from transformers.integrations import moe

    def grouped(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        product: Tensor = _Grouped.apply(input.to(weight.dtype), weight)
        return product

    real = moe._grouped_mm
    moe._grouped_mm = grouped
    try:
        yield
    finally:
        moe._grouped_mm = real
