"""Methods by testbeds: what each closes of each gap, what it loses where no shortcut misleads, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias_eval.comparing.closing import default_group
from debias_eval.comparing.costs import Cost, costs_of
from debias_eval.comparing.objections import about_suite
from debias_eval.comparing.roles import by_arm
from debias_eval.results.files import part_of
from debias_eval.results.runs import Method, Run, read_runs, same_data, training_data
from debias_eval.scores.closing import COINCIDE, Closed, gap_closed
from debias_eval.scores.intervals import Interval

# Of a method's settings, those that are its own wherever it is run.
OF_METHODS = (
    *("method", "loss", "bias_model", "bias_weight", "groups", "order", "first_stage"),
    *("sharpness", "smoothness", "weight_penalty", "weight_projection", "gradient_mask", "head_dropout"),
)
# What reads the groups of training examples, by the block of a run that names it.
TOLD_GROUPS = {
    "loss": ("group_dro", "gerne", "irm", "coral", "mmd", "pgi"),
    "order": ("expanding",),
    "bias_model": ("groups",),
}


@dataclass(frozen=True)
class Bed:
    """A testbed as its study has it; the kept runs lie in `folder`, ARM/default/seedN.

    `suite` and `group` (None: conflicting, else the worst) are where the gap is, `clean` a suite and a group where a
    method should lose nothing.
    """

    name: str
    folder: Path
    arms: tuple[str, ...]
    floor: str
    ceiling: str
    suite: str
    group: str | None = None
    clean: tuple[str, str] | None = None


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies over seeds, paired where seeds are shared; Student's 95 % interval.

    No interval of one seed, nor of several that differ by the same: `why`.
    """

    value: float
    interval: Interval | None
    seeds: int
    why: str = ""


@dataclass(frozen=True)
class Effect:
    """One method on one testbed. `called`: what its runs call themselves; `accuracy`: mean over seeds on the group.

    None is what there is no number for: `closed` without floor or ceiling, `clean` (method - floor) without a clean
    suite. `groups`: the method was told the training examples' groups. `settings`: its own, dotted.
    """

    arm: str
    called: str
    seeds: int
    accuracy: float | None
    closed: Closed | None
    clean: Difference | None
    cost: Cost | None
    groups: bool
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Harm:
    """A method on the ceiling's data, which has no shortcut: what it does there beside plain training."""

    arm: str
    on_group: Difference
    on_clean: Difference | None


@dataclass(frozen=True)
class Testbed:
    """All that is kept of one study, by arm; `missing` are arms without a run, `notes` why a number is not there."""

    bed: Bed
    group: str
    effects: Mapping[str, Effect]
    harms: tuple[Harm, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def read_testbed(bed: Bed) -> Testbed:
    """What the kept runs of one study say. InputError where its folder holds none."""
    methods = {method.name: method for method in by_arm(read_runs([bed.folder]))}
    floor, ceiling = methods.get(bed.floor), methods.get(bed.ceiling)
    group = bed.group or default_group([one for method in methods.values() for one in method.results(bed.suite)])
    notes = [
        f"{bed.name}: no run of {arm}, the {role}, is kept: there is no gap to measure"
        for role, arm, method in (("floor", bed.floor, floor), ("ceiling", bed.ceiling, ceiling))
        if method is None
    ]
    other = [name for name, method in methods.items() if method is not ceiling and _other_data(floor, method)]
    harms, no_harm = _harms([methods[name] for name in other], ceiling, bed, group)
    effects = {}
    for arm in (arm for arm in bed.arms if arm in methods and arm not in other):
        effects[arm], more = _effect(methods[arm], floor, ceiling, bed, group)
        notes += more
    missing = tuple(arm for arm in bed.arms if arm not in methods)
    notes += [f"{bed.name}: {arm} is trained on other data than floor and ceiling, and left out" for arm in no_harm]
    return Testbed(bed, group, effects, harms, missing, tuple(dict.fromkeys(notes)))


def _effect(
    method: Method, floor: Method | None, ceiling: Method | None, bed: Bed, group: str
) -> tuple[Effect, list[str]]:
    """And why there is no number, if there is none."""
    roles = [one for one in (floor, ceiling, method) if one is not None]
    apart, _ = about_suite(bed.suite, *roles)
    values = [_values(one, bed.suite, group) for one in roles]
    own = values[-1]
    closed = gap_closed(*values) if len(roles) == 3 and not apart and all(values) else None
    clean = None
    if bed.clean and floor:
        clean = _difference(floor, method, *bed.clean)
    cost = costs_of([floor, method])[1] if floor else None
    effect = Effect(
        arm=method.name,
        called=method.runs[0].called,
        seeds=method.seeds,
        accuracy=sum(own.values()) / len(own) if own else None,
        closed=closed,
        clean=clean,
        cost=cost,
        groups=told_groups(method.runs[0].config),
        settings=_own_settings(method.runs[0]),
    )
    return effect, [f"{bed.name}, {method.name}: {apart}"] if apart else []


def _difference(first: Method, second: Method, suite: str, group: str) -> Difference | None:
    """Second minus first; None where they were not judged there on the same examples."""
    sides = [_values(one, suite, group) for one in (first, second)]
    if about_suite(suite, first, second)[0] or not all(sides):
        return None
    found = gap_closed(sides[0], sides[1], sides[1])
    why = COINCIDE if found.gap_interval is None and min(found.seeds) > 1 else ""
    return Difference(found.gap, found.gap_interval, found.seeds[1], why)


def _values(method: Method, suite: str, group: str) -> dict[str, float]:
    """The accuracy of each seed; a run that recorded no seed is nobody's pair."""
    found = {}
    for run in method.runs:
        part = part_of(run.results[suite], group) if suite in run.results else None
        if part is not None:
            found[f"run {run.name}" if run.seed is None else str(run.seed)] = part.accuracy
    return found


def _harms(
    others: Sequence[Method], ceiling: Method | None, bed: Bed, group: str
) -> tuple[tuple[Harm, ...], list[str]]:
    """Of methods trained on other data than the floor's those on the ceiling's, and the names of the rest."""
    found, rest = [], []
    for method in others:
        same = ceiling is not None and not _other_data(ceiling, method)
        on_group = _difference(ceiling, method, bed.suite, group) if same and ceiling else None
        if on_group is None or ceiling is None:
            rest.append(method.name)
            continue
        found.append(Harm(method.name, on_group, _difference(ceiling, method, *bed.clean) if bed.clean else None))
    return tuple(found), rest


def _other_data(first: Method | None, second: Method) -> bool:
    """Whether they differ in what they are trained on; swapping tokens there is a method's own."""
    return not same_data(*(training_data(one.runs[0]) for one in (first or second, second)))


def told_groups(config: Mapping[str, Any]) -> bool:
    """Whether a run with these settings reads the groups of its training examples that came with the data.

    What its loss and its order read is told by nobody where `groups` says how they are inferred. A first stage that
    reads them tells what they say.
    """
    stage = config.get("first_stage")
    if isinstance(stage, Mapping) and told_groups(stage.get("settings") or {}):
        return True
    order = config.get("order")
    order = {"name": order} if isinstance(order, str) else order or {}
    by_group = order.get("name") == "resampled" and order.get("by", "group") == "group"
    inferred = bool(config.get("groups"))
    blocks = {name: rows for name, rows in TOLD_GROUPS.items() if not (inferred and name in ("loss", "order"))}
    return (by_group and not inferred) or any(_names(config.get(name)) & set(rows) for name, rows in blocks.items())


def _names(block: Any) -> set[str]:
    """The name in a block, and those of the blocks within: a product is made of several."""
    if isinstance(block, str):
        return {block}
    if isinstance(block, Mapping):
        return _names(block.get("name")) | _names(block.get("of"))
    return {name for one in block for name in _names(one)} if isinstance(block, list | tuple) else set()


def differing(beds: Sequence[Testbed], arm: str) -> list[str]:
    """The settings of a method that are not the same on all testbeds where it was run: dotted keys, sorted."""
    known = [one.effects[arm].settings for one in beds if arm in one.effects]
    shared = set.intersection(*map(set, known)) if known else set()
    return sorted(key for key in shared if any(one[key] != known[0][key] for one in known))


def _own_settings(run: Run) -> dict[str, Any]:
    """A block that is not there has no name, as one that is there has one."""
    own = {key: value for key, value in run.settings.items() if key.split(".")[0] in OF_METHODS}
    return {f"{key}.name" if value is None and "." not in key else key: value for key, value in own.items()}


def in_order(beds: Sequence[Testbed]) -> list[str]:
    """The arms: floors and ceilings first, then by what they close on the first testbed, then on the next."""
    arms = list(dict.fromkeys(arm for one in beds for arm in one.effects))
    roles = list(dict.fromkeys(role for one in beds for role in (one.bed.floor, one.bed.ceiling)))

    def place(arm: str) -> tuple[int, float]:
        if arm in roles:
            return 0, roles.index(arm)
        for i, one in enumerate(beds):
            effect = one.effects.get(arm)
            if effect and effect.closed and effect.closed.closed is not None:
                return i + 1, -effect.closed.closed
        return len(beds) + 1, arms.index(arm)

    return sorted(arms, key=place)
