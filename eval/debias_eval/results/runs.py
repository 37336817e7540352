"""What the report reads: run folders, each piece optional, and runs that differ only in their seed as one method."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from debias.config.reading import read_yaml
from debias.config.run import STAGES, RunConfig
from debias.errors import InputError
from debias.runs.data_files import DATA_FILES
from debias.runs.kept import SUFFIX, unpack
from debias.runs.names import ADAPTER, CHECKPOINT, CONFIG, EVAL, JUDGED, METRICS, MODEL, SUMMARY
from debias_eval.results.chosen import oracle_choice
from debias_eval.results.files import Result, read_results
from debias_eval.results.older import completed

# What two seeds of one method may differ in.
SEED_KEYS = ("seed", "output_dir", "resume", "overwrite_output_dir", "report_to")
DATA_SEED_KEYS = ("data.train.seed", "data.planted_bias.seed", "data.planted_color.seed")
# What picks or changes the training rows.
ROWS = tuple(
    f"data.{key}"
    for key in ("train", "text_fields", "label_field", "labels", "planted_bias", "planted_color", "leave_out")
)
FILES = "data.train.files"  # of what a run is trained on: the digests of its files, which no setting says
PIECES = (CONFIG, SUMMARY, METRICS)
STAGE = re.compile(r"\d+|bias_\d+")  # what the runs before a run are called
_HELD: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends
SWEEP_DEPTH = 3  # RECIPE/SETTINGS/seedN
OLD_NAMES = ("main_only", "main-only", "mainonly", "main only")  # of erm, in runs of older versions
BASELINES = ("erm", "plain", *OLD_NAMES)
# Blocks of a run that make a method, and what they are in plain fine-tuning.
PARTS = {
    "loss": "cross_entropy",
    "bias_model": "",
    "order": "shuffled",
    "sharpness": "",
    "smoothness": "",
    "weight_penalty": "",
    "weight_projection": "",
    "gradient_mask": "",
}


@dataclass(frozen=True)
class Run:
    """One run folder; `config`, `info`, `metrics` and `results` are empty where the file is missing."""

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    results: Mapping[str, Result] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Mapping[str, Any]:
        """The method's block as the config has it (a bare name counts), else as the run recorded it."""
        for source in (self.config.get("method"), self.info.get("method")):
            block = {"name": source} if isinstance(source, str) else source
            if isinstance(block, Mapping) and block:
                return {"name": "erm"} if str(block.get("name")).lower() in OLD_NAMES else block
        return {}

    @property
    def called(self) -> str:
        """What people call it: the rule, and what else of a method's parts is not plain fine-tuning's; "" if unknown.

        `erm` is plain fine-tuning alone: a run with that rule and another loss, order or bias model is no baseline.
        """
        rule = str(self.method.get("name") or "")
        parts = {
            key: self.config.get(key) if self.config else self.info.get(key)
            for key in (*PARTS, "first_stage", "groups", "head_dropout", "prompt")
        }
        others = [name for key, usual in PARTS.items() if (name := _name_of(parts[key])) not in ("", usual)]
        others += [f"groups {groups}"] if (groups := _name_of(parts["groups"])) else []
        others += ["class_weights"] if _has(parts["loss"], "class_weights") else []
        others += ["first_stage"] if parts["first_stage"] else []
        others += ["head_dropout"] if parts["head_dropout"] else []
        others += ["more_templates"] if _has(parts["prompt"], "more_templates") else []
        others += ["swap"] if _has(self.config.get("data") if self.config else self.info, "swap") else []
        if rule.lower() not in BASELINES:
            return " + ".join(name for name in (rule, *others) if name)
        model = _name_of(parts["bias_model"])
        return rule if others in ([], [model]) else " + ".join(others)  # a bias model that nobody reads changes nothing

    @property
    def formula(self) -> str:
        """The names of rule and loss alone: `edge + cross_entropy`."""
        loss = self.config.get("loss") if self.config else self.info.get("loss")
        return f"{self.method.get('name') or 'unknown'} + {_name_of(loss) or PARTS['loss']}"

    @property
    def judged(self) -> Mapping[str, Any]:
        """Whose results the folder holds where no run of ours made the model; else empty."""
        told = self.info.get(JUDGED)
        return told if isinstance(told, Mapping) and not self.config else {}

    @property
    def seed(self) -> Any:
        return self.config.get("seed", self.info.get("seed"))

    def files(self, role: str) -> Mapping[str, str]:
        """The digest of each local file of `train` or `validation`, by its name; {} where the run did not say.

        Of a kept run the settings have the last name of a path alone, which other data may have, too.
        """
        told = self.info.get(DATA_FILES)
        files = told.get(role) if isinstance(told, Mapping) else None
        return files if isinstance(files, Mapping) else {}

    @property
    def selection(self) -> str:
        """The rule that chose the checkpoint, `unknown` for a run that did not say."""
        return str(self.info.get("selection") or self.config.get("selection") or "unknown")

    @property
    def is_oracle(self) -> bool:
        """True if the checkpoint was chosen with what only the test could tell."""
        return "oracle" in self.selection.lower()

    @property
    def data_seeds(self) -> dict[str, Any]:
        """Dotted key to value of the seeds that decide which rows the data has."""
        return {key: value for key, value in flatten(self.config).items() if key in DATA_SEED_KEYS}

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted key to value, without what seeds of one method may differ in."""
        known = _with_defaults(self.config, self.info)
        settings = flatten({key: value for key, value in known.items() if key not in SEED_KEYS})
        return {key: value for key, value in settings.items() if key not in DATA_SEED_KEYS}


@dataclass(frozen=True)
class Method:
    """Runs with the same settings but for the seed. `style` is the position that picks colour, marker and dash."""

    name: str
    runs: tuple[Run, ...]
    style: int = 0

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def only_judged(self) -> bool:
        """Whether no run of ours made the model: then it has no seeds, however often it was judged."""
        return all(run.judged for run in self.runs)

    @property
    def trained(self) -> int:
        """How many seeds it was trained with."""
        return 0 if self.only_judged else self.seeds

    @property
    def is_baseline(self) -> bool:
        """Plain fine-tuning: never what was only judged, whatever it is called."""
        return self.runs[0].called.lower() in BASELINES and not self.runs[0].judged

    def results(self, suite: str) -> list[Result]:
        return [run.results[suite] for run in self.runs if suite in run.results]


def _has(block: Any, key: str) -> bool:
    return isinstance(block, Mapping) and block.get(key) not in (None, (), [])


def _name_of(block: Any) -> str:
    """Of a block as it may be written: a name, or a mapping with one."""
    return str(block.get("name") or "") if isinstance(block, Mapping) else str(block or "")


def _with_defaults(config: Mapping[str, Any], info: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run of an older version lacks the settings that came later: it ran with what are their defaults now.

    Its config has a method as it was written, but its `run.json` has every setting of it. No table of methods is opened
    for this: reports are written where there is no torch.
    """
    if not config:
        return config
    try:
        known = RunConfig.model_validate(dict(config), context={"tables": False}).model_dump(mode="json")
    except ValidationError:
        return config
    recorded = info.get("method")
    method = {**known["method"], **(recorded if isinstance(recorded, Mapping) else {})}
    return {**known, "method": {"name": "erm"} if method["name"] in OLD_NAMES else method}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run once, named by its folder, with as many parent folders as it takes to tell them apart.

    A folder that is no run but holds runs stands for all of them, and so does a file of kept runs.
    """
    places = [unpacked(Path(path).resolve()) for path in paths]
    folders = list(dict.fromkeys(folder for place in places for folder in run_folders(place)))
    if not folders:
        raise InputError("no run folder given")
    depth, longest = 1, max(len(folder.parts) for folder in folders)
    while depth < longest and len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    runs = [read_run(folder, "/".join(folder.parts[-depth:])) for folder in folders]
    configs = completed([run.config for run in runs])
    return [replace(run, config=config) for run, config in zip(runs, configs, strict=True)]


def unpacked(path: Path) -> Path:
    """For a file of kept runs a folder of them, which goes with the process; else the path itself."""
    if path.suffix != SUFFIX or not path.is_file():
        return path
    state = path.stat()
    return _unpacked_as(path, state.st_mtime_ns, state.st_size)


@cache
def _unpacked_as(path: Path, _time: int, _size: int) -> Path:
    """The runs of the file as it was at that time: a study adds to it while somebody looks."""
    folder = tempfile.TemporaryDirectory(prefix="debias-kept-")
    _HELD.append(folder)
    unpack(path, Path(folder.name) / path.stem)
    return Path(folder.name).resolve() / path.stem


def run_folders(path: Path) -> list[Path]:
    """The folder itself, or all runs below it if it is none itself, however far down: a sweep's are three folders down.

    What lies inside a run is a part of it. InputError for a folder that cannot be read.
    """
    return _runs_below(path, set()) or [path]


def _runs_below(path: Path, seen: set[Path]) -> list[Path]:
    if not path.is_dir() or (_is_run(path) and not _is_of_others(path)):
        return [path] if path.is_dir() else []
    if (place := path.resolve()) in seen:  # a link to a folder above it, or to one that was looked into already
        return []
    seen.add(place)
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give the folders of runs in it") from None
    folders = [one for one in inside if one.is_dir() and not one.name.startswith(".") and not _is_of_stages(one)]
    return [run for below in folders for run in _runs_below(below, seen)]


def _is_of_stages(path: Path) -> bool:
    """Whether a folder is that of the runs before a run which has not begun itself."""
    return path.name == STAGES and all(STAGE.fullmatch(one.name) for one in path.iterdir() if one.is_dir())


def _is_of_others(path: Path) -> bool:
    """Whether a folder has nothing of a run but a `config.yaml` that is none of ours: other programs have one, too."""
    if not (path / CONFIG).is_file() or any((path / file).exists() for file in (SUMMARY, METRICS, ADAPTER, MODEL)):
        return False
    if any((path / EVAL).glob("*.json")) or any(path.glob(f"{CHECKPOINT}*")):
        return False
    try:
        return not {"model", "data", "output_dir"} <= read_yaml(path / CONFIG).keys()
    except InputError:
        return True


def _is_run(path: Path) -> bool:
    return any((path / file).is_file() for file in PIECES) or any((path / EVAL).glob("*.json"))


def read_run(path: Path, name: str | None = None) -> Run:
    """One run folder; what is missing becomes a note. InputError if it is no run, or for a damaged file in it."""
    if path.is_file():
        raise InputError(f"{path}: a file, expected a run folder or a folder that holds runs, such as a sweep's")
    if not path.is_dir():
        raise InputError(f"{path}: no such run folder")
    results = read_results(path)
    present = [file for file in PIECES if (path / file).is_file()]
    if not present and not results:
        raise InputError(f"{path}: not a run folder: it has no {CONFIG}, {SUMMARY}, {METRICS} or {EVAL}/*.json")
    config = read_yaml(path / CONFIG) if CONFIG in present else {}
    info = _read_info(path / SUMMARY) if SUMMARY in present else {}
    if chosen := oracle_choice(path):
        info = {**info, "selection": chosen}
    metrics, broken = _read_metrics(path / METRICS) if METRICS in present else ((), 0)
    notes = tuple(_missing(present, results, info, broken))
    return Run(name or path.resolve().name, path, config, info, metrics, results, notes)


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(info, dict):
        raise InputError(f"{path}: holds {type(info).__name__}, expected an object")
    return info


def _read_metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """The readable lines and the number of others: a killed run ends in half a line and still has curves."""
    lines, broken = [], 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for line in filter(str.strip, text.splitlines()):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            lines.append(record)
        else:
            broken += 1
    return tuple(lines), broken


def _missing(present: Sequence[str], results: Mapping[str, Result], info: Mapping[str, Any], broken: int) -> list[str]:
    own = (SUMMARY,) if JUDGED in info else PIECES  # what was only judged here has no settings and no curves
    notes = [f"has no {file}" for file in own if file not in present]
    if not results:
        notes.append("has not been evaluated (`debias eval RUN --suite NAME`)")
    if broken:
        notes.append(f"metrics.jsonl has {broken} unreadable line{'s' if broken > 1 else ''}, left out")
    if info.get("status") not in (None, "finished", "done", "complete", "completed", "ok"):
        notes.append(f"has the status {info['status']!r}: its numbers are not those of a finished run")
    return notes


def training_data(run: Run) -> dict[str, Any]:
    """The settings that say what a run is trained on, seeds aside; {} if it has none.

    Swapping tokens there is a method's own. Settings that only name what lies beside a row (its group, its id, other
    spellings of its label) change no row.
    """
    found = {
        key: sorted(value, key=str) if key == "data.labels" and isinstance(value, list) else value
        for key, value in run.settings.items()
        if key.startswith(ROWS) and value is not None
    }
    files = run.files("train")
    return {**found, FILES: files} if found and files else found


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs are trained on the same, by what `training_data` says of each; files count where both say."""
    keys = {*one, *other} - (set() if FILES in one and FILES in other else {FILES})
    return all(one.get(key) == other.get(key) for key in keys)


def stages_of(run: Run) -> list[Run]:
    """The runs before a run that lie in its folder: its first stage, and those that its bias model asked."""
    places = sorted((run.path / STAGES).glob("*"))
    return [read_run(place, f"{run.name}/{STAGES}/{place.name}") for place in places if _is_run(place)]
