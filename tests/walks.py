"""How a call walks through the rooms of the code: which it enters, and how often one that it has left before.

Only calls between two different modules of ours count. What others' code calls (the Trainer, a data loader) is called
by the nearest function of ours below it; what Python makes of a class body, a comprehension or a lambda is no function
with a name, and belongs to the function that holds it. A room is a package, or a file where modules lie flat.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

OURS = ("debias", "debias_eval")
EVENTS = 400


def room_of(module: str) -> str:
    """The package or file at a root that a module lies in; rooms of the evaluator begin with `eval.`."""
    package, *rest = module.split(".")
    return ("eval." if package == "debias_eval" and rest else "") + (rest[0] if rest else package)


@dataclass
class Walk:
    """Calls between modules of ours in the order they were made, each (calling module, called module, function)."""

    calls: list[tuple[str, str, str]] = field(default_factory=list)


def climbs(walked: Walk, events: int = EVENTS) -> list[str]:
    """The calls, of the first so many, that led back into a room that the walk had left before.

    A room is left when another is entered, and entered when a function of it is called while the walk stands elsewhere;
    that a call returns to its caller is no step.
    """
    at, left, found = "", set[str](), []
    for caller, called, function in walked.calls[:events]:
        at = at or room_of(caller)
        room = room_of(called)
        if room == at:
            continue
        left.add(at)
        if room in left:
            found.append(f"{caller} -> {called}.{function}")
        at = room
    return found


def walk(run: Callable[[], Any], handed: Callable[[Any], bool] | None = None) -> Walk:
    """The walk of `run()`; with `handed`, only of calls that are given an argument for which it is true.

    So that one parameter can be followed: where it goes, and how often it comes back.
    """
    found = Walk()

    def seen(frame: FrameType, event: str, _: Any) -> None:
        module = _module(frame)
        if event != "call" or module is None or frame.f_code.co_name.startswith("<"):
            return
        if handed is not None and not any(map(handed, _arguments(frame))):
            return
        caller = _caller(frame)
        if caller is not None and caller != module:
            found.calls.append((caller, module, frame.f_code.co_name))

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [frame.f_locals.get(name) for name in names]


def _module(frame: FrameType) -> str | None:
    name = frame.f_globals.get("__name__", "")
    return name if name.partition(".")[0] in OURS else None


def _caller(frame: FrameType) -> str | None:
    """The module of the nearest function of ours that has not returned yet."""
    below = frame.f_back
    while below is not None and _module(below) is None:
        below = below.f_back
    return None if below is None else _module(below)
