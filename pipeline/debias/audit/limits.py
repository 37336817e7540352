"""What an audit cannot tell of data, and what training with its settings would refuse: a sentence each."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from debias.bias.artifacts import Artifacts, entropy_of
from debias.bias.base import Ints, keys_of
from debias.data import Example

_FEW = 20  # rows of each text, on average, from which the texts are values of a column more than texts


def about_few_texts(examples: Sequence[Example], fields: Sequence[str]) -> str | None:
    """Of data with so few different rows that each is judged by what never saw its text: how much it would tell."""
    labels: dict[tuple[str, ...], Counter[int]] = {}
    for example in examples:
        labels.setdefault(keys_of(example.texts), Counter())[example.label] += 1
    if len(labels) >= len(examples) / _FEW:
        return None
    right = sum(counts.most_common(1)[0][1] for counts in labels.values()) / len(examples)
    most = Counter(example.label for example in examples).most_common(1)[0][1] / len(examples)
    return (
        f"{' and '.join(fields)}: {len(labels):,} different texts in {len(examples):,} rows, each of which is judged "
        "by what never saw it, so that nothing can be found. Who knows which of them it is, and always says its most "
        f"frequent label, is right on {100 * right:.1f} % of these rows (the most frequent label: {100 * most:.1f} %): "
        "say yourself whether that is a shortcut."
    )


def about_unseen_labels(
    examples: Sequence[Example], labels: Sequence[str], fields: Sequence[str], label_field: str, seed: int
) -> list[str]:
    """Of labels whose rows all lie in one fold, which a bias model cannot learn, a line each."""
    count = Counter(example.label for example in examples)
    return [
        f"{label_field}: {labels[at]!r}, in {count[at]:,} of {len(examples):,} rows, lies in one fold alone: training "
        "with the bias model below refuses it; leave the label out (data.labels), or give more of its rows"
        for at in Artifacts().unseen(examples, len(labels), seed, fields)
        if count[at]
    ]


def most_of_one_label(label_N: Ints) -> float:
    """The share of the labels' entropy that a word explains which stands in all rows of one label and in no other."""
    share_C = np.bincount(label_N) / len(label_N)
    inside = share_C[(share_C > 0) & (share_C < 1)]
    own_C = -(inside * np.log(inside) + (1 - inside) * np.log1p(-inside))
    return float(own_C.max() / entropy_of(label_N)) if len(inside) else 1.0
