"""What an audit's findings come to: a sentence, and the settings that correct what was found."""

from collections.abc import Sequence
from typing import Any

from debias.audit.fields import Alone, Relation
from debias.audit.words import Word


def suggested(
    fields: Sequence[str], alone: Sequence[Alone], words: Sequence[Word], relations: Sequence[Relation]
) -> dict[str, Any] | None:
    """The `bias_model:` block that sees what was found, None where nothing is to be corrected."""
    leaking = [one.field for one in alone if one.found]
    worded = {word.field for word in words}
    telling = [one.name for one in relations if one.found]
    if not (leaking or worded or telling):
        return None
    if telling or len(fields) == 1:
        return {"name": "lexical"}
    seen = tuple(field for field in fields if field in worded or field in leaking)
    if len(seen) == len(fields):
        return {"name": "lexical", "relations": False}
    return {"name": "partial_input", "fields": list(seen)}


def verdict(fields: Sequence[str], alone: Sequence[Alone], words: Sequence[Word], relations: Sequence[Relation]) -> str:
    """What was found, in a sentence or two."""
    found = [f"{one.field} alone is right on {_percent(one.accuracy)}" for one in alone if one.found]
    if words:
        shown = ", ".join(f"“{word.text}” ({word.label})" for word in words[:3])
        told = "1 word gives" if len(words) == 1 else f"{len(words)} words give"
        found.append(f"{told} a label away, first {shown}")
    if telling := [one.name for one in relations if one.found]:
        count = f"{len(telling)} of {len(relations)} measures of overlap, length and negation"
        found.append(f"{count} {'goes' if len(telling) == 1 else 'go'} with the label, first “{telling[0]}”")
    if not found:
        return "No shortcut was found: nothing is to be corrected."
    line = "; ".join(found)
    if len(fields) > 1:
        return f"{line[0].upper()}{line[1:]}."
    return (
        f"{line[0].upper()}{line[1:]}. With one field of text, words may be the task itself: correct what a label "
        "should not hang on, and nothing else."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
