"""The audit of a data set: what its fields, words and their relations give away, and what would correct it.

Shapes: N examples, C labels, F fields.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from debias.audit.fields import Alone, Relation, alone, related
from debias.audit.limits import about_few_texts, about_unseen_labels, most_of_one_label
from debias.audit.reading import Dataset
from debias.audit.suggestion import Findings, suggested, verdict
from debias.audit.sureness import RELATED, WRITTEN, Interval, interval_of
from debias.audit.words import Word, WordTable, table_of, words_found
from debias.bias.artifacts import RELATIONS, Artifacts, mere_signs, perhaps_the_task
from debias.bias.base import (
    Floats,
    Ints,
    even_folds,
    folds_by_source,
    folds_of,
    has_few_texts,
    keys_of,
    labels_of,
)
from debias.bias.calibration import out_of_fold
from debias.bias.copies import least_of, weights_of_copies, weights_of_repeats
from debias.bias.features import counted, relations, weighted
from debias.bias.forms import FORM, forms
from debias.bias.lexical import Lexical, fitted, judged_out_of_fold, probabilities
from debias.config.words import escaped, key_of_text, words_of
from debias.data import Example
from debias.errors import InputError

FOLDS = 5
SURE = 0.8
FEWEST = 20  # examples; with fewer there is nothing to be sure of


@dataclass(frozen=True)
class Copies:
    """`repeated`: examples whose texts an earlier one has. `disputed`: whose texts also have another label."""

    repeated: int
    disputed: int


@dataclass(frozen=True)
class Easy:
    """What the bias model `lexical` gets right, out of fold: all in all, and with p > 0.8 of the right label."""

    accuracy: float
    interval: Interval
    most: float
    sure: float


@dataclass(frozen=True)
class Tested:
    """The same bias model, fitted on all of the data, on other data. `shared`: its examples whose texts are in both."""

    name: str
    examples: int
    accuracy: float
    interval: Interval
    most: float
    shared: int


@dataclass(frozen=True)
class Strong:
    """A single feature that explains much: that share of the labels' entropy, beyond those before it, out of fold."""

    name: str
    explains: float
    kind: str  # word, overlap, length, negation or form


@dataclass(frozen=True)
class Audit:
    """All that was found in one data set. `looked_at`: words and pairs of words times labels, what p allows for."""

    name: str
    examples: int
    fields: tuple[str, ...]
    label_field: str
    labels: dict[str, int]
    verdict: str
    bias_model: dict[str, Any] | None
    dealt_out: tuple[str, ...]  # `data.swap.tokens`
    strong: tuple[Strong, ...]
    alone: tuple[Alone, ...]
    words: tuple[Word, ...]
    looked_at: int
    relations: tuple[Relation, ...]
    forms: tuple[Relation, ...]  # of how texts are written
    easy: Easy
    copies: Copies
    test: Tested | None
    layout: Mapping[str, Any]  # what was said of how the file is laid out
    about_labels: tuple[str, ...]  # what somebody should know of the labels, a line each

    def as_dict(self) -> dict[str, Any]:
        """For JSON and the page; each finding with whether it was found."""
        told = {**asdict(self), "settings": block_as_yaml(self.bias_model, self.dealt_out)}
        for kind in ("alone", "relations", "forms"):
            for one, row in zip(getattr(self, kind), told[kind], strict=True):
                row["found"] = one.found
        return told


@dataclass(frozen=True)
class Counted:
    """The words of each field as they were counted, for who asks about one that was not found."""

    tables: Sequence[WordTable]

    def word(self, field: str, text: str, label: str) -> Word | None:
        """The word as it is here, found or not (p is then not adjusted); None where it hardly occurs."""
        table = next((one for one in self.tables if one.field == field), None)
        if table is None or text not in table.texts or label not in table.labels:
            return None
        at, place = list(table.texts).index(text), list(table.labels).index(label)
        return table.word(at, place, float(table.p_VC[at, place]))


def audit(data: Dataset, test: Dataset | None = None, seed: int = 0) -> tuple[Audit, Counted]:
    """Everything that is found in the data, and what it was found in. No model is trained; seconds to a minute.

    InputError for fewer than FEWEST examples, and without scikit-learn.
    """
    if len(data.examples) < FEWEST:
        raise InputError(f"{data.name}: {len(data.examples)} examples, expected {FEWEST} or more: too few to be sure")
    label_N, names = labels_of(data.examples), data.fields
    texts_FN = [[example.texts[place] for example in data.examples] for place in range(len(names))]
    words_FN = [[words_of(text) for text in texts_N] for texts_N in texts_FN]
    fold_FN = [_folds(data.examples, place, seed) for place in range(len(names))]
    copies_N = weights_of_copies(data.examples)
    weight_FN = [least_of(copies_N, weights_of_copies(data.examples, place)) for place in range(len(names))]
    weight_N = least_of(*weight_FN)
    seen, tables = _counted(data, words_FN, fold_FN, label_N, weight_FN)
    of_fields = alone(seen, label_N, len(data.labels), dict(zip(names, weight_FN, strict=True)))
    words, looked_at = words_found(tables)
    values_NR, relation_names = relations(words_FN, names)
    of_relations = related(values_NR, relation_names, label_N, data.labels, weight_N, RELATED)
    of_forms = related(*forms(texts_FN, names), label_N, data.labels, weight_N, WRITTEN)
    strong = Artifacts(relations=RELATIONS).found(data.examples, len(data.labels), names, seed)
    by_words = Artifacts().found(data.examples, len(data.labels), names, seed)  # as a run of the block searches
    allowed = tuple(perhaps_the_task(by_words, names))
    few = about_few_texts(data.examples, names)
    most = most_of_one_label(label_N)
    findings = Findings(names, of_fields, words, of_relations, of_forms, strong, allowed, few, most)
    block = suggested(findings)
    refused = [] if block is None else about_unseen_labels(data.examples, data.labels, names, data.label_field, seed)
    p_NC = _bias_model([counts for counts, _ in seen.values()], values_NR, data, seed)
    return Audit(
        name=data.name,
        examples=len(data.examples),
        fields=names,
        label_field=data.label_field,
        labels={label: int((label_N == at).sum()) for at, label in enumerate(data.labels)},
        verdict=verdict(findings),
        bias_model=block,
        dealt_out=tuple(mere_signs(by_words, data.examples)),
        strong=tuple(Strong(one.name, one.explains, one.kind) for one in strong),
        alone=tuple(of_fields),
        words=tuple(words),
        looked_at=looked_at,
        relations=tuple(of_relations),
        forms=tuple(of_forms),
        easy=_easy(p_NC, label_N, weight_N),
        copies=copies_in(data.examples),
        test=None if test is None else tested(data, test),
        layout=dict(data.layout),
        about_labels=(*data.about_labels, *refused),
    ), Counted(tables)


def _folds(examples: Sequence[Example], place: int, seed: int) -> Ints:
    """Of one field alone: equal texts share a fold, or a premise would be judged by what its others are not.

    Of a field with few texts (an instruction, a topic) equal rows do: else each of its texts would be new to its judge.
    """
    if has_few_texts(examples, place):
        return folds_of(examples, FOLDS, seed)
    return even_folds([key_of_text(example.texts[place]) for example in examples], FOLDS, seed)


def _counted(
    data: Dataset,
    words_FN: Sequence[Sequence[Sequence[str]]],
    fold_FN: Sequence[Ints],
    label_N: Ints,
    weight_FN: Sequence[Floats | None],
) -> tuple[dict[str, tuple[Any, Ints]], list[WordTable]]:
    """Of each field its TF-IDF with its folds, and the table of its words; fields without a word twice left out."""
    seen, tables = {}, []
    for field, words_N, fold_N, weight_N in zip(data.fields, words_FN, fold_FN, weight_FN, strict=True):
        try:
            counts_NV, texts = counted(words_N, 2)
        except ValueError as error:
            if "scikit-learn" in str(error):
                raise InputError(f"debias audit: {error}") from None
            continue
        tables.append(table_of(counts_NV, texts, label_N, fold_N, field, data.labels, weight_N))
        seen[field] = (weighted(counts_NV), fold_N)
    return seen, tables


def _bias_model(blocks: Sequence[Any], values_NR: Floats, data: Dataset, seed: int) -> Floats:
    """What the bias model `lexical` says out of fold, of features that are there already."""
    from scipy import sparse

    label_N = labels_of(data.examples)
    seen_NV = sparse.hstack([*blocks, sparse.csr_matrix(values_NR)], format="csr")
    p_NC = judged_out_of_fold(seen_NV, label_N, len(data.labels), folds_by_source(data.examples, FOLDS, seed))
    return np.exp(out_of_fold(p_NC, label_N, calibrated=True))


def _easy(p_NC: Floats, label_N: Ints, weight_N: Floats | None) -> Easy:
    right_N, n = p_NC.argmax(axis=1) == label_N, len(label_N)
    sure = float((p_NC[np.arange(n), label_N] > SURE).mean())
    return Easy(float(right_N.sum() / n), interval_of(right_N, weight_N), float(np.bincount(label_N).max() / n), sure)


def copies_in(examples: Sequence[Example]) -> Copies:
    """How many examples are copies, but for spaces and capitals, and of how many another copy has another label."""
    labels: dict[tuple[str, ...], set[int]] = {}
    keys = [keys_of(example.texts) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        labels.setdefault(key, set()).add(example.label)
    disputed = sum(len(labels[key]) > 1 for key in keys)
    return Copies(len(examples) - len(labels), disputed)


def tested(data: Dataset, test: Dataset) -> Tested:
    """What the bias model `lexical` of all the data gets right on other data with the same fields and labels."""
    together = [*data.examples, *test.examples]  # which words there are is no secret of a label
    seen_NV = Lexical().features(together, data.fields)
    n, label_M = len(data.examples), labels_of(test.examples)
    p_MC = probabilities(fitted(seen_NV[:n], labels_of(data.examples)), seen_NV[n:], len(data.labels))
    right_M, m = p_MC.argmax(axis=1) == label_M, len(label_M)
    known = {keys_of(example.texts) for example in data.examples}
    most = Counter(label_M.tolist()).most_common(1)[0][1] / m
    shared = sum(keys_of(example.texts) in known for example in test.examples)
    interval = interval_of(right_M, weights_of_repeats(test.examples, range(len(test.fields))))
    return Tested(test.name, m, float(right_M.sum() / m), interval, most, shared)


def block_as_yaml(block: Mapping[str, Any] | None, dealt_out: Sequence[str] = ()) -> str:
    """The settings that correct what was found, as they stand in a run's file; `dealt_out`: for `data.swap.tokens`."""
    if block is None:
        return "# nothing is to be corrected"
    inside = ", ".join(f"{key}: {_yaml(value)}" for key, value in block.items())
    # Of all but single words and the form of a text full strength costs ordinary accuracy: BENCHMARKS.md, SNLI.
    careful = {*block.get("relations", ())} - {FORM} or block["name"] != "artifacts"
    half = ", tau: 0.5" if careful else ""
    swap = f"\n# and below data, for signs: swap: {{tokens: {_yaml(list(dealt_out))}}}" if dealt_out else ""
    return f"bias_model: {{{inside}}}\nloss: {{name: logit_correction, prior: labels{half}}}{swap}"


def _yaml(value: Any) -> str:
    import json

    return str(value) if isinstance(value, str) else escaped(json.dumps(value, ensure_ascii=False))
