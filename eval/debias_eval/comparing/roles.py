"""Which of the methods at hand is meant by a word: `--floor erm`, `--ceiling some_recipe`, `--floor runs/erm_seed1`."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from debias.errors import InputError
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import SWEEP_DEPTH, Method, Run, read_runs


def methods_and_roles(
    folders: Sequence[Path], floor: str, ceiling: str, *, arms: bool = False
) -> tuple[Method, Method, list[Method]]:
    """The floor, the ceiling and all other methods of the folders, if any; roles may be folders that are not among
    them.

    With `arms` a method is called by the name of its runs' folder, as an arm of a study is. InputError in one line for
    a word that names none of them or several, and for one method in both roles.
    """
    outside = [Path(word) for word in (floor, ceiling) if Path(word).is_dir()]
    given, runs = read_runs(folders), read_runs([*folders, *outside])
    known = {run.path.resolve() for run in given}
    methods = by_arm(runs) if arms else group_runs(runs)
    low, high = _named("--floor", floor, methods), _named("--ceiling", ceiling, methods)
    if low is high:
        raise InputError(f"--ceiling {ceiling!r} is {high.name}, which --floor is as well; name another method")
    others = [one for one in methods if one not in (low, high) and any(run.path.resolve() in known for run in one.runs)]
    return low, high, others


def by_arm(runs: Sequence[Run]) -> list[Method]:
    """The runs of a study, ARM/default/seedN, as methods that are called by their arms.

    Not by their settings: two arms may differ in what no run records, and one may have runs of two versions.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(_recipe(run) or run.name, []).append(run)
    return [Method(arm, tuple(members), style) for style, (arm, members) in enumerate(arms.items())]


def _named(option: str, word: str, methods: Sequence[Method]) -> Method:
    """A method's name in reports, then a recipe, then what its runs call themselves, then the folder of its runs."""
    for means in _MEANINGS:
        found = [method for method in methods if any(means(run, method, word) for run in method.runs)]
        if len(found) > 1:
            listed = "; ".join(repr(method.name) for method in found)
            raise InputError(f"{option} {word!r} is {len(found)} methods here: {listed}; give one of these names")
        if found:
            return found[0]
    names = [method.name for method in methods]
    words = list(dict.fromkeys([*names, *(_recipe(run) for method in methods for run in method.runs)]))
    near = difflib.get_close_matches(word, [one for one in words if one], n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names))}"
    raise InputError(f"{option} {word!r} is no method, recipe or run of these; {meant}")


def _recipe(run: Run) -> str:
    """Of a sweep's run, RECIPE/SETTINGS/seedN, the recipe; else nothing."""
    parts = run.path.resolve().parts
    in_sweep = len(parts) >= SWEEP_DEPTH and parts[-1].startswith("seed")
    return parts[-SWEEP_DEPTH] if in_sweep else ""


def _by_folder(run: Run, _: Method, word: str) -> bool:
    folder = Path(word)
    return folder.is_dir() and run.path.resolve().is_relative_to(folder.resolve())


_MEANINGS: tuple[Callable[[Run, Method, str], bool], ...] = (
    lambda run, method, word: method.name == word,
    lambda run, method, word: _recipe(run) == word,
    lambda run, method, word: run.called.lower() == word.lower(),
    _by_folder,
)
