"""A bias model of the few simple features that give the label away by themselves, and of nothing else.

Shapes: N examples, M others, C labels, F fields, V words, K cells of a feature.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import (
    BiasModel,
    Floats,
    Ints,
    check_folds,
    cross_fitted,
    floored,
    folds_by_source,
    labels_of,
)
from debias.bias.copies import weights_of_repeats
from debias.bias.features import KINDS, counted, relations
from debias.bias.forms import FORM, forms
from debias.bias.lexical import check_words, fitted, probabilities
from debias.config.words import TOKEN, as_compared, held_and_loose, is_sign, stands_apart, visible, words_of
from debias.data.examples import Example

logger = logging.getLogger(__name__)
WORD = "word"
RELATIONS = (*KINDS, FORM)
CELLS = 8  # of a length or an overlap: eighths of the data
SURE = 0.05  # the chance that any of the features looked at is found where labels are dealt out at random
TRIES = 20  # features that seem to give something away, and do not out of fold, before the search ends


@dataclass(frozen=True)
class Artifact:
    """A feature that gives the label away. `explains`: how much of the labels' entropy, beyond those before it and out
    of fold; `seen_NK`: its cells, [N + M, K] of 0 and 1, in one of which an example is, or in none; `kind`: word, or
    the relation that it is; `word`: the word or the words that it is, None of a relation.
    """

    name: str
    explains: float
    seen_NK: Any
    kind: str = WORD
    word: str | None = None

    def is_called(self, allowed: str) -> bool:
        """Whether that is its name, or is in its words, side by side."""
        return self.name == allowed or (self.word is not None and _has(self.word, allowed))


def perhaps_the_task(found: Sequence[Artifact], fields: Sequence[str]) -> list[str]:
    """The words that a label may well hang on: of a single field, those with a letter in them.

    Of two fields the task is how they relate, and no word of one should tell; in one field words have their meaning.
    """
    if len(fields) > 1:
        return []
    return [one.word for one in found if one.word and any(sign.isalpha() for sign in one.word)]


def mere_signs(found: Sequence[Artifact], examples: Sequence[Example]) -> list[str]:
    """Of the words those that are one run of signs, without letter, digit or mark, and that mostly stand where they can
    be taken out: moved elsewhere, a text stays whole. Inside words, numbers, links and markup they cannot.
    """
    words = [one.word for one in found if one.word]
    signs = [word for word in words if TOKEN.fullmatch(word) and is_sign(word)]
    places, apart = Counter[str](), Counter[str]()
    for text in (text for one in examples if signs for text in one.texts):
        if any(word in as_compared(text) for word in signs):
            held, loose = held_and_loose(text)
            places.update(as_compared(token[0]) for token in (*held, *loose))
            apart.update(as_compared(token[0]) for token in loose if stands_apart(token))
    return [word for word in signs if 2 * apart[word] > places[word]]


@dataclass(frozen=True)
class Artifacts(BiasModel):
    """Words, and lengths and overlaps if asked, each of which explains a good share of the labels by itself.

    In a task that takes understanding no single feature should give the label away; one that does is an artifact of
    how the data were made (Gardner et al.). So the feature that explains most is looked for, then the one that explains
    most beyond it, until none explains `share` of the entropy of the labels, out of fold and surely; at most `most`.
    Looked at are words and sequences of up to `longest` of each field, and those `relations` that are named: `overlap`
    of the fields, their `length`, `negation`, and the `form` in which they are written (capitals, spaces, line breaks,
    the last sign, digits, markup); none by default: what texts share is often what the task is about.
    Copies of a row, and rows of one text of a field beside others (a hypothesis beside many premises), explain what
    they explain, and make nothing surer (`weights_of_copies`).
    What they say together is p (logistic regression, cross-fitted in `folds`). `fields`: those it may see (default:
    all). `allowed`: what a label may hang on, which is found and left to the task: words or sequences of them (with
    all that have them in), or a feature by its name. **Where it finds nothing, it says each label's share and no
    more**: with `prior: labels`, logit correction is then plain training.

    `share` is 0.02. A cue on a third of the examples that is right nine times in ten explains 0.19 of two labels and
    0.37 of three; of SST-2's own words the first, “bad”, explains 0.011, of SNLI's 0.013. These are training data.

    Needs scikit-learn and no group labels. Costs seconds on one core (more with many labels), and no
    training. Fails on shortcuts that are no word, length or overlap (a style, a topic, a colour) and on many small
    ones, which `first_learned` and `lexical` see; and where the task itself hangs on few words (abuse, long reviews),
    which are then taken away.

    Source: Gardner et al., Competency Problems: On Finding and Removing Artifacts in Language Data, EMNLP 2021, arXiv
    2104.08646; the search and its two conditions are ours.
    """

    name: ClassVar[str] = "artifacts"
    may_find_nothing: ClassVar[bool] = True
    share: float = 0.02
    most: int = 10
    fields: tuple[str, ...] = ()
    longest: int = 2
    relations: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    folds: int = 5

    def __post_init__(self) -> None:
        check_folds(self.folds)
        if not all(isinstance(one, str) and one.strip() for one in self.allowed):
            raise ValueError(f"allowed is {list(self.allowed)}, expected words, or features as the log calls them")
        if not set(self.relations) <= set(RELATIONS):
            raise ValueError(f"relations is {list(self.relations)}, expected some of {', '.join(RELATIONS)}")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, expected a share of the labels' entropy between 0 and 1")
        for name in ("most", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def check(self, text_fields: Sequence[str]) -> None:
        check_words(self.name, self.fields, text_fields)

    def fold_N(self, examples: Sequence[Example], seed: int, text_fields: Sequence[str] = ()) -> Ints:
        return folds_by_source(examples, self.folds, seed)

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        found = self.found(examples, labels, text_fields, seed, others)
        self._say_what_is_nowhere(examples, found)
        for one in found:
            may = ", which is allowed" if self._allows(one) else ""
            logger.info(
                "bias model artifacts: %s explains %.1f %% of the labels%s", visible(one.name), 100 * one.explains, may
            )
        corrected = [one for one in found if not self._allows(one)]
        if not corrected:
            more = " more than what is allowed" if found else ""
            logger.info(
                "bias model artifacts: no single feature gives away %.1f %% of the labels%s", 100 * self.share, more
            )
            share_C = np.bincount(labels_of(examples), minlength=labels) / len(examples)
            return floored(np.tile(share_C, (len(examples) + len(others), 1)))
        if words := perhaps_the_task(corrected, text_fields):
            logger.warning(
                "bias model artifacts: with one field of text these words may be the task itself, and are taken away "
                "from it; to leave it some or all: allowed: %s",
                json.dumps([*self.allowed, *words], ensure_ascii=False),
            )
        return floored(self._said(corrected, labels_of(examples), labels, self.fold_N(examples, seed)))

    def found(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> list[Artifact]:
        """The features that give labels away, the one that explains most first, allowed or not: what an allowed one
        explains is not looked for in others. None is learned of `others`.
        """
        label_N, fold_N = labels_of(examples), self.fold_N(examples, seed)
        entropy = entropy_of(label_N)
        if entropy == 0:
            return []
        weight_N = weights_of_repeats(
            examples, [list(text_fields).index(field) for field in self.fields or text_fields]
        )
        candidates = self._candidates([*examples, *others], text_fields, label_N, entropy, weight_N)
        found: list[Artifact] = []
        p_NC = self._said(found, label_N, labels, fold_N)
        sure_NC = p_NC if weight_N is None else self._said(found, label_N, labels, fold_N, weight_N)
        loss = log_loss(p_NC, label_N)
        for _ in range(self.most + len(self.allowed) + TRIES):
            if (
                sum(not self._allows(one) for one in found) == self.most
                or (best := candidates.best(label_N, p_NC, sure_NC, labels, self.share * entropy)) is None
            ):
                break
            taken = candidates.taken(best)
            with_it = self._said([*found, taken], label_N, labels, fold_N)
            fallen = loss - (new := log_loss(with_it, label_N))
            if fallen >= self.share * entropy:
                found.append(replace(taken, explains=fallen / entropy))
                p_NC, loss = with_it, new
                sure_NC = p_NC if weight_N is None else self._said(found, label_N, labels, fold_N, weight_N)
        return found

    def _candidates(
        self,
        examples: Sequence[Example],
        text_fields: Sequence[str],
        label_N: Ints,
        entropy: float,
        weight_N: Floats | None,
    ) -> "_Candidates":
        fields = self.fields or tuple(text_fields)
        places = [list(text_fields).index(field) for field in fields]
        texts_FN = [[example.texts[place] for example in examples] for place in places]
        words_FN = [[words_of(text) for text in texts_N] for texts_N in texts_FN]
        found = _Candidates(len(label_N), weight_N)
        for field, words_N in zip(fields, words_FN, strict=True):
            rarest = max(2, int(len(label_N) * _rarest(label_N, self.share * entropy)))
            try:
                counts_NV, texts = counted(words_N, self.longest, rarest, learned_from=len(label_N))
            except ValueError as error:
                if "scikit-learn" in str(error):
                    raise
                continue  # no word occurs that often
            order = sorted(range(len(texts)), key=lambda at: texts[at].count(" "))  # the shorter of equals
            found.add_words(counts_NV[:, order], [texts[at] for at in order], field)
        for kind in self.relations:
            values_NR, names = forms(texts_FN, fields) if kind == FORM else relations(words_FN, fields, [kind])
            for value_N, name in zip(values_NR.T, names, strict=True):
                found.add_cells(value_N, name, kind)
        return found

    def _allows(self, one: Artifact) -> bool:
        return any(one.is_called(allowed) for allowed in self.allowed)

    def _say_what_is_nowhere(self, examples: Sequence[Example], found: Sequence[Artifact]) -> None:
        left = [allowed for allowed in self.allowed if not any(one.is_called(allowed) for one in found)]
        texts = [" ".join(words_of(text)) for one in examples for text in one.texts] if left else []
        for allowed in left:
            if not any(_has(text, allowed) for text in texts):
                logger.warning("bias model artifacts: allowed: %r is in no text, and no feature's name", allowed)

    @staticmethod
    def _said(
        found: Sequence[Artifact], label_N: Ints, labels: int, fold_N: Ints, weight_N: Floats | None = None
    ) -> Floats:
        """Probabilities [N + M, C] by these features together, out of fold; without one, each label's share [N, C].

        `weight_N`: how much each row counts, else all alike.
        """
        if not found:
            rows = len(label_N) if weight_N is None else weight_N.sum()
            share_C = np.bincount(label_N, weights=weight_N, minlength=labels) / rows
            return np.tile(np.maximum(share_C, 1e-9), (len(label_N), 1))
        from scipy import sparse

        seen_NK = sparse.hstack([one.seen_NK for one in found], format="csr")
        return judged_by_pattern(seen_NK, label_N, labels, fold_N, weight_N)


class _Candidates:
    """Features that are still to be looked at: words by presence, and values by the cell they fall in.

    `weight_N`: how much each row counts for how sure a feature is; None for all alike.
    """

    def __init__(self, size: int, weight_N: Floats | None = None) -> None:
        self.size, self.weight_N = size, weight_N
        self.seen: list[tuple[Any, int | None]] = []  # [N + M, K] sparse, and which column it is; None: all of them
        self.names: list[str] = []
        self.kinds: list[tuple[str, str | None]] = []  # and the words, of what is some
        self.words: list[tuple[int, Any]] = []  # where the words of a field begin, and all of them, [N, V]

    def add_words(self, counts_NV: Any, words: Sequence[str], field: str) -> None:
        present_NV = (counts_NV > 0).astype(np.float64).tocsc()
        self.words.append((len(self.names), present_NV[: self.size]))
        self.seen += [(present_NV, at) for at in range(present_NV.shape[1])]
        self.names += [f"“{word}” in {field}" for word in words]
        self.kinds += [(WORD, word) for word in words]

    def add_cells(self, value_N: Floats, name: str, kind: str) -> None:
        from scipy import sparse

        edges = edges_of(value_N[: self.size])
        cell_N = np.searchsorted(edges, value_N, side="right")
        seen_NK = sparse.csc_matrix(np.eye(len(edges) + 1)[cell_N])
        self.seen.append((seen_NK[:, np.asarray(seen_NK[: self.size].sum(axis=0)).ravel() > 0], None))
        self.names.append(name)
        self.kinds.append((kind, None))

    def taken(self, at: int) -> Artifact:
        """The feature there, which is not looked at again."""
        found, self.names[at] = self.names[at], ""
        seen_NK, column = self.seen[at]
        return Artifact(found, 0.0, seen_NK if column is None else seen_NK[:, [column]], *self.kinds[at])

    def best(self, label_N: Ints, p_NC: Floats, sure_NC: Floats, labels: int, least: float) -> int | None:
        """The feature that would lower the log loss of p most, by `least` nats and surely; None if none does.

        `sure_NC`: as p, of rows as they count, by which it is told how sure a feature is.
        """
        one_NC = np.eye(labels)[label_N]
        gain_V, degrees_V = self._gains(one_NC, p_NC[: self.size])
        sure_V, rows = gain_V, float(self.size)
        if self.weight_N is not None:
            rows, weight_N1 = float(self.weight_N.sum()), self.weight_N[:, None]
            sure_V = self._gains(weight_N1 * one_NC, weight_N1 * sure_NC[: self.size])[0] * self.size / rows
        fair_V = gain_V - degrees_V / (2 * rows)  # what as many cells gain by chance alone
        fair_V[[name == "" for name in self.names]] = 0.0
        from scipy.stats import chi2

        # One that is likelier chance must not hide one that says a little less, and surely.
        fair_V[chi2.sf(2 * rows * sure_V, degrees_V) * len(gain_V) >= SURE] = 0.0
        return int(fair_V.argmax()) if len(fair_V) and fair_V.max() >= least else None

    def _gains(self, one_NC: Floats, p_NC: Floats) -> tuple[Floats, Floats]:
        """How many nats an example each feature says beyond p, and the degrees of freedom of that, both [V]."""
        gain_V, degrees_V = np.zeros(len(self.names)), np.ones(len(self.names))
        of_words = np.zeros(len(self.names), dtype=bool)
        for start, present_NV in self.words:
            here = slice(start, start + present_NV.shape[1])
            with_it, expected = present_NV.T @ one_NC, present_NV.T @ p_NC
            rest, rest_expected = one_NC.sum(axis=0) - with_it, p_NC.sum(axis=0) - expected
            gain_V[here] = surprise(with_it, expected) + surprise(rest, rest_expected)
            of_words[here], degrees_V[here] = True, one_NC.shape[1] - 1
        for at in np.flatnonzero(~of_words):
            cells_NK = self.seen[at][0][: self.size]
            gain_V[at] = surprise(cells_NK.T @ one_NC, cells_NK.T @ p_NC).sum()
            degrees_V[at] = max(1, cells_NK.shape[1] - 1) * (one_NC.shape[1] - 1)
        return gain_V / self.size, degrees_V


def judged_by_pattern(seen_NK: Any, label_N: Ints, labels: int, fold_N: Ints, weight_N: Floats | None = None) -> Floats:
    """As `judged_out_of_fold`, of few features of 0 and 1: examples that are alike in them and in the label are one row
    with a weight, so that what a fit takes does not grow with their number. `weight_N`: how much each counts, else 1.
    """
    seen_PK, pattern_N = np.unique(seen_NK.toarray().astype(np.uint8), axis=0, return_inverse=True)
    pattern_N = pattern_N.ravel()

    def judge(fitted_on: Ints, judged: Ints) -> Floats:
        kinds = pattern_N[fitted_on] * labels + label_N[fitted_on]
        if weight_N is None:
            alike, times = np.unique(kinds, return_counts=True)
        else:
            alike, place = np.unique(kinds, return_inverse=True)
            times = np.bincount(place.ravel(), weights=weight_N[fitted_on])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes")  # beside rows, which stand for many
            model = fitted(seen_PK[alike // labels].astype(np.float64), alike % labels, times)
        return probabilities(model, seen_PK.astype(np.float64), labels)[pattern_N[judged]]

    return cross_fitted(fold_N, labels, judge, seen_NK.shape[0] - len(fold_N))


def _has(sequence: str, words: str) -> bool:
    """Whether these words stand in it side by side."""
    return f" {' '.join(words_of(words))} " in f" {sequence} "


def edges_of(value_N: Floats) -> Floats:
    """Where the cells of a value begin, but the first: each value its own where they are few, else eighths of the data.

    A value that fills an eighth or more by itself is a cell of its own: what is rare beside it is not lost in it.
    """
    distinct = np.unique(value_N)
    if len(distinct) <= CELLS:
        return distinct[1:]
    edges, times = np.unique(np.quantile(value_N, np.linspace(0, 1, CELLS + 1)[1:-1]), return_counts=True)
    return np.unique([*edges, *np.nextafter(edges[times > 1], np.inf)])


def surprise(counted_KC: Floats, expected_KC: Floats) -> Floats:
    """`sum_c O log(O / E)` of each row of counts and of what was expected, half of the G statistic; [K]."""
    some = np.maximum(counted_KC, 1e-300)
    found: Floats = (counted_KC * np.log(some / np.maximum(expected_KC, 1e-9))).sum(axis=1)
    return found


def entropy_of(label_N: Ints) -> float:
    """Of the labels as they are, in nats."""
    share_C = np.bincount(label_N) / len(label_N)
    return float(-(share_C[share_C > 0] * np.log(share_C[share_C > 0])).sum())


def log_loss(p_NC: Floats, label_N: Ints) -> float:
    """The mean of `-log p` of the labels, of the first N rows, in nats."""
    return float(-floored(p_NC)[np.arange(len(label_N)), label_N].mean())


def _rarest(label_N: Ints, nats: float) -> float:
    """The share of examples that a word must be in, to be able to say so much: all of them of the rarest label."""
    share_C = np.bincount(label_N) / len(label_N)
    return float(nats / (2 * -np.log(share_C[share_C > 0].min())))
