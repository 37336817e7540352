"""The verb `debias compare`: two methods on the same examples, suite by suite, and what may be said about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from debias.errors import InputError
from debias_eval.comparing.answers import Answers, read_answers
from debias_eval.comparing.differences import Difference, differences_of
from debias_eval.comparing.objections import about_suite, about_training, outdated
from debias_eval.results.files import Result
from debias_eval.results.grouped import group_runs, method_names
from debias_eval.results.runs import Method, Run, read_runs
from debias_eval.results.summary import points
from debias_eval.scores.intervals import holm

WHERE = {
    "conflicting": "where the shortcut gives a wrong answer",
    "accuracy": "on all examples",
}


@dataclass(frozen=True)
class Comparison:
    """Two methods, how many seeds each has (0: it was only judged), their differences, the verdict in words, and what
    keeps it from a claim.
    """

    first: str
    second: str
    seeds: tuple[int, int]
    differences: tuple[Difference, ...]
    verdict: str
    objections: tuple[str, ...]


def compare(first: Method, second: Method) -> Comparison:
    """Every measure of every suite that both methods were judged on; deterministic.

    Suites whose answers cannot be laid side by side (other examples, another version) are left out and named among the
    objections. InputError for methods without a common suite and for damaged predictions.
    """
    suites = _common_suites(first, second)
    objections, found = about_training(first, second), []
    for suite in suites:
        apart, others = about_suite(suite, first, second)
        objections += [*([apart] if apart else []), *others]
        if apart is None:
            found += _on_suite(suite, first, second)
    differences = _with_holm(found)
    seeds = (first.trained, second.trained)
    words = verdict(first.name, second.name, seeds, differences, objections)
    return Comparison(first.name, second.name, seeds, tuple(differences), words, tuple(objections))


def compare_folders(first: Sequence[Path], second: Sequence[Path]) -> Comparison:
    """Compare the runs of two lists of folders, each a run or a folder of runs; all of a side must be one method.

    With `second` empty, `first` must hold two methods: two folders, or the runs of both. InputError in one line.
    """
    sides = [read_runs(first), read_runs(second)] if second else _two_sides(first)
    shared = {run.path for run in sides[0]} & {run.path for run in sides[1]}
    if shared:
        raise InputError(f"{sorted(shared)[0]}: given on both sides")
    for runs in sides:
        _check_one_method(runs)
    names = method_names(sides)
    return compare(Method(names[0], tuple(sides[0])), Method(names[1], tuple(sides[1]), style=1))


def against_base(base: Path, runs: Sequence[Path]) -> list[Comparison]:
    """Each method of the runs against what they were fine-tuned from, a folder of results: what fine-tuning changed."""
    start = read_runs([base])
    first = Method(start[0].called or start[0].name, tuple(start))
    return [compare(first, replace(method, style=1)) for method in group_runs(read_runs(runs))]


def _two_sides(folders: Sequence[Path]) -> list[list[Run]]:
    if len(folders) == 2:
        return [read_runs([folder]) for folder in folders]
    methods = group_runs(read_runs(folders))
    if len(methods) != 2:
        names = ", ".join(method.name for method in methods)
        raise InputError(f"expected the runs of two methods, found {len(methods)} ({names}); use --against")
    return [list(method.runs) for method in methods]


def _check_one_method(runs: Sequence[Run]) -> None:
    groups = group_runs(runs)
    if len(groups) > 1:
        names = "; ".join(f"{group.name}: {', '.join(run.name for run in group.runs)}" for group in groups)
        raise InputError(
            f"one side holds {len(groups)} methods, expected runs that differ in their seed alone: {names}"
        )


def _common_suites(first: Method, second: Method) -> list[str]:
    judged = [{suite for run in method.runs for suite in run.results} for method in (first, second)]
    suites = sorted(judged[0] & judged[1])
    if not suites:
        lists = [", ".join(sorted(one)) or "no suite" for one in judged]
        raise InputError(
            f"nothing to compare: {first.name} was judged on {lists[0]}, {second.name} on {lists[1]}; "
            "run `debias eval RUN --suite NAME`"
        )
    return suites


def _on_suite(suite: str, first: Method, second: Method) -> list[Difference]:
    runs = [[run for run in method.runs if suite in run.results] for method in (first, second)]
    answers = read_answers(runs[0], runs[1], suite)
    result = runs[0][0].results[suite]
    note = _note(result, answers, judged=first.only_judged or second.only_judged)
    return [replace(one, suite=suite, note=note) for one in differences_of(answers, result.consistency is not None)]


def _note(result: Result, answers: Answers, judged: bool) -> str:
    notes = []
    if len(answers.right_RN) == 2:
        notes.append(f"{'' if judged else 'one seed each: '}the interval counts test examples, not training runs")
    elif min(answers.firsts, len(answers.right_RN) - answers.firsts) == 1:
        notes.append("a lone seed is taken to vary as the others do")
    if result.limited:
        notes.append(f"{result.n:,} of {result.available:,} examples")
    if result.overlap and result.overlap.rows and not result.overlap.excluded:
        notes.append(f"{result.overlap.rows:,} of the suite's rows are in the training data")
    if current := outdated(result):
        notes.append(f"judged under version {result.version} of the suite, which is at {current} now")
    return "; ".join(notes)


def _with_holm(differences: Sequence[Difference]) -> list[Difference]:
    families: dict[str, list[int]] = {}
    for i, one in enumerate(differences):
        families.setdefault("primary" if one.primary else one.measure, []).append(i)
    adjusted: dict[int, float] = {}
    for members in families.values():
        adjusted |= dict(zip(members, holm([differences[i].p or 0.0 for i in members]), strict=True))
    return [replace(one, p_holm=adjusted[i]) for i, one in enumerate(differences)]


def verdict(
    first: str, second: str, seeds: tuple[int, int], differences: Sequence[Difference], objections: Sequence[str]
) -> str:
    """Which is better, where, by how much, with interval and seeds; only the figures while there are objections."""
    primary = [one for one in differences if one.primary]
    if not primary:
        return f"{first} and {second} were not compared: {'; '.join(objections)}."
    many = seeds_words(seeds)
    if objections:
        listed = "; ".join(_measured(one, first, second) for one in primary)
        opening = headline(first, second, primary, objections).rstrip(".")
        return f"{opening}: {'; '.join(objections)}. Measured ({many}): {listed}."
    clear = [one for one in primary if one.clear]
    unclear = [one.suite for one in primary if not one.clear]
    words = [_claim(one, first, second) for one in sorted(clear, key=lambda one: -abs(one.difference))]
    if unclear:
        words.append(f"No clear difference on {', '.join(unclear)}.")
    words.append(f"({many}; 95 % intervals over seeds and examples; p adjusted for {_suites(len(primary))} by Holm.)")
    return " ".join([headline(first, second, primary), *words])


def seeds_words(seeds: tuple[int, int]) -> str:
    """How many seeds two methods have; of a model that was only judged none is known."""
    if not all(seeds):
        return "both only judged" if not any(seeds) else f"{_some(max(seeds))}, and a model that was only judged"
    if seeds[0] != seeds[1]:
        return f"{seeds[0]} and {seeds[1]} seeds"
    return "1 seed each" if seeds[0] == 1 else f"{seeds[0]} seeds each"


def _some(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _suites(count: int) -> str:
    return "1 suite" if count == 1 else f"{count} suites"


def headline(first: str, second: str, differences: Sequence[Difference], objections: Sequence[str] = ()) -> str:
    """Which method is better and on how many suites; with objections, that no claim is made."""
    if objections:
        return f"No claim that {second} or {first} is better."
    primary = [one for one in differences if one.primary]
    better = sum(one.clear and one.difference > 0 for one in primary)
    worse = sum(one.clear and one.difference < 0 for one in primary)
    suites = _suites(len(primary))
    if not better and not worse:
        return f"No clear difference between {second} and {first} on {suites}."
    if not better:
        return f"{first} is better than {second} on {worse} of {suites}."
    also = f" and worse on {worse}" if worse else ""
    return f"{second} is better than {first} on {better} of {suites}{also}."


def _claim(one: Difference, first: str, second: str) -> str:
    ahead, behind = (second, first) if one.difference > 0 else (first, second)
    shares = (one.second, one.first) if one.difference > 0 else (one.first, one.second)
    low, high = (one.low, one.high) if one.difference > 0 else (-one.high, -one.low)
    return (
        f"On {one.suite}, {WHERE[one.measure]}, {ahead} is right on {points(shares[0])} % and {behind} on "
        f"{points(shares[1])} %: better by {points(abs(one.difference))} points "
        f"[{points(low)}, {points(high)}], p {p_text(one.p_holm)}."
    )


def _measured(one: Difference, first: str, second: str) -> str:
    sign = "+" if one.difference > 0 else ""
    return (
        f"on {one.suite}, {WHERE[one.measure]}, {second} {points(one.second)} %, {first} {points(one.first)} %: "
        f"{sign}{points(one.difference)} points [{points(one.low)}, {points(one.high)}]"
    )


def p_text(p: float | None) -> str:
    """A p-value for people: three decimals, `< 0.001` below."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_table(comparison: Comparison) -> Table:
    """Every difference as a row of a rich table; names are plain text, no markup."""
    caption = "difference [95 % interval] in points; p after Holm over the suites; * the measure of the verdict"
    table = Table(caption=Text(caption), caption_justify="left")
    for name in ("suite", "measure"):
        table.add_column(name, overflow="fold")
    for name in (f"{comparison.first} %", f"{comparison.second} %", "difference", "p", "n"):
        table.add_column(Text(_safe(name)), justify="right")
    table.add_column("test", overflow="fold")
    suite = None
    for one in comparison.differences:
        if suite not in (None, one.suite):
            table.add_section()
        suite = one.suite
        table.add_row(*(Text(_safe(cell)) for cell in _cells_of(one)))
    return table


def _cells_of(one: Difference) -> list[str]:
    sign = "+" if one.difference > 0 else ""
    size = f"{one.n:,}" if one.clusters is None else f"{one.n:,} in {one.clusters:,}"
    return [
        one.suite,
        f"{one.measure}{' *' if one.primary else ''}",
        points(one.first),
        points(one.second),
        f"{sign}{points(one.difference)} [{points(one.low)}, {points(one.high)}]",
        p_text(one.p_holm),
        size,
        one.test,
    ]


def _safe(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
