"""What a model said of a batch, apart from what a loss makes of it. Shapes: B samples, C labels, H hidden columns.

A batch is two mappings: `inputs`, which the model is given, and `facts`, what is known of its samples beside (right
labels, groups, a bias model's log-probabilities), which readouts and losses read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Facts = Mapping[str, Tensor]
# The share of training's steps that are done, a float64 scalar in [0, 1): a trainer says it of each batch.
DONE = "done"
# Facts by the names that losses, weights and readouts read them by. A batch of somebody else's collator is one mapping:
# what has one of these names in it is a fact, all else is the model's.
KNOWN_FACTS = (
    *("labels", "index", "group", "bias_weight", "bias_log_p", "teacher_log_p", "answer_mask", "sample_index"),
    DONE,
)


@dataclass(frozen=True)
class Said:
    """`log_p_B` (float32, differentiable): log-probability of each sample's right answer, summed over its tokens.

    `confidence_B` (detached): the same as a bias weight reads it, which may be a mean over tokens. `count`: the batch's
    share of the one denominator of both gradients (samples or tokens). `log_p_BC`: of every label, where it was asked
    for; log-probabilities of a causal model's answers are those of its whole vocabulary and sum to less than 1.
    `log_z_B`, beside `log_p_BC` of a classifier alone: the logarithm of the sum of its exponentiated logits, so that
    the logits are `log_p_BC + log_z_B`, and each label can be read by itself.
    `hidden_BH` (float32, differentiable): the last hidden states averaged over a sample's tokens, without its answer;
    where they were asked for. `sample_index` [R, T]: the sample of each token (-1: of none), where the batch's rows are
    not the samples; for `hook.backward`.
    """

    log_p_B: Tensor
    confidence_B: Tensor
    count: int
    log_p_BC: Tensor | None = None
    hidden_BH: Tensor | None = None
    log_z_B: Tensor | None = None
    sample_index: Tensor | None = None


class Readout(Protocol):
    """How a model's answer is read."""

    def said(
        self, model: nn.Module, batch: Mapping[str, Any], *, every_label: bool = False, hidden: bool = False
    ) -> Said:
        """What the model says of a batch, with its graph; `every_label`: log-probabilities of all labels too.

        `hidden`: `hidden_BH` as well; ValueError where the model has none. A readout that knows of no such thing need
        not take it: it is given only where a loss reads them.
        """

    def check_every_label(self) -> None:
        """ValueError where `every_label` is not to be had, with what would help."""

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-probability of each label, [B, C] float32."""


def inputs_and_facts(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two halves of a batch, however it was made."""
    if "facts" in batch:
        return dict(batch["inputs"]), dict(batch["facts"])
    facts = {key: value for key, value in batch.items() if key in KNOWN_FACTS}
    return {key: value for key, value in batch.items() if key not in facts}, facts


def fact(facts: Mapping[str, Any], name: str, readout: object) -> Tensor:
    """The fact of that name; ValueError, with what there is, where a batch lacks it."""
    if name not in facts:
        whose = type(readout).__name__
        raise ValueError(f"readout {whose} reads the fact {name!r}, which this batch lacks: it has {sorted(facts)}")
    found: Tensor = facts[name]
    return found


def of_right_label(log_p_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Of each sample's right label, [B]; ValueError where `labels_B` are not class numbers, int64 [B]."""
    check_labels(labels_B, log_p_BC)
    return log_p_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)


def check_labels(labels_B: Tensor, scores_BC: Tensor) -> None:
    """ValueError where `labels_B` are not the numbers of classes of which there are scores, int64 [B].

    Their values are looked at on the CPU.
    """
    if labels_B.dtype != torch.int64 or labels_B.shape != scores_BC.shape[:1]:
        raise ValueError(
            f"the fact 'labels' is {labels_B.dtype} {list(labels_B.shape)}, and must be the number of each sample's"
            f" class, torch.int64 [{len(scores_BC)}]"
        )
    if type(labels_B) is not Tensor or torch.compiler.is_compiling() or labels_B.device.type != "cpu":
        # There are no values, as in a plan; or to ask an accelerator is to wait for it in every micro-batch, where its
        # kernels end the process themselves.
        return
    astray_B = (labels_B < 0) | (labels_B >= scores_BC.shape[1])
    if bool(astray_B.any()):
        raise ValueError(
            f"the fact 'labels' holds {int(labels_B[astray_B][0])}, and must be 0 to {scores_BC.shape[1] - 1}, the"
            " number of each sample's class; leave out samples that have none"
        )
