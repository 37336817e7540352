"""What keeps a difference between two methods from being a claim that one is better."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from debias_eval.reading.suite import available_suites, load_suite
from debias_eval.results.alike import alike, why_apart
from debias_eval.results.files import Result, unlike
from debias_eval.results.runs import Method, Run, stages_of

FEWEST_SEEDS = 5
# Keys of a result's `judge` that two results may differ in and still be compared.
NO_MATTER = (
    *("adapter", "max_change", "batch", "ranks", "deepspeed", "one_pass", "seconds", "samples", "device"),
    *("cut", "max_length"),  # these two go together: see _lengths
)
FINISHED = ("finished", "done", "complete", "completed", "ok")


def about_training(first: Method, second: Method) -> list[str]:
    """Too few seeds, unequal compute, a selection rule that saw the test or is not the same, unfinished runs."""
    runs = [*first.runs, *second.runs]
    return [
        *(_few_seeds(method) for method in (first, second) if method.seeds < FEWEST_SEEDS),
        *_compute(first, second),
        *_selection(first, second),
        *(f"{run.name} has the status {status!r}" for run in runs if (status := _status(run)) is not None),
    ]


def _few_seeds(method: Method) -> str:
    if method.only_judged:
        return f"{method.name} was only judged, not trained here: what another seed would do is not known"
    return f"{method.name} has {method.seeds} seed{'' if method.seeds == 1 else 's'}, fewer than {FEWEST_SEEDS}"


def _status(run: Run) -> str | None:
    status = run.info.get("status")
    return None if status is None or status in FINISHED else str(status)


def _compute(first: Method, second: Method) -> list[str]:
    """Whether both saw as many examples, those of the runs before the run included: who made them paid for them."""
    if first.only_judged or second.only_judged:  # which is an objection already, and whoever trained it kept no record
        return []
    methods = (first, second)
    seen = [{run.name: examples_seen(run) for run in method.runs} for method in methods]
    if unknown := _unknown(seen):
        return [f"unknown compute: no steps and batch size are recorded for {unknown}"]
    before = [{run.name: examples_before(run) for run in method.runs} for method in methods]
    if unknown := _unknown(before):
        return [f"unknown compute: what runs before the run saw is not recorded for {unknown}"]
    own = [[value or 0 for value in one.values()] for one in seen]
    earlier = [[value or 0 for value in one.values()] for one in before]
    sizes = [sorted({a + b for a, b in zip(*side, strict=True)}) for side in zip(own, earlier, strict=True)]
    if sizes[0] == sizes[1] and len(sizes[0]) == 1:
        return []
    means = [(method.name, sum(one) / len(one)) for method, one in zip(methods, earlier, strict=True)]
    more = [
        f"unequal compute: {name} saw {mean:,.0f} examples more in runs before the run" for name, mean in means if mean
    ]
    if len({*own[0], *own[1]}) == 1:
        return more
    words = [" or ".join(f"{value:,}" for value in sorted({*one})) for one in own]
    return [f"unequal compute: {first.name} saw {words[0]} examples in training, {second.name} {words[1]}", *more]


def _unknown(of_methods: Sequence[Mapping[str, int | None]]) -> str:
    return ", ".join(name for one in of_methods for name, value in one.items() if value is None)


def examples_before(run: Run) -> int | None:
    """Examples seen in the runs before a run, by those in its folder; a run that took another's answers over says how
    many those were of. None where one of them did not record it.
    """
    stages = [examples_seen(stage) for stage in stages_of(run)]
    if not stages and "examples_before" in run.info:
        told = run.info["examples_before"]
        return told if isinstance(told, int) and not isinstance(told, bool) else None
    known = [seen for seen in stages if seen is not None]
    return sum(known) if len(known) == len(stages) else None


def examples_seen(run: Run) -> int | None:
    """Steps x batch x accumulation x processes; None where the run did not record it."""
    machine = run.info.get("machine")
    world = machine.get("world_size", 1) if isinstance(machine, dict) else 1
    factors = [
        run.info.get("steps"),
        run.config.get("per_device_train_batch_size"),
        run.config.get("gradient_accumulation_steps", 1),
        world,
    ]
    whole = [factor for factor in factors if isinstance(factor, int) and not isinstance(factor, bool)]
    return whole[0] * whole[1] * whole[2] * whole[3] if len(whole) == len(factors) else None


def _selection(first: Method, second: Method) -> list[str]:
    rules = [sorted({run.selection for run in method.runs}) for method in (first, second)]
    oracle = [method.name for method in (first, second) if any(run.is_oracle for run in method.runs)]
    found = [f"oracle selection: the checkpoint of {name} was chosen with the test's own answers" for name in oracle]
    if rules[0] != rules[1] and not (first.only_judged or second.only_judged):
        words = [" and ".join(one) for one in rules]
        found.append(f"different selection: {first.name} by {words[0]}, {second.name} by {words[1]}")
    return found


def about_suite(suite: str, *methods: Method) -> tuple[str | None, list[str]]:
    """(why the answers cannot be laid side by side at all, or None; what else keeps them from being a claim)."""
    results = [result for method in methods for result in method.results(suite)]
    others = []
    for method in methods:
        judged = len(method.results(suite))
        if judged < method.seeds:
            others.append(f"suite {suite}: only {judged} of {method.seeds} runs of {method.name} were judged on it")
    others += [told for method in methods if (told := _chosen_on(suite, method)) is not None]
    others += [*_judges(suite, results), *_lengths(suite, results)]
    return _apart(suite, results) or _scored_apart(suite, methods), others


def _chosen_on(suite: str, method: Method) -> str | None:
    """Selection that saw the test set, whatever its rule is called."""
    seen = [one.overlap.chosen_on for one in method.results(suite) if one.overlap and not one.overlap.excluded]
    if not any(seen):
        return None
    rows = f"{max(seen):,} of its rows are"
    return f"suite {suite}: {rows} validation rows by which {method.name} was chosen: selection saw the test"


def _apart(suite: str, results: Sequence[Result]) -> str | None:
    versions = sorted({result.version for result in results})
    if len(versions) > 1:
        return f"suite {suite}: judged under its versions {' and '.join(map(str, versions))}"
    why = unlike(results)
    return None if why is None else f"suite {suite}: {why}"


def _scored_apart(suite: str, methods: Sequence[Method]) -> str | None:
    """Of the first method whose own runs were scored in several ways: no mean over its seeds is a mean of one thing."""
    for method in methods:
        results = method.results(suite)
        if len(alike(results)) > 1:
            why = next(filter(None, (why_apart(one, results[0]) for one in results[1:])), "judged unlike")
            return f"suite {suite}: some runs of {method.name} were {why}; judge them again in one way"
    return None


def outdated(result: Result) -> int | None:
    """The version a built-in suite is at now, where the result is of another one; else None."""
    if result.suite_file is not None or result.suite not in available_suites():  # somebody's own may have its name
        return None
    now = load_suite(result.suite).version
    return None if now == result.version else now


def _judges(suite: str, results: Sequence[Result]) -> list[str]:
    judges = [_settings(result.judge) for result in results]
    differing = sorted({key for one in judges for key in one if any(other.get(key) != one[key] for other in judges)})
    if not differing:
        return []
    values = [f"{key} {' / '.join(sorted({str(one.get(key)) for one in judges}))}" for key in differing]
    return [f"suite {suite}: judged in different ways: {', '.join(values)}"]


def _lengths(suite: str, results: Sequence[Result]) -> list[str]:
    """What texts were cut to, where it is not the same and any were; results of older versions do not say it."""
    lengths = {result.judge["max_length"] for result in results if "max_length" in result.judge}
    if len(lengths) < 2 or not any(result.judge.get("cut") for result in results):
        return []
    return [f"suite {suite}: judged in different ways: max_length {' / '.join(sorted(map(str, lengths)))}"]


def _settings(judge: dict[str, Any]) -> dict[str, str]:
    """How labels were scored, without how the work was spread and what was measured on the way."""
    return {
        key: json.dumps(_with_short_digest(value), sort_keys=True)
        for key, value in judge.items()
        if not key.startswith(NO_MATTER)
    }


def _with_short_digest(value: Any) -> Any:
    """Of examples in context eight letters of their digest tell them apart; all sixty-four fill three lines."""
    return {**value, "sha256": str(value["sha256"])[:8]} if isinstance(value, dict) and "sha256" in value else value
