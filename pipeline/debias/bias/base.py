"""What every bias model is: who says, without group labels, which label the shortcut alone suggests.

Shapes: N examples, M others, C labels.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from debias.config.words import key_of_text
from debias.data.examples import Example, labels_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_LARGEST_SOURCE = 20  # examples on average that come of one text: a premise, a passage
FLOOR = 1e-4  # no label is impossible: a bias model that is sure of the wrong one must not outvote every other evidence


@dataclass(frozen=True)
class BiasModel:
    """Says `p(label | what it sees)` of every training example, out of fold: of none that it was fitted on.

    Subclasses are frozen dataclasses whose fields are the settings of the `bias_model:` block.
    """

    name: ClassVar[str]
    costs: ClassVar[str] = "is fitted on the CPU before the first step, and takes nothing of a GPU"  # a plan says it
    may_find_nothing: ClassVar[bool] = False  # whether saying the same of every example is an answer, not a fault
    reads: ClassVar[frozenset[str]] = frozenset()  # what it needs of an example beside texts and label: group, bias_p

    @property
    def p_columns(self) -> tuple[str, ...]:
        """Columns of the training data that hold its probabilities, one for each label; none of most."""
        return ()

    @property
    def parts(self) -> "tuple[BiasModel, ...]":
        """The bias models that it is made of; none of most."""
        return ()

    def needs(self, what: str) -> bool:
        """Whether it, or a part of it, reads this of an example beside texts and label."""
        return what in self.reads or any(part.needs(what) for part in self.parts)

    def stages(self, run: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """What runs that have to be trained before it can be asked do otherwise than `run`; ValueError if they cannot.

        `run`: the settings of the run that the bias model is for. Most need none.
        """
        return ()

    def check(self, text_fields: Sequence[str]) -> None:
        """ValueError for settings that do not fit the data, or a package that is not here; before anything is read."""

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        """Log-probabilities [N + M, C] float64, each at least log(FLOOR / 2); the same for the same arguments.

        First those of the `examples`, out of fold and the same with or without others; then those of the `others`, of
        which nothing is learned, as the mean of what the models of all folds say of them (of their logarithms).
        """
        raise NotImplementedError

    def joined(self, said: Sequence[Floats], examples: Sequence[Example]) -> Floats:
        """What `log_p` says, [N + M, C], of what the `parts` said, each [N + M, C]; `examples`: the first N."""
        raise NotImplementedError

    def missing(self, others: Sequence[Example]) -> str | None:
        """Why it could say nothing of these examples, which it is not fitted on; None if it can."""
        return next((told for part in self.parts if (told := part.missing(others)) is not None), None)

    def digest(self, examples: Sequence[Example], labels: int, seed: int) -> str:
        """What its answers depend on, so that kept answers are known to be of this data and these settings."""
        extra = [getattr(example, name) for name in sorted(self.reads) for example in examples]
        told: Any = (self, extra) if extra else self
        if getattr(self, "folds", None) is not None and has_near_copies(examples):  # once they were parted by folds
            told = (told, "near copies share a fold")
        return digest_of(repr(told), examples, labels, seed)

    def fold_N(self, examples: Sequence[Example], seed: int, text_fields: Sequence[str] = ()) -> Ints | None:
        """The fold [N] in which it judges each example; None where it has no folds.

        `text_fields`: what the examples' texts are called, for one that sees some of them alone.
        """
        folds = getattr(self, "folds", None)
        return None if folds is None else folds_of(examples, folds, seed)

    def unseen(self, examples: Sequence[Example], labels: int, seed: int, text_fields: Sequence[str] = ()) -> list[int]:
        """Labels whose examples all lie in one fold: the model that judges them never saw one."""
        fold_N, label_N = self.fold_N(examples, seed, text_fields), labels_of(examples)
        if fold_N is None:
            return sorted({label for part in self.parts for label in part.unseen(examples, labels, seed, text_fields)})
        if not fold_N.any():  # one model, of everything
            return []
        return [label for label in range(labels) if len(np.unique(fold_N[label_N == label])) == 1]


class AskedBase(Protocol):
    """What the run's own base model says of the training examples, before the run. Shapes: D hidden units."""

    def hidden(self, layer: float, examples: Sequence[Example]) -> Floats:
        """Hidden states of a layer, averaged over each example's tokens, [N, D]; ValueError for none of its layers."""

    def after_stage(self, stage: int, examples: Sequence[Example]) -> Floats:
        """Log-probabilities [M, C] of these examples by the model of that run of `stages`, which is trained first."""


@dataclass(frozen=True)
class BaseBiasModel(BiasModel):
    """A bias model that asks the run's own base, as it is or trained for a while."""

    costs: ClassVar[str] = "asks the run's own base before the first step: one forward pass over the training set"

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        raise ValueError(f"bias_model {self.name} asks the base model of a run, and here is none")

    def asked(
        self, examples: Sequence[Example], labels: int, seed: int, base: AskedBase, others: Sequence[Example] = ()
    ) -> Floats:
        """As `log_p`."""
        raise NotImplementedError


def floored(p_NC: Floats) -> Floats:
    """Probabilities of at least about FLOOR whose rows sum to 1, as logarithms."""
    lifted_NC = np.maximum(p_NC, FLOOR)
    logs: Floats = np.log(lifted_NC / lifted_NC.sum(axis=1, keepdims=True))
    return logs


def rows_digest(examples: Sequence[Example]) -> str:
    """A digest of the rows alone, by which answers that were kept elsewhere are known to be of these."""
    return digest_of("", examples, 0, 0)


def folds_of(examples: Sequence[Example], folds: int, seed: int) -> Ints:
    """The fold [N] of each example: equal texts share one, or a model would judge what it was fitted on; and so do
    texts that are equal as words are compared.
    """
    return even_folds([keys_of(example.texts) or id_of_picture(example) for example in examples], folds, seed)


def keys_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Texts by which copies are known, that differ in a space or a capital too (`key_of_text`)."""
    return tuple(map(key_of_text, texts))


def has_near_copies(examples: Sequence[Example]) -> bool:
    """Whether some texts are others but for spaces, capitals or the form of characters."""
    different = {example.texts for example in examples}
    return len(set(map(keys_of, different))) < len(different)


def folds_by_source(examples: Sequence[Example], folds: int, seed: int) -> Ints:
    """As `folds_of`, but examples of one source share a fold: those with the same text in the field that repeats most.

    A premise that has one hypothesis of each label says, once two are known, which the third must be: judged with the
    others in the fit, it is judged by what they are not. A field with few texts (an instruction) is no source.
    """
    columns = [[key_of_text(example.texts[place]) for example in examples] for place in range(len(examples[0].texts))]
    distinct = {len(set(column)): column for column in reversed(columns)}
    sources = [count for count in distinct if count >= len(examples) / _LARGEST_SOURCE]
    return even_folds(distinct[min(sources)], folds, seed) if sources else folds_of(examples, folds, seed)


def has_few_texts(examples: Sequence[Example], place: int) -> bool:
    """Whether a field has so few texts that it is none of its own: an instruction, a topic."""
    different = {example.texts[place] for example in examples}
    return len(set(map(key_of_text, different))) < len(examples) / _LARGEST_SOURCE


def even_folds(contents: Sequence[Any], folds: int, seed: int) -> Ints:
    """The fold [N] of each of these contents: equal ones share one, different ones are dealt out evenly."""
    texts: dict[Any, int] = {}
    group_N = np.array([texts.setdefault(one, len(texts)) for one in contents], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(texts))
    fold_of_group = np.empty(len(texts), dtype=np.int64)
    fold_of_group[order] = np.arange(len(texts)) % folds
    found: Ints = fold_of_group[group_N]
    return found


def cross_fitted(fold_N: Ints, labels: int, judge: Callable[[Ints, Ints], Floats], others: int = 0) -> Floats:
    """Probabilities [N + M, C] by `judge(fitted_on, judged)`, indices [F] and [J], which gives [J, C].

    Each fold is judged by the model of the others; the `others`, M in number and N their first index, by all of these,
    whose log-probabilities are averaged.
    """
    size = len(fold_N)
    p_NC = np.full((size, labels), 1.0 / labels)
    beside = np.arange(size, size + others)
    logs = []
    for fold in np.unique(fold_N):
        judged, fitted_on = np.flatnonzero(fold_N == fold), np.flatnonzero(fold_N != fold)
        if len(fitted_on):  # else all texts are one, and nobody is left to learn from
            said = judge(fitted_on, np.concatenate([judged, beside]))
            p_NC[judged] = said[: len(judged)]
            logs.append(floored(said[len(judged) :]))
    return np.concatenate([p_NC, averaged(logs, others, labels)])


def averaged(logs: Sequence[Floats], others: int, labels: int) -> Floats:
    """Probabilities [M, C] in proportion to the geometric mean of several models', each [M, C] as logarithms."""
    mean_MC = np.mean(logs, axis=0) if logs else np.zeros((others, labels))
    p_MC: Floats = np.exp(mean_MC - np.logaddexp.reduce(mean_MC, axis=1, keepdims=True))
    return p_MC


def check_folds(folds: int) -> None:
    """ValueError for fewer than two."""
    if folds < 2:
        raise ValueError(f"folds is {folds}, expected 2 or more: an example is judged by another fold's model")


def id_of_picture(example: Example) -> bytes | None:
    """What equal pictures have in common, None of a text."""
    return None if example.image is None else example.image.tobytes()


def digest_of(block: str, examples: Sequence[Example], labels: int, seed: int) -> str:
    """A digest of settings, labels, seed, and every example's texts or picture and label."""
    told = hashlib.sha256(f"{block} {labels} {seed}".encode("utf-8", "surrogateescape"))
    for example in examples:
        told.update(repr((example.texts, example.label)).encode("utf-8", "surrogateescape"))
        told.update(id_of_picture(example) or b"")
    return told.hexdigest()
