"""What the first rows of a file show of single features, for who writes a run's first settings."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from debias.audit.guessing import Table
from debias.audit.labels import named
from debias.bias.artifacts import Artifact, Artifacts, mere_signs, perhaps_the_task
from debias.data.examples import Example
from debias.data.rows import is_missing

SEARCHED = 4_000_000  # characters: some seconds, and 20,000 rows of 200


@dataclass(frozen=True)
class Found:
    """Features that give the label away, the one that explains most first; `signs`: those that can be dealt out anew
    (`data.swap`).
    """

    features: Sequence[Artifact] = ()
    signs: Sequence[str] = ()


def artifacts_in(
    table: Table,
    fields: Sequence[str],
    label_field: str,
    labels: Sequence[str],
    label_map: Mapping[str, str] | None = None,
) -> tuple[Found, int]:
    """The features of these rows that give the label away by themselves, the one that explains most first; and how
    many rows were searched: of long texts a part, drawn at random.

    Rows without a label or a text are left out. None where a label has too few rows to be judged out of fold.
    `label_map`: what values of the column stand for a label.
    """
    place = {label: at for at, label in enumerate(labels)}
    place |= {value: place[label] for value, label in (label_map or {}).items()}
    examples = [
        Example(str(number), tuple(str(row[field]) for field in fields), place[label])
        for number, row in table.rows
        if (label := named(row.get(label_field), table.classes)) in place
        and not any(is_missing(row.get(field)) for field in fields)
    ]
    examples = _part(examples)
    model = Artifacts()
    if not examples or model.unseen(examples, len(labels), 0):
        return Found(), len(examples)
    found = model.found(examples, len(labels), tuple(fields), 0)
    return Found(found, mere_signs(found, examples)), len(examples)


def _part(examples: list[Example]) -> list[Example]:
    """At random, for rows may be sorted, or come in turns."""
    held = sum(len(text) for one in examples for text in one.texts)
    if held <= SEARCHED:
        return examples
    drawn = random.Random(0).sample(range(len(examples)), max(1, len(examples) * SEARCHED // held))
    return [examples[at] for at in sorted(drawn)]


def allowed_of(found: Found, fields: Sequence[str]) -> list[str]:
    """Of what was found the words that the task may hang on."""
    return perhaps_the_task(found.features, fields)
