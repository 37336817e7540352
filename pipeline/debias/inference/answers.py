"""Causal models as judges: prompts to log-likelihoods of answers, normalised and calibrated. C labels, N prompts."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from debias.data.prompt import Prompt, common_prefix
from debias.inference.agreement import PaddingGuard, attention_of, no_trees, tree_tolerance
from debias.inference.answer_scores import Scoring
from debias.inference.batches import Scores, budget_for, by_length, join, score_batches
from debias.inference.trees import Row, TreeScorer, answer_tree, plant_rows
from debias.readouts import Answers

logger = logging.getLogger(__name__)
# A shared beginning of fewer tokens is cheaper to compute again than to attend to; so is a longer row.
WORTH, LONGEST_ROW, WORTH_HEAD = 4, 256, 8
LOGITS = 2**27  # elements of one batch's kept logits: 512 MiB in float32
CHECKED = 6  # prompts of a row that trees are compared on


class AnswerScorer:
    """Log-likelihoods of the answers of `prompt` after prompts, all labels in one pass where the model allows it.

    `collate` pads a batch of encoded prompts.
    """

    def __init__(
        self,
        model: Any,
        readout: Answers,
        prompt: Prompt,
        collate: Callable[[list[Any]], Any],
        max_length: int,
        scoring: Scoring,
    ) -> None:
        self.model = model
        self.collate = collate
        self.padding = PaddingGuard(model)
        self.readout = readout
        self.prompt = prompt
        self.scoring = scoring
        self.tree = answer_tree(readout.verbalizer_ids)
        self.longest_answer = max(len(ids) for ids in readout.verbalizer_ids)
        self.room = max_length - self.longest_answer
        self.trees: bool | None = None  # not known before the first examples
        self._proved = (0, 0)  # the widest row and the fullest that trees were compared on
        self._prior_C: np.ndarray | None = None

    def raw(self, prompts: Sequence[Sequence[int]], most: int | None, *, everywhere: bool = False) -> np.ndarray:
        """log p(answer | prompt), [N, C] float64; each distinct prompt is computed once."""
        distinct = {tuple(ids): None for ids in prompts}
        place = {ids: index for index, ids in enumerate(distinct)}
        plantings = self.look_at(list(distinct))
        if self.trees:
            parts = [self._tree_part(planting, most) for planting in plantings]
        else:
            parts = [self._plain_part(list(distinct), most)]
        scores = np.empty((len(distinct), self.tree.labels))
        for where, batches, compute in parts:
            scores[where] = score_batches(batches, compute, len(where), self.tree.labels, everywhere=everywhere)
        return scores[[place[tuple(ids)] for ids in prompts]]

    def look_at(self, prompts: Sequence[Sequence[int]]) -> list["Planting"]:
        """Distinct prompts as trees, none where the model takes none; what has to be compared for them is."""
        if self.trees is False:
            return []
        plantings = self._plantings(prompts)
        self.trees = self._trees_agree(prompts, plantings)
        return plantings

    def passed(self, prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Of one pass over distinct prompts as trees: tokens that the layers see, positions of which logits are made.

        Without padding, and what is compared once.
        """
        plantings = self._plantings(prompts)
        tokens = sum(len(head) + sum(map(self._width, rows)) for _, head, rows in plantings)
        return tokens, self.tree.kept * len(prompts)

    def adjusted(self, raw_NC: np.ndarray) -> np.ndarray:
        """Raw scores normalised and calibrated as `scoring` says."""
        scores_NC = raw_NC / self._lengths()
        if self.scoring.calibrate == "none":
            return scores_NC
        if self._prior_C is None:
            self._prior_C = self._prior()
        return scores_NC - self._prior_C

    def _lengths(self) -> np.ndarray:
        return self.scoring.lengths(self.prompt.answers, np.array([len(ids) for ids in self.readout.verbalizer_ids]))

    def _prior(self) -> np.ndarray:
        """What is subtracted from each label's score, [C]."""
        texts = self.scoring.prior_texts(self.prompt.template, self.prompt.text_fields)
        prompts = [self.prompt.fitted(self.prompt.ids_of_text(text), self.room) for text in texts]
        return self.scoring.prior(self.raw(prompts, None, everywhere=True) / self._lengths())

    def _plain_part(self, prompts: Sequence[Sequence[int]], most: int | None, *, unpadded: bool = False) -> "Part":
        """A forward pass for each label (one for all, if each answer is one token)."""
        lengths = [len(ids) + self.longest_answer for ids in prompts]
        device = next(self.model.parameters()).device

        def compute(batch: Sequence[int]) -> Scores:
            padded = self.collate([{"tokens": {"input_ids": list(prompts[i])}, "facts": {}} for i in batch])["inputs"]
            inputs = {key: value.to(device) for key, value in padded.items()}
            return batch, self.readout.label_scores(self.model, inputs).double().cpu().numpy()

        alike = unpadded or self.padding.forbids(lengths, compute)
        budget = budget_for(lengths, device.type, join()[1])
        return list(range(len(prompts))), by_length(lengths, budget, most, unpadded=alike), compute

    def _plantings(self, prompts: Sequence[Sequence[int]]) -> list["Planting"]:
        """Prompts that begin with the common head, and those that were cut to `max_length`, as rows."""
        whole = [i for i, ids in enumerate(prompts) if len(ids) < self.room]
        head = self._head([prompts[i] for i in whole])
        if not head:
            return [_plant(prompts, list(range(len(prompts))), ())]
        rest = sorted(set(range(len(prompts))) - set(whole))
        return [_plant(prompts, whole, head), *([_plant(prompts, rest, ())] if rest else [])]

    def _head(self, prompts: Sequence[Sequence[int]]) -> Sequence[int]:
        if len(prompts) < 2:
            return ()
        shared = common_prefix(min(prompts, key=list), max(prompts, key=list))
        shared = min(shared, *(len(ids) - 1 for ids in prompts))  # each keeps a token of its own
        return prompts[0][:shared] if shared >= WORTH_HEAD else ()

    def _tree_part(self, planting: "Planting", most: int | None) -> "Part":
        where, head, rows = planting
        scorer = TreeScorer(self.model, self.tree, head, additive=attention_of(self.model) == "eager")

        def compute(batch: Sequence[Row]) -> Scores:
            prompt_N, scores_NC = scorer.scores(batch)
            return prompt_N.tolist(), scores_NC.double().numpy()

        return where, self._row_batches(rows, most), compute

    def _row_batches(self, rows: Sequence[Row], most: int | None) -> list[list[Row]]:
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

    def _trees_agree(self, prompts: Sequence[Sequence[int]], plantings: Sequence["Planting"]) -> bool:
        """Whether the model takes trees: by what it says of itself, then by scores of the hardest rows there are.

        Those are the widest and the fullest, for what is wrong with a mask shows where places in a row are far from
        depths in the tree, and with one beside them that is padded. Later rows that are harder are compared too.
        """
        reason = no_trees(self.model, self.room + self.longest_answer) if self.trees is None else None
        try:
            for planting in plantings if reason is None else ():
                reason = reason or self._compared(prompts, planting)
        except Exception as error:  # a model that knows no such masks fails in its own way
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            logger.info("labels are scored one by one, for this model takes no trees of tokens (%s)", reason)
        return reason is None

    def _compared(self, prompts: Sequence[Sequence[int]], planting: "Planting") -> str | None:
        """How trees and plain passes differ on the hardest rows of a planting; None where they agree."""
        where, head, rows = planting
        widest, fullest = max(rows, key=self._width), max(rows, key=lambda row: len(row.prompts))
        size = (len(head) + self._width(widest), len(fullest.prompts))
        if size[0] <= self._proved[0] and size[1] <= self._proved[1]:
            return None
        least = min((row for row in rows if len(row.prompts) == len(widest.prompts)), key=self._width)
        hard = list({id(row): row for row in (widest, fullest, least)}.values())
        chosen = sorted({row.prompts[k] for row in hard for k in _spread(len(row.prompts))})
        want = self._all(self._plain_part([prompts[where[i]] for i in chosen], None, unpadded=True))
        _, _, compute = self._tree_part((where, head, hard), None)
        got = {i: one_C for batch in self._row_batches(hard, None) for i, one_C in zip(*compute(batch), strict=True)}
        difference = float(np.abs(np.stack([got[i] for i in chosen]) - want).max())
        self._proved = (max(size[0], self._proved[0]), max(size[1], self._proved[1]))
        allowed = tree_tolerance(self.model, float(np.abs(want).max()))
        return None if difference <= allowed else f"scores differ by {difference:.2g}"

    def _width(self, row: Row) -> int:
        return len(row.tokens) + (self.tree.kept - 1) * len(row.prompts)

    def _all(self, part: "Part") -> np.ndarray:
        where, batches, compute = part
        return score_batches(batches, compute, len(where), self.tree.labels, everywhere=True)


Part = tuple[list[int], Sequence[Any], Callable[[Any], Scores]]
Planting = tuple[list[int], Sequence[int], list[Row]]  # which prompts, the head they begin with, their rows below it


def _plant(prompts: Sequence[Sequence[int]], where: list[int], head: Sequence[int]) -> Planting:
    return where, head, plant_rows([prompts[i][len(head) :] for i in where], worth=WORTH, longest=LONGEST_ROW)


def _spread(number: int) -> list[int]:
    """At most `CHECKED` places of `number`, the first and the last among them."""
    return sorted({round(k * (number - 1) / (CHECKED - 1)) for k in range(CHECKED)})
