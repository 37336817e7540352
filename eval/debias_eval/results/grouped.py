"""Runs as methods: those that differ only in their seed are one, told from its namesakes by what tells them apart."""

import json
from collections.abc import Sequence

from debias.runs.data_files import BASE, DATA_FILES, ROLES
from debias_eval.results.runs import Method, Run


def group_runs(runs: Sequence[Run]) -> list[Method]:
    """Runs as methods, plain fine-tuning first, else in the order given.

    A run without a config, or with the seed of one already in its group, stands alone: it is no further seed.
    """
    groups: dict[str, list[Run]] = {}
    for run, key in zip(runs, _keys(runs), strict=True):
        alone = not key or run.seed in [other.seed for other in groups.get(key, [])]
        groups.setdefault(f"only {run.name}" if alone else key, []).append(run)
    members = list(groups.values())
    names = method_names(members)
    # The name carries the flag, so that no table and no sentence can lose it.
    names = [
        f"{name} (oracle selection)" if group[0].is_oracle else name for name, group in zip(names, members, strict=True)
    ]
    methods = [Method(name, tuple(group)) for name, group in zip(names, members, strict=True)]
    methods.sort(key=lambda method: not method.is_baseline)
    return [Method(method.name, method.runs, style) for style, method in enumerate(methods)]


def _keys(runs: Sequence[Run]) -> list[str]:
    """For each run what those of its method have in common, "" without a config.

    That is the settings, and the files behind these where runs of the same settings had other ones: other data or
    weights of the same name. One that did not say which then stands apart from those that did.
    """
    settings = [json.dumps({**run.settings, "selection": run.selection}, sort_keys=True, default=str) for run in runs]
    files = [json.dumps([run.info.get(DATA_FILES), run.info.get(BASE)], sort_keys=True, default=str) for run in runs]
    told: dict[str, set[str]] = {}
    for run, key, one in zip(runs, settings, files, strict=True):
        told.setdefault(key, set()).update([one] if any(map(run.files, ROLES)) or run.info.get(BASE) else [])
    return [
        (f"{key} {one}" if len(told[key]) > 1 else key) if run.config else ""
        for run, key, one in zip(runs, settings, files, strict=True)
    ]


def method_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group: the method, with the settings that tell it from its namesakes, else its first folder."""
    plain = [group[0].called or group[0].name for group in groups]
    names = []
    for name, group in zip(plain, groups, strict=True):
        twins = [other for twin, other in zip(plain, groups, strict=True) if twin == name]
        names.append(name if len(twins) == 1 else _told_apart(name, group[0], [twin[0] for twin in twins]))
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({group[0].name})" for name, group in zip(plain, groups, strict=True)]


def _told_apart(name: str, run: Run, twins: Sequence[Run]) -> str:
    keys = differing_settings(twins)
    if not keys or len(keys) > 2:
        return f"{name} ({run.name})"
    return f"{name} ({', '.join(f'{key} {run.settings.get(key)}' for key in keys)})"


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted keys whose value is not the same in all runs that have a config, sorted."""
    settings = [run.settings for run in runs if run.config]
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len({json.dumps(one.get(key), default=str) for one in settings}) > 1]
