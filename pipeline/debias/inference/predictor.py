"""A trained model as a predictor: what evaluation asks of it. Shapes: N examples, C labels.

`loading.py` makes one of a run's folder, of a hub model or of an adapter.
"""

import hashlib
import logging
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from debias.adapters.loading import adapter_change, merge, unmerge
from debias.adapters.some_tokens import acts_on_some
from debias.building.task import Task
from debias.config.run import RunConfig
from debias.data.encode import say_what_was_cut
from debias.data.examples import Example
from debias.errors import InputError
from debias.inference.agreement import PaddingGuard
from debias.inference.answer_scores import Scoring
from debias.inference.answers import AnswerScorer
from debias.inference.batches import Scores, budget_for, by_length, from_first, join, out_of_memory, score_batches
from debias.models.rounding import tolerance
from debias.models.vision import positions_of
from debias.readouts import Answers

logger = logging.getLogger(__name__)
CHECKED, CHECKED_AGAIN = 8, 64  # examples that the adapter is checked on, and where it changes none of the first


class Predictor:
    """Scores labels with a model; the same texts are computed once, whatever suites they come in.

    Under torchrun each rank scores its share and all have all scores. `sharded`: the weights are spread over the ranks.
    """

    def __init__(
        self, model: Any, task: Task, config: RunConfig, scoring: Scoring | None = None, *, sharded: bool = False
    ) -> None:
        self.model = model
        self.task = task
        self.config = config
        self.scoring = scoring or Scoring()
        self.sharded = sharded
        self.any_texts = False  # a classifier of which nobody said what it reads
        self.refuses_idle_adapter = False
        self.weights: str | None = None  # digest of a run's weights, which its results name
        self._answers: AnswerScorer | None = None
        if isinstance(task.readout, Answers) and task.prompt is not None:
            ask = (model, task.readout, task.prompt, task.collate, task.max_length)
            self._answers = AnswerScorer(*ask, self.scoring)
        self.padding = self._answers.padding if self._answers else PaddingGuard(model)
        self._known: dict[Hashable, np.ndarray] = {}
        self._cut: set[Hashable] = set()  # of those that are known
        self.asked_and_cut = (0, 0)  # examples so far, and those of them that were longer than the model reads
        self._change: float | None = None  # of the scores, by the adapter
        self._batch_size: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels, in the order of its scores."""
        return self.config.data.labels

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The texts the model reads, in order; empty: whatever a suite has."""
        return () if self.any_texts else self.config.data.text_fields

    @property
    def description(self) -> dict[str, Any]:
        """How labels were scored, for the results; whole once something was scored."""
        told: dict[str, Any] = {
            "how": "answers" if self._answers is not None else "classification",
            "normalize": self.scoring.normalize,
            "calibrate": self.scoring.calibrate,
            "max_length": self.task.max_length,
            "dtype": str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())).removeprefix(
                "torch."
            ),
            "load_in_4bit": self.config.load_in_4bit,
            "batch": self._batch_size or "by tokens",
            "ranks": join()[1],
            "deepspeed": self.config.deepspeed if self.sharded else None,
        }
        if self._answers is not None:
            told["one_pass"] = self._answers.trees
        if self._change is not None:
            told |= {"adapter_changes_logits": self._change > 0, "max_change": float(f"{self._change:.3g}")}
        return told

    @property
    def answers(self) -> AnswerScorer:
        """What scores the answers of a causal model; ValueError for another."""
        if self._answers is None:
            raise ValueError("this model has a head of its own, and no answers")
        return self._answers

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> np.ndarray:
        """Log-likelihood of each label, [N, C] float64, in the order of `examples`.

        Batches are made by length under a budget of tokens; `batch_size` is the most examples of one. InputError when
        the device's memory does not suffice.
        """
        self._batch_size = batch_size
        if not examples:
            return np.empty((0, len(self.labels)))
        self.model.eval()
        device = next(self.model.parameters()).device
        # As in training: a bf16 base, and autocast for what trained in float32.
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16)
        with torch.inference_mode(), bf16:
            try:
                self._check_adapter(examples)
                return self._scores(examples, batch_size)
            except RuntimeError as error:
                raise out_of_memory(error) from error

    def from_first(self, scores: np.ndarray | None) -> np.ndarray | None:
        """What the first rank has, on all ranks."""
        return from_first(scores)

    @property
    def prompt_limits(self) -> tuple[int, int]:
        """The tokens that a prompt of a causal model may have, and what it may have with an answer."""
        return self.answers.room, self.config.max_length

    def prompt_lengths(self, examples: Sequence[Example]) -> list[int]:
        """How many tokens the prompt of each example has, whole."""
        return [len(ids) for ids in self.answers.prompt.ids_of_all(examples)]

    def say_what_was_cut(self, asked: int = 0, cut: int = 0) -> None:
        """A warning of the first rank where examples were cut; `asked` and `cut`: those before them."""
        asked, cut = self.asked_and_cut[0] - asked, self.asked_and_cut[1] - cut
        if cut and join()[0] == 0:
            say_what_was_cut(cut, asked, self.task.max_length, prompts=self._answers is not None)

    def forget(self) -> None:
        """Let go of what was scored, where rows come as a stream without end."""
        self._known.clear()
        self._cut.clear()

    def _scores(self, examples: Sequence[Example], batch_size: int | None) -> np.ndarray:
        keys = [_key(example) for example in examples]
        new = {key: example for key, example in zip(keys, examples, strict=True) if key not in self._known}
        if new:
            self._known |= zip(new, self._raw(list(new.values()), batch_size), strict=True)
        self._count(keys)
        raw_NC = np.stack([self._known[key] for key in keys])
        return raw_NC if self._answers is None else self._answers.adjusted(raw_NC)

    def _count(self, keys: Sequence[Hashable]) -> None:
        asked, cut = self.asked_and_cut
        self.asked_and_cut = asked + len(keys), cut + sum(key in self._cut for key in keys)

    def _raw(self, examples: list[Example], most: int | None = None, *, everywhere: bool = False) -> np.ndarray:
        encoded = self.task.encode(examples, with_answer=False, quiet=True)
        self._cut |= {_key(examples[place]) for place in encoded.cut_at}
        if self._answers is not None:
            prompts = [feature["input_ids"] for feature in encoded.features]
            return self._answers.raw(prompts, most, everywhere=everywhere)
        collate, device = self.task.collate, next(self.model.parameters()).device

        def compute(batch: Sequence[int]) -> Scores:
            inputs = collate([encoded[i] for i in batch])["inputs"]
            there = {key: value.to(device) for key, value in inputs.items()}
            return batch, self.task.readout.label_scores(self.model, there).double().cpu().numpy()

        of_picture = positions_of(self.model.config)
        lengths = [len(feature.get("input_ids", ())) or of_picture for feature in encoded.features]
        unpadded = self.padding.forbids(lengths, compute)
        batches = by_length(lengths, budget_for(lengths, device.type, join()[1]), most, unpadded=unpadded)
        return score_batches(batches, compute, len(encoded), len(self.labels), everywhere=everywhere)

    def _check_adapter(self, examples: Sequence[Example]) -> None:
        """Once: whether the adapter changes the scores of a few examples; then it is merged where nothing is lost."""
        if self._change is not None or not hasattr(self.model, "peft_config"):
            return
        few = list(examples[:CHECKED])
        self._change = adapter_change(self.model, lambda: self._raw(few, everywhere=True))
        if self._change == 0:
            self._look_further(examples)
        if not self.sharded and not self.config.bf16:
            self._fold(few)

    def _look_further(self, examples: Sequence[Example]) -> None:
        """At all examples where the adapter acts on some tokens alone: such a one may wait for those of later rows."""
        some = acts_on_some(self.model)
        more = list(examples if some else examples[:CHECKED_AGAIN])
        self._change = adapter_change(self.model, lambda: self._raw(more))
        if self._change == 0:
            told = f"the adapter changes nothing in {len(more)} examples: scores are those of the model without it"
            if self.refuses_idle_adapter and not some:
                raise InputError(told)
            logger.warning("WARNING: %s", told)

    def _fold(self, few: list[Example]) -> None:
        """Merge the adapter for speed, and take it out again where what the model says is no longer the same."""
        before_NC = self._raw(few, everywhere=True)
        if not merge(self.model):
            return
        difference = float(np.abs(self._raw(few, everywhere=True) - before_NC).max())
        if not difference <= tolerance(self.model, float(np.abs(before_NC).max())):
            unmerge(self.model)
            logger.info("the adapter stays beside its base: folded into it, scores differ by %.2g", difference)


def _key(example: Example) -> Hashable:
    return example.texts if example.image is None else hashlib.sha256(example.image.tobytes()).digest()
