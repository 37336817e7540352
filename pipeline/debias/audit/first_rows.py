"""What the first rows of a file show of single features, for who writes a run's first settings."""

from collections.abc import Sequence

from debias.audit.guessing import Table
from debias.audit.reading import named
from debias.bias.artifacts import Artifact, Artifacts, mere_signs, perhaps_the_task
from debias.data.examples import Example
from debias.data.rows import is_missing

Found = Sequence[Artifact]  # features that give the label away, the one that explains most first


def artifacts_in(table: Table, fields: Sequence[str], label_field: str, labels: Sequence[str]) -> list[Artifact]:
    """The features of these rows that give the label away by themselves, the one that explains most first.

    Rows without a label or a text are left out. None where a label has too few rows to be judged out of fold.
    """
    place = {label: at for at, label in enumerate(labels)}
    examples = [
        Example(str(number), tuple(str(row[field]) for field in fields), place[label])
        for number, row in table.rows
        if (label := named(row.get(label_field), table.classes)) in place
        and not any(is_missing(row.get(field)) for field in fields)
    ]
    model = Artifacts()
    if not examples or model.unseen(examples, len(labels), 0):
        return []
    return model.found(examples, len(labels), tuple(fields), 0)


def allowed_of(found: Sequence[Artifact], fields: Sequence[str]) -> list[str]:
    """Of what was found the words that the task may hang on."""
    return perhaps_the_task(found, fields)


def dealt_out_of(found: Sequence[Artifact]) -> list[str]:
    """Of what was found the signs that can be dealt out anew (`data.swap`)."""
    return mere_signs(found)
