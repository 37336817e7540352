"""Easy and hard by a classifier that sees only a part of the input: ours, fitted the same way every time, and once for
the same data: what it says is kept.

Not the published SNLI-hard (Gururangan et al., NAACL 2018), whose classifier and pairs are others.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debias.config.data import DataSource
from debias.data import Example
from debias.data.files import kind_of
from debias.data.sources import kept_examples
from debias.data.store import ROWS, Notes, kept, key_of, version_of
from debias.data.tables import Examples
from debias.errors import InputError
from debias_eval.reading.places import hub_config, local_config, local_file, not_found
from debias_eval.reading.suite import PartialInputGroups, Suite

log = logging.getLogger(__name__)
MOST_HUB_ROWS = 60_000
EASY, HARD = "partial_easy", "partial_hard"


def easy_or_hard(suite: Suite, examples: Sequence[Example]) -> list[str]:
    """For each example whether the classifier gets its label from the rule's fields alone.

    TF-IDF of words and pairs of words, logistic regression. InputError without scikit-learn or the training files.
    """
    rule = suite.group_rule.partial_input
    assert rule is not None
    classifier()  # without which what was kept must not be read either: somebody else could not make it again
    train = _training_examples(suite, rule)
    seen = [_seen(suite, rule, example) for example in examples]
    predicted = _predicted(suite, rule, train, seen)
    return [EASY if label == example.label else HARD for label, example in zip(predicted, examples, strict=True)]


def _predicted(suite: Suite, rule: PartialInputGroups, train: Sequence[Examples], seen: Sequence[str]) -> list[int]:
    """The labels that the classifier gives these texts; read where they were found before."""
    import pyarrow as pa

    def make(_: Notes) -> Iterator[Any]:
        fitted_to = [example for part in train for example in part]
        texts = [_seen(suite, rule, example) for example in fitted_to]
        model = classifier().fit(texts, [example.label for example in fitted_to])
        label_N = pa.array(model.predict(seen), pa.int32())
        for start in range(0, len(label_N), ROWS):
            yield pa.record_batch({"label": label_N[start : start + ROWS]})

    fields = [suite.text_fields.index(field) for field in rule.fields]
    told = fields, [part.key for part in train], _digest(seen)
    batches = kept(key_of("partial input", _code(), *told), make).batches
    return [label for batch in batches for label in batch.column("label").to_pylist()]


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogateescape")
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()


def _code() -> tuple[str, ...]:
    """What fits the classifier: another version of it may say otherwise."""
    import numpy as np
    import scipy
    import sklearn

    import debias.bias

    room = Path(debias.bias.__file__).parent
    return version_of(Path(__file__).parent), version_of(room), sklearn.__version__, scipy.__version__, np.__version__


def classifier() -> Any:
    """The unfitted classifier of a part of the input, a scikit-learn pipeline from texts to labels."""
    from debias.bias.partial_input import word_classifier  # whose room loads torch

    try:
        return word_classifier()
    except ValueError as error:
        raise InputError(f"groups by partial input: {error}") from None


def _training_examples(suite: Suite, rule: PartialInputGroups) -> list[Examples]:
    files = {name: local_file(suite, name) for name in rule.train}
    absent = [name for name, path in files.items() if path is None]
    if not absent:
        sources = [_source(suite, str(path)) for path in files.values()]
        configs = [local_config(suite, source) for source in sources]
    elif rule.hub is not None:
        log.info("%s; fitting the classifier behind the groups on %s", not_found(suite, absent[0]), rule.hub.source)
        configs = [hub_config(suite, rule.hub, MOST_HUB_ROWS)]
    else:
        wanted = f"its classifier of {' and '.join(rule.fields)} is fitted on it"
        raise InputError(f"{not_found(suite, absent[0])}; {wanted}")
    return [kept_examples(config.train, config.model_copy(update={"group_field": None})) for config in configs]


def _source(suite: Suite, path: str) -> DataSource:
    """The file, laid out as the suite's own where it is of that kind."""
    own = suite.source
    alike = own is not None and kind_of(own.source) == kind_of(path)
    layout = own.model_dump(include={"delimiter", "quotes"}) if own is not None and alike else {}
    return DataSource.model_validate({**layout, "source": path})


def _seen(suite: Suite, rule: PartialInputGroups, example: Example) -> str:
    return " \n ".join(example.texts[suite.text_fields.index(field)] for field in rule.fields)


def drawn_together(examples: Sequence[Example], columns: Sequence[int], most: int) -> list[str | None]:
    """What of the examples is one draw to who sees these of their texts: those of a cluster, those with the same texts
    there, and those that are so through others share a name; None for one that shares nothing.

    Texts of which there are few (an instruction, a topic) are no draws: it is what they say that is asked. Where
    clusters and texts together would make one draw of more than `most` examples, clusters alone make them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from debias.bias.base import has_few_texts

    clusters = [example.cluster for example in examples]
    if all(has_few_texts(examples, column) for column in columns):
        return clusters
    first: dict[tuple[str, ...], int] = {}
    links = []
    for place, example in enumerate(examples):
        links.append((place, first.setdefault(("text", *(example.texts[column] for column in columns)), place)))
        if example.cluster is not None:
            links.append((place, first.setdefault(("cluster", example.cluster), place)))
    here_L, there_L = zip(*links, strict=True)
    graph = coo_array(([1] * len(links), (here_L, there_L)), shape=(len(examples), len(examples)))
    found = connected_components(graph, directed=False)[1].tolist()
    sizes = Counter(found)
    if max(sizes.values()) > most and any(cluster is not None for cluster in clusters):
        return clusters
    return [str(one) if sizes[one] > 1 else None for one in found]
