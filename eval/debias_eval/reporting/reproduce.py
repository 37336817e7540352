"""What it takes to get a report's numbers again: commands, settings, versions, suites and the digests of examples."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from debias.runs.names import ASKED, CONFIG
from debias.runs.time_left import in_words
from debias_eval.results.alike import SCORING, scoring
from debias_eval.results.files import Result
from debias_eval.results.grouped import differing_settings
from debias_eval.results.runs import Method, Run, flatten
from debias_eval.results.summary import judge_text

RULES = {
    "last": "last step",
    "validation": "best in-distribution validation",
    "worst_class": "best worst-class accuracy on validation",
    "pseudo_groups": "best mean accuracy over pseudo groups of validation (label and bias model's guess)",
    "oracle": "oracle: chosen on the test itself",
}


@dataclass(frozen=True)
class Judging:
    """A suite as one or more runs were judged on it."""

    suite: str
    version: str
    examples: str
    digest: str
    judge: str
    runs: str


def what_was_run(methods: Sequence[Method]) -> dict[str, Any]:
    """Everything that the section `Reproduce` shows."""
    runs = [run for method in methods for run in method.runs]
    keys = differing_settings(runs)
    return {
        "keys": keys,
        "settings": [(method, [_setting(method.runs[0], key) for key in keys]) for method in methods],
        "configs": [_configs(method) for method in methods if method.runs[0].config],
        "commands": [commands(run) for run in runs],
        **_facts(methods),
        "versions": _versions(runs),
        "judged": judgings(runs),
    }


def _facts(methods: Sequence[Method]) -> dict[str, Any]:
    """Each run's facts, and apart from them what all runs share."""
    rows = [(run, method, facts(run)) for method in methods for run in method.runs]
    same = {
        label: value
        for label, value in rows[0][2].items()
        if len(rows) > 2 and all(told[label] == value for _, _, told in rows)
    }
    own = [(run, method, {k: v for k, v in told.items() if k not in same}) for run, method, told in rows]
    return {"facts": own, "shared": ", ".join(f"{label.lower()} {value}" for label, value in same.items())}


def commands(run: Run) -> list[str]:
    """The command lines that train a run again, beside it, and judge it, in a shell's quotes.

    They are given in the folder that the run lies in. None judges where nothing says which model it was. What a command
    cannot say is a shell's comment.
    """
    lines = _training(run) if run.config else []
    model = _judged(run)
    by_options: dict[tuple[bool, str], list[Result]] = {}
    for result in run.results.values() if model else ():
        by_options.setdefault((_by_harness(result), _options(result)), []).append(result)
    for i, ((logged, options), results) in enumerate(by_options.items()):
        if logged:
            lines += _through_harness(run.name, results, options, f"{run.name}-tasks{i or ''}")
        else:
            suites = " ".join(f"--suite {shlex.quote(one.suite_file or one.suite)}" for one in results)
            lines.append(f"debias eval {model} {suites}{options}")
    return lines


def _by_harness(result: Result) -> bool:
    """Whether another program scored the answers, and we counted what it logged."""
    return scoring(result.judge)["by"] != SCORING["by"]


def _through_harness(run: str, results: Sequence[Result], options: str, tasks: str) -> list[str]:
    """How they were made: exported, asked by the harness, brought back."""
    suites = [one.suite_file or one.suite for one in results]
    own = [word for one in results if one.suite_file for word in ("--suite", one.suite_file)]
    return [
        f"debias export-harness {shlex.join([*suites, '-o', tasks, '--prompt', run])}{options}",
        "# the lm_eval command that the line above prints, and then:",
        f"debias import-harness {shlex.join([f'{tasks}/logged', '-o', run, *own])}",
    ]


def _training(run: Run) -> list[str]:
    """With as many ranks as the run had: a step's samples are those of all of them."""
    again = f"output_dir={json.dumps(f'{run.name}-again', ensure_ascii=False)}"  # read as YAML
    told, machine = shlex.join([f"{run.name}/{CONFIG}", again]), _mapping(run.info.get("machine"))
    ranks, here = (_count(machine.get(key)) for key in ("world_size", "local_world_size"))
    if ranks is None or ranks == 1:
        return [f"debias train {told}"]
    line = f"debias launch local --nproc {ranks} {told}"
    if here == ranks:
        return [line]
    where = f", {here} on a machine" if here else ""
    others = "`debias launch slurm` and `kubernetes` start as many on several machines"
    return [f"# trained by {ranks} ranks{where}; the line below starts them all on one; {others}", line]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _judged(run: Run) -> str | None:
    """What `debias eval` is given: the run's folder, or the options of the model whose results the folder holds."""
    if run.config:
        return shlex.quote(run.name)
    asked = _mapping(run.info.get(ASKED))
    if not asked:
        return None
    words = [word for key, value in asked.items() for word in _option(key, value)]
    return shlex.join([*words, "-o", run.name])


def _option(key: str, value: Any) -> list[str]:
    """An option of `debias eval` by the name of its setting."""
    name = f"--{key.replace('_', '-')}"
    if not isinstance(value, bool):
        return [name, str(value)]
    return [name if value else {"bf16": "--float32"}.get(key, f"--no-{name[2:]}")]


def _options(result: Result) -> str:
    """What `debias eval` was told beside the suite, as far as it is not the default."""
    given: dict[str, Any] = {"--limit": result.limit, "--seed": result.limit_seed or None}
    given |= {f"--{key}": result.judge.get(key) for key in ("normalize", "calibrate")}
    given |= {"--overlap": "exclude" if result.overlap and result.overlap.excluded else None}
    return "".join(f" {key} {shlex.quote(str(one))}" for key, one in given.items() if one not in (None, "none"))


def _configs(method: Method) -> tuple[str, str, list[tuple[str, str]]]:
    """The method's first run, its settings in full, and of each further run what differs from them."""
    first = method.runs[0]
    base = flatten(first.config)
    others = []
    for run in method.runs[1:]:
        own = flatten(run.config)
        changed = {key: own.get(key) for key in [*base, *own] if own.get(key) != base.get(key)}
        others.append((run.name, " ".join(f"{key}={plain(value)}" for key, value in changed.items())))
    return first.name, config_text(first), others


def config_text(run: Run) -> str:
    """The run's settings as YAML, empty without a config."""
    if not run.config:
        return ""
    return yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)


def judgings(runs: Sequence[Run]) -> list[Judging]:
    """One line for the runs that were judged on the same examples in the same way, suite by suite."""
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for run in runs:
        for name, result in run.results.items():
            examples = f"{result.n:,} of {result.available:,}" if result.limited else f"{result.n:,}"
            key = (name, str(result.version), examples, result.examples_sha256 or "unknown", judge_text(result.judge))
            found.setdefault(key, []).append(run.name)
    return [
        Judging(*key, runs="all runs" if len(names) == len(runs) else ", ".join(names))
        for key, names in sorted(found.items())
    ]


def _setting(run: Run, key: str) -> str:
    return plain(run.settings.get(key, "not set")) if run.config else "unknown"


def plain(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value)
    return "none" if value is None else str(value)


def facts(run: Run) -> dict[str, str]:
    """What a run recorded about itself, each value in words or `unknown`."""
    info = run.info
    acts_on, parameters = _mapping(info.get("acts_on")), _mapping(info.get("parameters"))
    return {
        "Seed": plain(run.seed) if run.seed is not None else "unknown",
        "Status": plain(info.get("status", "unknown")),
        "Selection": RULES.get(run.selection, run.selection),
        "Steps": count(info.get("steps")),
        "Examples": count(info.get("train_examples")),
        "Time": duration(info.get("seconds")),
        "Gradients": plain(info.get("gradients", "unknown")),
        "Rule acts on": f"{count(acts_on.get('tensors'))} tensors, {count(acts_on.get('elements'))} values"
        if acts_on
        else "unknown",
        "Trainable": count(parameters.get("trainable")),
        "Commit": plain(info.get("commit") or "unknown")[:18],
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def count(value: Any) -> str:
    """`549,367`; anything that is no number as `unknown`."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if known else "unknown"


def duration(seconds: Any) -> str:
    """`75` as `1 min 15 s`; anything that is no number as `unknown`."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        return "unknown"
    return in_words(seconds)


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(who, versions): a line for the runs that agree."""
    who: dict[str, list[str]] = {}
    for run in runs:
        who.setdefault(version_text(run.info.get("versions")), []).append(run.name)
    return [("all runs" if len(who) == 1 else ", ".join(names), text) for text, names in who.items()]


def version_text(versions: Any) -> str:
    """Packages and their versions in one line, `unknown` if not recorded."""
    if not isinstance(versions, Mapping) or not versions:
        return "unknown"
    return ", ".join(f"{name} {version}" for name, version in versions.items())
