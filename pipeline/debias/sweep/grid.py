"""The runs of a sweep: recipes x settings x seeds, each with its folder, and what is in that folder already."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from debias.config import blocks
from debias.config.places import find_recipe, resolve_paths
from debias.config.reading import load_config, yaml_value
from debias.config.run import STAGES, RunConfig
from debias.errors import InputError
from debias.runs.data_files import BASE, DATA_FILES, changed_base, changed_data
from debias.runs.names import CONFIG, SUMMARY, trained

# What belongs to one run of a method and not to its settings.
OF_A_RUN = ("seed", "output_dir", "resume", "overwrite_output_dir", "report_to", "sigterm_grace_seconds")
# What a sweep sets itself.
NOT_TO_SET = ("seed", "output_dir", "resume", "overwrite_output_dir")
LONGEST_NAME = 100


@dataclass(frozen=True)
class PlannedRun:
    """One run: its place in the order, recipe, settings beside the recipe's (`key=value`), seed and folder."""

    index: int
    recipe: Path
    name: str  # recipe/settings/seed, as below the sweep's folder
    overrides: tuple[str, ...]
    seed: int
    folder: Path
    settings: Mapping[str, Any]

    @property
    def log(self) -> Path:
        """What the run printed; beside its folder, which must be empty for a run to begin."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def digest(self) -> str:
        return digest_of(self.settings)


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """`5` is the seeds 0 to 4; `3,7` these two; `7,` this one. InputError names the option."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise InputError(f"{option} is {text!r}, expected a number of seeds such as 5, or a list such as 3,7,11")
    numbers = [int(part) for part in parts]
    if "," not in text:
        if not 1 <= numbers[0] <= 10_000:
            raise InputError(f"{option} is {text!r}, expected between 1 and 10000 seeds; a list of one is {text},")
        return list(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{option} {text!r} holds a seed twice")
    return numbers


def parse_grid(items: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of `key=v1,v2` items, each a tuple of `key=value`; one empty tuple without items.

    Values are YAML, as if between brackets: `key=[a,b],[c]` is two lists.
    """
    axes: dict[str, list[str]] = {}
    for item in items:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise InputError(f"--set {item!r}: expected key=value or key=value,value")
        if key.split(".")[0] in NOT_TO_SET:
            raise InputError(f"--set {item!r}: a sweep sets {key} itself" + (" (--seeds)" if key == "seed" else ""))
        if key in axes:
            raise InputError(f"--set {key} is given twice; put the values together: {key}=a,b")
        axes[key] = _values(text, item)
    return list(itertools.product(*([f"{key}={value}" for value in axes[key]] for key in _blocks_first([*axes]))))


def _blocks_first(keys: list[str]) -> list[str]:
    """The keys in their order, but each block before the settings in it: `method`, then `method.alpha`."""
    ordered: list[str] = []
    for key in keys:
        below = [place for place, one in enumerate(ordered) if one.startswith(f"{key}.")]
        ordered.insert(below[0] if below else len(ordered), key)
    return ordered


def _values(text: str, item: str) -> list[str]:
    try:
        values = yaml_value(f"[{text}]")
    except yaml.YAMLError:
        raise InputError(f"--set {item!r}: the values are not valid YAML; put quotes around each") from None
    if not values:
        raise InputError(f"--set {item!r}: no value")
    return [value if _is_plain(value) else json.dumps(value, default=str) for value in values]


def _is_plain(value: Any) -> bool:
    """A text that YAML reads back as itself needs no quotes, and makes a readable folder name."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.+/-]*", value):
        return False
    try:
        return bool(value == yaml_value(value))
    except yaml.YAMLError:
        return False


def plan_sweep(
    recipes: Sequence[Path], seeds: Sequence[int], grid: Sequence[tuple[str, ...]], out: Path, *, new_data: bool = False
) -> list[PlannedRun]:
    """Every run of the sweep, all settings checked; the seed changes slowest: a sweep cut short still compares.

    The seed is the training seed (initial weights, order of the data, dropout); with `new_data` it is the seed of the
    planted shortcut and of the subset of the training data, too. Settings that come out the same are one run.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected the folder of a sweep")
    planned: dict[tuple[str, str, int], PlannedRun] = {}
    for seed, (name, recipe), changes in itertools.product(seeds, _named(recipes).items(), grid):
        config, overrides = _configured(recipe, changes, seed, new_data)
        settings = settings_of(config)
        key = (name, digest_of(settings), seed)
        if key not in planned:
            run = f"{name}/{folder_name(changes)}/seed{seed}"
            folder = out.absolute() / run
            planned[key] = PlannedRun(len(planned), recipe, run, overrides, seed, folder, settings)
    return list(planned.values())


def _configured(recipe: Path, changes: tuple[str, ...], seed: int, new_data: bool) -> tuple[RunConfig, tuple[str, ...]]:
    overrides = (*changes, f"seed={seed}")
    config = load_config(recipe, overrides)
    if new_data and (more := _data_seeds(config, seed)):
        overrides = (*overrides, *more)
        config = load_config(recipe, overrides)
    return resolve_paths(config, recipe.resolve().parent), overrides


def check_recipe(run: PlannedRun) -> None:
    """InputError if the recipe's file no longer says what was planned."""
    config = resolve_paths(load_config(run.recipe, run.overrides), run.recipe.resolve().parent)
    if digest_of(settings_of(config)) != run.digest:
        raise InputError(f"{run.recipe} was changed while the sweep ran; start the sweep again")


def _data_seeds(config: RunConfig, seed: int) -> tuple[str, ...]:
    planted = [key for key in ("planted_bias", "planted_color") if getattr(config.data, key, None) is not None]
    drawn = ["train"] if config.data.train.limit is not None else []
    return tuple(f"data.{key}.seed={seed}" for key in [*planted, *drawn])


def _named(recipes: Sequence[Path]) -> dict[str, Path]:
    """The recipes by the name of their folder in the sweep."""
    named: dict[str, Path] = {}
    for path in dict.fromkeys(find_recipe(recipe).absolute() for recipe in recipes):
        name = safe_name(path.stem)
        if name in named:
            raise InputError(f"{path} and {named[name]} would share the folder {name}; rename one")
        named[name] = path
    if not named:
        raise InputError("no recipe given")
    return named


def folder_name(changes: Sequence[str]) -> str:
    """One folder for one combination of settings, `default` for none."""
    return safe_name(",".join(changes)) if changes else "default"


def safe_name(text: str) -> str:
    """A folder name on any file system; what cannot be kept of the text is told apart by a digest of it."""
    kept = re.sub(r"[^A-Za-z0-9._,=+-]", "_", text)[:LONGEST_NAME]
    if kept == text and text[:1] not in (".", "-", ""):
        return text
    return f"{kept.lstrip('.-') or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What makes a method of a resolved config: all that is not a default, less what belongs to one run.

    Defaults inside a block are left out too: a method that gets one more setting is the same method as before.
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    for kind in blocks.KINDS.keys() & values.keys():
        if isinstance(values[kind], dict):
            values[kind] = blocks.shortened(kind, values[kind])
            if values[kind] == {blocks.KINDS[kind].key: blocks.KINDS[kind].default}:
                del values[kind]
    return {key: value for key, value in values.items() if key not in OF_A_RUN}


def digest_of(settings: Mapping[str, Any]) -> str:
    """Short and the same for the same settings, whatever the order they were written in."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def changed_settings(run: PlannedRun) -> str | None:
    """How the run in the folder differs from the planned one: the first key with both values; None if it does not."""
    if not (run.folder / CONFIG).exists():
        return None
    try:
        held = _flat(settings_of(load_config(run.folder / CONFIG)))
    except InputError as error:
        return str(error)
    want = _flat(run.settings)
    for key in sorted({*held, *want}):
        if held.get(key) != want.get(key):
            was, now = (_shown(side, key) for side in (held, want))
            return f"{key} was {was}, is {now}"
    return changed_since(run)


def changed_since(run: PlannedRun) -> str | None:
    """`changed_inputs` of a finished run; one that is not finds it out itself when it goes on."""
    if not _is_finished(run.folder):
        return None
    return changed_inputs(_told(run.folder), run) or _changed_before(run.folder)


def _changed_before(folder: Path) -> str | None:
    """The first of the runs before a run whose base has other weights now, by its own `run.json`."""
    for stage in sorted((folder / STAGES).glob("*")):
        try:
            settings = {"model": load_config(stage / CONFIG).model}
        except InputError:  # cleared away, or damaged: nobody can say
            continue
        if (changed := changed_base(_told(stage).get(BASE), settings)) is not None:
            return f"{STAGES}/{stage.name}: {changed}"
    return None


def changed_inputs(told: Mapping[str, Any], run: PlannedRun) -> str | None:
    """What a run read that is another now, by its `run.json`: a data file, or the weights of its base."""
    changed = changed_data(told.get(DATA_FILES), run.settings.get("data", {}))
    return changed or changed_base(told.get(BASE), run.settings)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "the default"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def state_of(folder: Path) -> str:
    """`finished` (trained and saved), `begun` (to be resumed) or `new`."""
    if not (folder / CONFIG).exists():
        return "new"
    return "finished" if _is_finished(folder) else "begun"


def _is_finished(folder: Path) -> bool:
    return _told(folder).get("status") == "finished" and trained(folder) is not None


def _told(folder: Path) -> dict[str, Any]:
    """What the run says of itself; nothing where that is damaged."""
    try:
        told = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
