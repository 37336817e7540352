"""What an audit's findings come to: a sentence, and the settings that correct what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from debias.audit.fields import Alone, Relation
from debias.audit.words import Word
from debias.bias.artifacts import WORD, Artifact, Artifacts
from debias.bias.forms import FORM


@dataclass(frozen=True)
class Findings:
    """What an audit found, or looked at, of one data set."""

    fields: tuple[str, ...]
    alone: Sequence[Alone]
    words: Sequence[Word]
    relations: Sequence[Relation]
    forms: Sequence[Relation]
    strong: Sequence[Artifact]
    allowed: tuple[str, ...]  # words that the task may hang on
    few: str | None = None  # what is said of rows with few texts, of which nothing can be found
    most_of_one: float = 1.0  # of the labels' entropy that a word of one label can explain


def suggested(seen: Findings) -> dict[str, Any] | None:
    """The `bias_model:` block that sees what was found, None where nothing is to be corrected.

    Single features that explain much are corrected for alone: words, and how texts are written; what texts share, their
    lengths and negations only where no word is such a feature, for they may be the task (BENCHMARKS.md, SNLI). Of one
    field's many weak words none is: they are the task's own more likely than not, and full correction for them harms
    (planted SST-2 without its cue).
    """
    if seen.strong:
        words, form = any(one.word for one in seen.strong), [FORM] * any(one.kind == FORM for one in seen.strong)
        relations = form if words else _relations(seen.strong)
        more = {"relations": relations, "allowed": list(seen.allowed) if words else []}
        return {"name": "artifacts", **{key: value for key, value in more.items() if value}}
    if len(seen.fields) == 1:
        return None
    if any(one.found for one in seen.relations):
        return {"name": "lexical"}
    leaking = {one.field for one in seen.alone if one.found} | {word.field for word in seen.words}
    if not leaking:
        return None
    if len(leaking) == len(seen.fields):
        return {"name": "lexical", "relations": False}
    return {"name": "partial_input", "fields": [field for field in seen.fields if field in leaking]}


def verdict(seen: Findings) -> str:
    """What was found, in a sentence or two."""
    found = [f"{one.name} explains {_percent(one.explains)} of the labels" for one in seen.strong[:3]]
    found += [f"{one.field} alone is right on {_percent(one.accuracy)}" for one in seen.alone if one.found]
    if words := seen.words:
        shown = ", ".join(f"“{word.text}” ({word.label})" for word in words[:3])
        told = "1 word gives" if len(words) == 1 else f"{len(words)} words give"
        found.append(f"{told} a label away, first {shown}")
    measured = (
        (seen.relations, "measures of overlap, length and negation"),
        (seen.forms, "measures of how texts are written"),
    )
    for some, what in measured:
        if telling := [one.name for one in some if one.found]:
            go = "goes" if len(telling) == 1 else "go"
            found.append(f"{len(telling)} of {len(some)} {what} {go} with the label, first “{telling[0]}”")
    if not found:
        return seen.few or "No shortcut was found: nothing is to be corrected."
    line = "; ".join(found)
    line = f"{line[0].upper()}{line[1:]}.{f' {seen.few}' if seen.few else ''}"
    line = " ".join([line, *_about_relations(seen)])
    if len(seen.fields) > 1:
        many = not seen.strong and seen.most_of_one < 2 * Artifacts.share
        return f"{line} {_too_many_labels(seen.most_of_one)}" if many else line
    if not seen.allowed:
        if seen.strong:
            return line
        if seen.most_of_one < 2 * Artifacts.share:
            return f"{line} {_too_many_labels(seen.most_of_one)}"
        return (
            f"{line} But no single feature explains {_percent(Artifacts.share)} of the labels. With one field of text, "
            "many weak words are the task itself more likely than not: nothing is to be corrected."
        )
    return (
        f"{line} With one field of text, words may be the task itself: those in `allowed` are left to it, and what a "
        "label should not hang on is to be taken out of there."
    )


_CAREFUL = (
    "What texts share, their lengths and negations may be the task itself: name in `relations` only what a label "
    "should not hang on. Half of it (`tau: 0.5`) is what did no harm on SNLI."
)


_CLEANED = (
    "How a text is written (capitals, spaces, line breaks, its last sign) can be made alike in all texts before "
    "anything is trained; a tokenizer may hide it (uncased ones have no capitals)."
)


def _too_many_labels(most: float) -> str:
    return (
        f"With so many labels a word of one label alone explains {_percent(most)} of them at most, so that single "
        f"features hardly reach the {_percent(Artifacts.share)} from which they are corrected for: look at the words, "
        "and lower `share` of the bias model `artifacts` where they are shortcuts."
    )


def _about_relations(seen: Findings) -> list[str]:
    """What is to be known of relations that explain much: of those that are suggested, or of those that are not."""
    there = _relations(seen.strong)
    cleaned = [_CLEANED] if any(one.found for one in seen.forms) else []
    careful = [one for one in there if one != FORM]
    if not careful:
        return cleaned
    if "relations" in (suggested(seen) or {}):
        return [_CAREFUL, *cleaned]
    told = f"{' and '.join(careful)} {'is' if len(careful) == 1 else 'are'}"
    return [
        f"{told[0].upper()}{told[1:]} not corrected for by the settings, which take words alone: what texts share, "
        "their lengths and negations may be the task itself.",
        *cleaned,
    ]


def _relations(found: Sequence[Artifact]) -> list[str]:
    return sorted({one.kind for one in found} - {WORD})


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
