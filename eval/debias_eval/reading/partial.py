"""Easy and hard by a classifier that sees only a part of the input: ours, fitted the same way every time.

Not the published SNLI-hard (Gururangan et al., NAACL 2018), whose classifier and pairs are others.
"""

import logging
from collections.abc import Sequence
from typing import Any

from debias.config.data import DataSource
from debias.data import Example, load_examples
from debias.data.files import kind_of
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
    train = _training_examples(suite, rule)
    texts = [_seen(suite, rule, example) for example in train]
    model = classifier().fit(texts, [example.label for example in train])
    predicted = model.predict([_seen(suite, rule, example) for example in examples])
    return [EASY if label == example.label else HARD for label, example in zip(predicted, examples, strict=True)]


def classifier() -> Any:
    """The unfitted classifier of a part of the input, a scikit-learn pipeline from texts to labels."""
    from debias.bias.partial_input import word_classifier  # whose room loads torch

    try:
        return word_classifier()
    except ValueError as error:
        raise InputError(f"groups by partial input: {error}") from None


def _training_examples(suite: Suite, rule: PartialInputGroups) -> list[Example]:
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
    examples: list[Example] = []
    for config in configs:
        examples += load_examples(config.train, config.model_copy(update={"group_field": None}))
    return examples


def _source(suite: Suite, path: str) -> DataSource:
    """The file, laid out as the suite's own where it is of that kind."""
    own = suite.source
    alike = own is not None and kind_of(own.source) == kind_of(path)
    layout = own.model_dump(include={"delimiter", "quotes"}) if own is not None and alike else {}
    return DataSource.model_validate({**layout, "source": path})


def _seen(suite: Suite, rule: PartialInputGroups, example: Example) -> str:
    return " \n ".join(example.texts[suite.text_fields.index(field)] for field in rule.fields)
