"""The report's first sentences: what was measured, in plain words, and never more than that."""

from collections.abc import Sequence
from dataclasses import dataclass

from debias_eval.comparing.compare import WHERE, Comparison, Difference, headline, p_text, seeds_words
from debias_eval.results.summary import Estimate, Row, points, subset_text

SENTENCES = 5  # of one pair of methods; the rest is in the forest plot
HEADLINES = 3


@dataclass(frozen=True)
class Verdict:
    """`headline` first, `claim` on what the seeds allow, `objections` to a claim, `findings` on the rest."""

    headline: str
    claim: str
    objections: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def verdict(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> Verdict:
    """Words for a table of rows and its comparisons with the reference."""
    if not rows:
        return Verdict("No run here has been evaluated yet.", "Judge one with: debias eval RUN --suite NAME")
    objections = tuple(dict.fromkeys(text for pair in comparisons for text in pair.objections))
    compared = [pair for pair in comparisons if any(one.primary for one in pair.differences)]
    if not compared:
        findings = _listed(rows)
        return Verdict(findings[0], _why_alone(rows), objections, tuple(findings[1:]))
    headlines = [headline(pair.first, pair.second, pair.differences, pair.objections) for pair in compared]
    findings = [text for pair in compared for text in sentences(pair)]
    return Verdict(
        " ".join(headlines[:HEADLINES]), _seeds_of(compared), objections, tuple([*headlines[HEADLINES:], *findings])
    )


def sentences(pair: Comparison) -> list[str]:
    """The pair's differences in the measure that counts, the largest first, each with interval and p."""
    primary = sorted((one for one in pair.differences if one.primary), key=lambda one: -abs(one.difference))
    told = [one for one in primary if one.clear or pair.objections]
    words = [_sentence(pair, one) for one in told[:SENTENCES]]
    if len(told) > SENTENCES:
        words.append(f"{len(told) - SENTENCES} more below: {', '.join(one.suite for one in told[SENTENCES:])}.")
    unclear = [one.suite for one in primary if not one.clear]
    return [*words, f"No clear difference on {', '.join(unclear)}."] if unclear and not pair.objections else words


def _sentence(pair: Comparison, one: Difference) -> str:
    size = points(abs(one.difference))
    more = "no difference" if size == "0.0" else f"{size} points {'more' if one.difference > 0 else 'less'}"
    numbers = (
        f"{pair.second} is right on {points(one.second)}\u00a0% and {pair.first} on {points(one.first)}\u00a0%: "
        f"{more}, difference [{points(one.low)}, {points(one.high)}]"
    )
    p = p_text(one.p_holm)
    test = "" if one.p_holm is None else f", p {p}" if p.startswith("<") else f", p = {p}"
    test = test.replace(" ", "\u00a0").replace(",\u00a0", ", ")
    own = [note for note in _notes(one) if note not in _shared_notes([pair])]
    note = f" ({'; '.join(own)})" if own else ""
    return f"On {one.suite}, {WHERE.get(one.measure, one.measure)}, {numbers}{test}{note}."


def _notes(one: Difference) -> list[str]:
    return one.note.split("; ") if one.note else []


def _shared_notes(pairs: Sequence[Comparison]) -> list[str]:
    """What is noted on every difference is said once."""
    primary = [_notes(one) for pair in pairs for one in pair.differences if one.primary]
    return [note for note in primary[0] if all(note in other for other in primary)] if len(primary) > 1 else []


def _seeds_of(pairs: Sequence[Comparison]) -> str:
    counts = {pairs[0].first: pairs[0].seeds[0]} | {pair.second: pair.seeds[1] for pair in pairs}
    if len(set(counts.values())) == 1:
        seeds = seeds_words(pairs[0].seeds)
    else:
        seeds = ", ".join(f"{name}: {_seeds(count)}" for name, count in counts.items())
    over = "test examples" if max(counts.values()) <= 1 else "seeds and examples"
    shared = "".join(f" {note[0].upper()}{note[1:]}." for note in _shared_notes(pairs))
    return f"{seeds}; 95\u00a0% intervals over {over}; p-values adjusted for the number of tests (Holm).{shared}"


def _seeds(count: int) -> str:
    if count == 0:
        return "only judged"
    return "1 seed" if count == 1 else f"{count} seeds"


def _why_alone(rows: Sequence[Row]) -> str:
    if len({one.method.name for one in rows}) == 1:
        count = 0 if rows[0].method.only_judged else rows[0].accuracy.seeds
        return f"One method, {_seeds(count)}: there is nothing here to compare it with."
    return "The methods here were not compared."


def _listed(rows: Sequence[Row]) -> list[str]:
    """Nothing to compare: each suite's numbers as they are."""
    by_suite = [[one for one in rows if one.suite == suite] for suite in dict.fromkeys(one.suite for one in rows)]
    return [_finding(group) for group in by_suite]


def _measure(rows: Sequence[Row]) -> tuple[str, list[Estimate]]:
    """The suite's telling number: accuracy where the shortcut fails if all rows have it, else accuracy."""
    conflicting = [one.conflicting for one in rows if one.conflicting is not None]
    if len(conflicting) == len(rows):
        return WHERE["conflicting"], conflicting
    return WHERE["accuracy"], [one.accuracy for one in rows]


def _finding(rows: Sequence[Row]) -> str:
    where, estimates = _measure(rows)
    subset = f" Judged on a subset ({drawn})." if (drawn := subset_text(rows)) else ""
    numbers = ", ".join(
        f"{row.method.name} is right on {one.words()} {one.range}" for row, one in zip(rows, estimates, strict=True)
    )
    return f"On {rows[0].suite}, {where}, {numbers}.{subset}"
