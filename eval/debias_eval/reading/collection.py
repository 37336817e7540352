"""Names for several suites at once (`nli`, `fairness`, `all`), and which suite is in distribution for which others."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from debias.config.data import Strict
from debias.config.reading import parse, read_yaml
from debias.errors import InputError
from debias_eval.reading.places import where_from
from debias_eval.reading.suite import Suite, Task, available_suites, load_suite

log = logging.getLogger(__name__)
BOOK = Path(__file__).with_name("collections.yaml")
ALL = "all"


@dataclass(frozen=True)
class Pairing:
    """One suite of the distribution a model was trained on, and suites of one task that are shifted from it.

    After BOSS (Yuan et al., NeurIPS 2023).
    """

    name: str
    task: str
    id_suite: str
    ood_suites: tuple[str, ...]


class _Pair(Strict):
    name: str
    task: Task
    id: str
    ood: tuple[str, ...] = Field(min_length=1)


class _Book(Strict):
    collections: dict[str, tuple[str, ...]]
    pairings: tuple[_Pair, ...]


def collection_names() -> list[str]:
    """What `expand` knows beside suites, sorted."""
    return sorted([ALL, *_book().collections])


def members(name: str) -> tuple[str, ...]:
    """The suites of a collection in its order; InputError for a name that is none."""
    if name == ALL:
        return tuple(available_suites())
    if name not in _book().collections:
        raise InputError(f"unknown collection {name!r}; there are {', '.join(collection_names())}")
    return _book().collections[name]


@dataclass(frozen=True)
class Chosen:
    """A suite as it was asked for: `name` is a built-in name or a path; `by_name`, or a collection brought it along."""

    suite: Suite
    name: str
    by_name: bool


def choose(names: Sequence[str]) -> list[Chosen]:
    """The suites of names, paths and collections, in order and each once, each read once.

    One that is named and comes in a collection too counts as named. A collection leaves out suites whose data is not on
    this machine, and the log says which: nothing is fetched from the hub that was not named. InputError for an unknown
    name, for two suites of one name, whose results would lie in one file, and for a collection of which nothing is
    left.
    """
    found: dict[str, Chosen] = {}
    for name in names:
        by_name = name not in collection_names()
        for member, suite in _named(name).items() if by_name else _at_hand(name).items():
            before = found.get(suite.name)
            if before is not None and before.suite.file != suite.file:
                raise InputError(
                    f"suite {suite.name}: {_place(before)} and {_place(Chosen(suite, member, by_name))} have one name, "
                    "and one result would take the other's place; give one of them another name"
                )
            if before is None or by_name:
                found[suite.name] = Chosen(suite, before.name if before else member, by_name)
    return list(found.values())


def _place(one: Chosen) -> str:
    return "the built-in suite" if one.suite.file is None else one.name


def pairings() -> list[Pairing]:
    """One suite in distribution and the shifted ones, for each task."""
    return [Pairing(pair.name, pair.task, pair.id, pair.ood) for pair in _book().pairings]


@cache
def _book() -> _Book:
    return parse(_Book, read_yaml(BOOK), where=BOOK.name)


def _at_hand(name: str) -> dict[str, Suite]:
    suites = {member: load_suite(member) for member in members(name)}
    found = {member: where_from(suite) for member, suite in suites.items()}
    here = {member: suites[member] for member, where in found.items() if where in ("local", "generated")}
    away = [suite for suite, where in found.items() if where == "hub"]
    missing = [suite for suite, where in found.items() if where == "missing"]
    if away:
        log.info("%s: without %s, not on this machine; name a suite to read it from the hub", name, ", ".join(away))
    if missing:
        log.info("%s: without %s, whose files DEBIAS_DATA lacks", name, ", ".join(missing))
    if not here:
        raise InputError(f"{name}: none of its suites has its data here; DEBIAS_DATA names the folder of local data")
    return here


def _named(name: str) -> dict[str, Suite]:
    if name in available_suites() or name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        return {name: load_suite(name)}
    known = [*available_suites(), *collection_names()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        f"unknown suite {name!r}; {hint}suites: {', '.join(available_suites())}; "
        f"collections: {', '.join(collection_names())}; or give the path of a suite.yaml"
    )
