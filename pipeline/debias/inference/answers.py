"""Causal models as judges: prompts to log-likelihoods of answers, normalised and calibrated. C labels, N prompts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from debias.data.encode import Collator
from debias.data.examples import Example
from debias.data.prompt import Prompt
from debias.errors import InputError
from debias.inference.batches import Scores, budget_for, by_length, join, score_batches
from debias.inference.trees import Row, TreeScorer, answer_tree, common_prefix, plant_rows
from debias.readouts import Answers

logger = logging.getLogger(__name__)
Normalize = Literal["none", "tokens", "characters"]
Calibrate = Literal["none", "contextual", "pmi"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al., ICML 2021
# A shared beginning of fewer tokens is cheaper to compute again than to attend to; so is a longer row.
WORTH, LONGEST_ROW, WORTH_HEAD = 4, 256, 8
LOGITS = 2**27  # elements of one batch's kept logits: 512 MiB in float32
# What float32 passes differ by is 1e-5; half precision differs by its rounding, and a wrong mask by far more.
AGREE = {torch.float32: 1e-3, torch.float64: 1e-3}
AGREE_HALF = 0.5
CHECKED = 4


@dataclass(frozen=True)
class Scoring:
    """How answers become scores.

    `normalize`: the sum over an answer's tokens as it is, per token, or per character. `calibrate`: minus the log of
    the mean probability under content-free inputs (contextual calibration, Zhao et al., ICML 2021), or minus the
    answer's log-likelihood after the prompt's last words alone (PMI-DC, Holtzman et al., EMNLP 2021).
    """

    normalize: Normalize = "none"
    calibrate: Calibrate = "none"

    def __post_init__(self) -> None:
        for key, kind in (("normalize", Normalize), ("calibrate", Calibrate)):
            if getattr(self, key) not in get_args(kind):
                raise InputError(f"{key} is {getattr(self, key)!r}, not one of {', '.join(get_args(kind))}")


class AnswerScorer:
    """Log-likelihoods of the answers of `prompt` after prompts, all labels in one pass where the model allows it."""

    def __init__(self, model: Any, readout: Answers, prompt: Prompt, max_length: int, scoring: Scoring) -> None:
        self.model = model
        self.readout = readout
        self.prompt = prompt
        self.scoring = scoring
        self.tree = answer_tree(readout.verbalizer_ids)
        self.longest_answer = max(len(ids) for ids in readout.verbalizer_ids)
        self.room = max_length - self.longest_answer
        self.trees: bool | None = None  # not known before the first examples
        self._prior_C: np.ndarray | None = None

    def raw(self, prompts: Sequence[Sequence[int]], most: int | None, *, everywhere: bool = False) -> np.ndarray:
        """log p(answer | prompt), [N, C] float64; each distinct prompt is computed once."""
        distinct = {tuple(ids): None for ids in prompts}
        place = {ids: index for index, ids in enumerate(distinct)}
        if self.trees is None:
            self.trees = self._trees_agree(list(distinct))
        parts = self._tree_parts(list(distinct), most) if self.trees else self._plain_parts(list(distinct), most)
        scores = np.empty((len(distinct), self.tree.labels))
        for where, batches, compute in parts:
            scores[where] = score_batches(batches, compute, len(where), self.tree.labels, everywhere=everywhere)
        return scores[[place[tuple(ids)] for ids in prompts]]

    def adjusted(self, raw_NC: np.ndarray) -> np.ndarray:
        """Raw scores normalised and calibrated as `scoring` says."""
        scores_NC = raw_NC / self._lengths()
        if self.scoring.calibrate == "none":
            return scores_NC
        if self._prior_C is None:
            self._prior_C = self._prior()
        return scores_NC - self._prior_C

    def _lengths(self) -> np.ndarray:
        if self.scoring.normalize == "tokens":
            return np.array([len(ids) for ids in self.readout.verbalizer_ids], dtype=float)
        if self.scoring.normalize == "characters":
            return np.array([max(1, len(answer.strip())) for answer in self.prompt.answers], dtype=float)
        return np.ones(self.tree.labels)

    def _prior(self) -> np.ndarray:
        """What is subtracted from each label's score, [C]."""
        if self.scoring.calibrate == "pmi":
            tail = self.prompt.template.rpartition("}")[2]
            if not tail.strip():
                raise InputError("calibrate: pmi needs words after the last field of prompt.template; there are none")
            prompts = [self.prompt.ids_of_text(tail.replace("}}", "}").replace("{{", "{"))]
        else:
            fields = len(self.prompt.text_fields)
            prompts = [self.prompt.ids(Example("", (word,) * fields, 0)) for word in CONTENT_FREE]
        scores_KC = self.raw([ids[-self.room :] for ids in prompts], None, everywhere=True) / self._lengths()
        if self.scoring.calibrate == "pmi":
            return scores_KC[0]
        log_p_KC = scores_KC - np.logaddexp.reduce(scores_KC, axis=1, keepdims=True)
        return np.logaddexp.reduce(log_p_KC, axis=0) - np.log(len(prompts))

    def _plain_parts(self, prompts: Sequence[Sequence[int]], most: int | None) -> list["Part"]:
        """A forward pass for each label (one for all, if each answer is one token)."""
        lengths = [len(ids) + self.longest_answer for ids in prompts]
        collate, device = Collator(self.prompt.tokenizer), next(self.model.parameters()).device

        def compute(batch: Sequence[int]) -> Scores:
            padded = collate([{"tokens": {"input_ids": list(prompts[i])}, "facts": {}} for i in batch])["inputs"]
            inputs = {key: value.to(device) for key, value in padded.items()}
            return batch, self.readout.label_scores(self.model, inputs).double().cpu().numpy()

        budget = budget_for(lengths, device.type, join()[1])
        return [(list(range(len(prompts))), by_length(lengths, budget, most), compute)]

    def _tree_parts(self, prompts: Sequence[Sequence[int]], most: int | None) -> list["Part"]:
        """Prompts that begin with the common head, and those that lost it to `max_length`."""
        whole = [i for i, ids in enumerate(prompts) if len(ids) < self.room]
        head = self._head([prompts[i] for i in whole])
        if not head:
            return [self._tree_part(prompts, list(range(len(prompts))), (), most)]
        rest = sorted(set(range(len(prompts))) - set(whole))
        parts = [self._tree_part(prompts, whole, head, most)]
        return [*parts, self._tree_part(prompts, rest, (), most)] if rest else parts

    def _head(self, prompts: Sequence[Sequence[int]]) -> Sequence[int]:
        if len(prompts) < 2:
            return ()
        shared = common_prefix(min(prompts, key=list), max(prompts, key=list))
        shared = min(shared, *(len(ids) - 1 for ids in prompts))  # each keeps a token of its own
        return prompts[0][:shared] if shared >= WORTH_HEAD else ()

    def _tree_part(
        self, prompts: Sequence[Sequence[int]], where: list[int], head: Sequence[int], most: int | None
    ) -> "Part":
        scorer = TreeScorer(self.model, self.tree, head, additive=_attention(self.model) == "eager")
        rows = plant_rows([prompts[i][len(head) :] for i in where], worth=WORTH, longest=LONGEST_ROW)
        batches = self._row_batches(rows, scorer, most)

        def compute(batch: Sequence[Row]) -> Scores:
            prompt_N, scores_NC = scorer.scores(batch)
            return prompt_N.tolist(), scores_NC.double().numpy()

        return where, batches, compute

    def _row_batches(self, rows: Sequence[Row], scorer: TreeScorer, most: int | None) -> list[list[Row]]:
        """Rows with as many prompts and of like length together: every row has the logits of the fullest."""
        device = next(self.model.parameters()).device.type
        inner = self.tree.kept - 1
        by_prompts: dict[int, list[Row]] = {}
        for row in rows:
            by_prompts.setdefault(len(row.prompts), []).append(row)
        budget = budget_for([len(row.tokens) + inner * len(row.prompts) for row in rows], device, join()[1])
        vocabulary = int(self.model.get_input_embeddings().num_embeddings)
        batches = []
        for number, alike in by_prompts.items():
            limit = max(1, LOGITS // (number * self.tree.kept * vocabulary))
            limit = min(limit, max(1, (most or budget) // number))
            lengths = [len(row.tokens) + inner * number for row in alike]
            batches += [[alike[i] for i in batch] for batch in by_length(lengths, budget, limit)]
        return sorted(batches, key=lambda batch: -len(batch) * len(batch[0].tokens))

    def _trees_agree(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether the model takes trees: by what it says of itself, then by the scores of a few prompts."""
        reason = _no_trees(self.model, self.room + self.longest_answer)
        if reason is None:
            few = sorted(prompts, key=list)[:CHECKED]
            try:
                difference = float(
                    np.abs(self._all(self._tree_parts(few, None)) - self._all(self._plain_parts(few, None))).max()
                )
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                tolerance = AGREE.get(_dtype(self.model), AGREE_HALF)
                reason = None if difference <= tolerance else f"scores differ by {difference:.2g}"
        if reason is not None:
            logger.info("labels are scored one by one, for this model takes no trees of tokens (%s)", reason)
        return reason is None

    def _all(self, parts: Sequence["Part"]) -> np.ndarray:
        scores = np.empty((sum(len(where) for where, _, _ in parts), self.tree.labels))
        for where, batches, compute in parts:
            scores[where] = score_batches(batches, compute, len(where), self.tree.labels, everywhere=True)
        return scores


Part = tuple[list[int], Sequence[Any], Callable[[Any], Scores]]


def _attention(model: Any) -> str:
    return str(getattr(model.config, "_attn_implementation", "") or "")


def _dtype(model: Any) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _no_trees(model: Any, longest: int) -> str | None:
    """Why a model cannot take trees, as far as its configuration tells; None if it may."""
    if _attention(model) not in ("sdpa", "eager"):
        return f"attention is {_attention(model) or 'its own'}, not sdpa or eager"
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
    }
    if kinds:
        return f"layers of the kind {', '.join(sorted(kinds))}"
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window is not None and window < longest for window in windows):
        return f"a window shorter than {longest} tokens"
    active = getattr(model, "active_peft_config", None)
    return "a learned prompt" if getattr(active, "is_prompt_learning", False) else None
