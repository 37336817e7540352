"""A model card: README.md in a run's adapter folder, which the hub and PEFT read, or beside the results of a model that
was only judged; never over an edit by hand."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from debias.errors import InputError
from debias.runs.names import ADAPTER, trained
from debias.runs.whole import write_or_say
from debias_eval.reporting import judged
from debias_eval.reporting.reproduce import RULES, commands, config_text, count, duration, judgings, plain, version_text
from debias_eval.reporting.tables import markdown, markdown_text, result_grid
from debias_eval.reporting.using import fenced, use
from debias_eval.results.runs import BASELINES, Method, Run, read_runs
from debias_eval.results.summary import Row, suite_notes, table

MARKER = re.compile(r"<!-- debias card ([0-9a-f]{64}): [^\n]* -->\n")
KEPT = "kept as it is: it was edited by hand; --force replaces it"


def write_cards(runs: Sequence[Path], *, force: bool = False) -> list[tuple[Path, str]]:
    """A card for each run: (its path, what kept it from being written or an empty string).

    A card that was edited by hand stays unless `force`; one of ours, or PEFT's empty template, is replaced. It lies
    beside what was trained (`adapter/` or `model/`), and in the folder of results itself where a model was only judged;
    a run that has not finished has no place for one. InputError for a folder that is no run.
    """
    return [_write_card(run, force) for run in read_runs(runs)]


def _write_card(run: Run, force: bool) -> tuple[Path, str]:
    folder = _place(run)
    if folder is None:
        return run.path, "no card: it has no adapter/ or model/ folder"
    path = folder / "README.md"
    if path.exists() and not force and not replaceable(_read(path)):
        return path, KEPT
    write_or_say(path, signed_card(*card(run)).encode("utf-8", errors="replace"))
    return path, ""


def _place(run: Run) -> Path | None:
    """The folder of a run's card: never that of an adapter of somebody else's."""
    return run.path if run.judged else trained(run.path)


def text_for(run: Run) -> tuple[str, bool]:
    """The card of a run as it is to be shown elsewhere, and whether it was edited by hand; nothing is written."""
    folder = _place(run)
    path = None if folder is None else folder / "README.md"
    if path is not None and path.exists() and not replaceable(text := _read(path)):
        return text, True
    return "".join(card(run)), False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def replaceable(text: str) -> bool:
    """True for a card of ours that nobody has touched, and for PEFT's template with its gaps still open."""
    found = MARKER.search(text)
    if found:
        return found[1] == _digest(text[: found.start()] + text[found.end() :])
    return not text.strip() or ("# Model Card for Model ID" in text and text.count("[More Information Needed]") > 20)


def signed_card(front: str, body: str) -> str:
    """Front matter, then the marker with the digest of all the rest, then the body."""
    digest = _digest(front + body)
    return f"{front}<!-- debias card {digest}: `debias card` rewrites this file until it is edited by hand -->\n{body}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def card(run: Run) -> tuple[str, str]:
    """Front matter and body for one run."""
    method = Method(run.called or run.name, (run,))
    rows = table([method])
    first = (judged.opening(run), judged.facts(run)) if run.judged else (_opening(run), _training(run))
    asking = judged.how_to_use(run) if run.judged else use(run)
    sections = (*first, _results(rows, method), _limits(run, rows), asking, _reproduce(run))
    return front_matter(run), "\n".join(section for section in sections if section)


def front_matter(run: Run) -> str:
    """What the hub reads: base model, library, tags; between two lines of dashes."""
    if run.judged:
        return _between_dashes(judged.front_values(run))
    adapted = (run.path / ADAPTER).is_dir()
    tags = ["debias", run.called or "unknown", *(["lora"] if _adapter(run) == "lora" else [])]
    values: dict[str, Any] = {"library_name": "peft" if adapted else "transformers", "tags": tags}
    base = run.config.get("model")
    if base:
        values = {"base_model": str(base), **values}
    return _between_dashes(values)


def _between_dashes(values: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def _adapter(run: Run) -> str:
    adapter = run.config.get("adapter")
    return str(adapter.get("type") if isinstance(adapter, Mapping) else adapter)


def _opening(run: Run) -> str:
    base = markdown_text(str(run.config.get("model", "an unrecorded base model")))
    name = markdown_text(run.name)
    settings = ", ".join(f"{key} {plain(value)}" for key, value in run.method.items() if key != "name")
    method = markdown_text(run.called or "unknown")
    how = f" ({markdown_text(settings)})" if settings else ""
    if run.called.lower() in BASELINES:
        return f"# {name}\n\nPlain fine-tuning of {base}: a baseline that uses whatever its training data offers.\n"
    return (
        f"# {name}\n\nTrained on top of {base} with the method {method}{how}, "
        "to rely less on the shortcuts of its training data.\n"
    )


def _training(run: Run) -> str:
    data = run.config.get("data")
    data = data if isinstance(data, Mapping) else {}
    train = data.get("train")
    source = train.get("source") if isinstance(train, Mapping) else train
    facts = {
        "Training data": f"{plain(source or 'unknown')} ({count(run.info.get('train_examples'))} examples)",
        "Planted shortcut": _planted(data),
        **_changed_rows(data),
        "Labels": plain(data.get("labels", "unknown")),
        "Steps": count(run.info.get("steps")),
        "Seed": plain(run.seed),
        "Checkpoint": RULES.get(run.selection, run.selection),
        "Time": duration(run.info.get("seconds")),
    }
    lines = "\n".join(f"- {name}: {markdown_text(value)}" for name, value in facts.items())
    return f"## Training\n\n{lines}\n"


def _planted(data: Mapping[str, Any]) -> str:
    """The cue in texts or the colours of pictures; none where nothing was planted."""
    found = [_settings(data["planted_bias"])] if isinstance(data.get("planted_bias"), Mapping) else []
    colors = data.get("planted_color")
    found += [f"a colour for each label ({_settings(colors)})"] if isinstance(colors, Mapping) else []
    return "; ".join(found) or "none"


def _changed_rows(data: Mapping[str, Any]) -> dict[str, str]:
    """What else was done to the rows that the run was trained on, as far as anything was."""
    names = {"swap": "Tokens swapped", "leave_out": "Rows left out"}
    return {name: _settings(block) for key, name in names.items() if isinstance(block := data.get(key), Mapping)}


def _settings(block: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {plain(value)}" for key, value in block.items()) or "as by default"


def _results(rows: Sequence[Row], method: Method) -> str:
    if not rows:
        return "## Results\n\nNot evaluated yet.\n"
    return f"## Results\n\n{markdown([result_grid(rows, [method])])}"


def _limits(run: Run, rows: Sequence[Row]) -> str:
    seed = "One training seed: another one can move these numbers by more than their intervals show."
    limits = [judged.limit(run) if run.judged else seed]
    if run.is_oracle:
        limits.append("The checkpoint was chosen with the test's own answers (oracle): no fair estimate.")
    if not rows:
        limits.append("Nothing is known about its accuracy, on any data.")
    else:
        suites = ", ".join(row.suite for row in rows)
        limits.append(f"Judged on {suites} alone: nothing is known about other data, tasks and languages.")
    weak = [row for row in rows if any(floor is not None and row.accuracy.low <= floor for floor in _floors(row))]
    if weak:
        limits.append(f"Not clearly above a floor on {', '.join(row.suite for row in weak)}.")
    limits += [f"{row.suite} {note}" for row in rows for note in suite_notes([row], [row.method])]
    limits += [f"This run {note}." for note in run.notes]
    return "## Limits\n\n" + "\n".join(f"- {markdown_text(text)}" for text in limits) + "\n"


def _floors(row: Row) -> list[float | None]:
    return [row.majority, row.partial.accuracy if row.partial else None]


def _reproduce(run: Run) -> str:
    where = f"In the folder that holds {markdown_text(run.name)}:\n"
    parts = ["## Reproduce\n", where, fenced("\n".join(commands(run)) or "# no config was kept", "bash")]
    versions = version_text(run.info.get("versions"))
    parts.append(f"\nVersions: {markdown_text(versions)}. Commit: {markdown_text(plain(run.info.get('commit')))}.\n")
    for one in judgings([run]):
        what = f"{one.suite} version {one.version}, {one.examples} examples, scored by {one.judge}"
        parts.append(f"- {markdown_text(what)}; SHA-256 of ids and texts {markdown_text(one.digest)}")
    if run.config:
        parts += ["\nconfig.yaml:\n", fenced(config_text(run), "yaml")]
    return "\n".join(parts) + "\n"
