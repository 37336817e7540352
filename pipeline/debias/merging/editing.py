"""Trained adapters through an edit into a new adapter: plain PEFT, there whole or not at all, and what was done."""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from debias.adapters.loading import same_model
from debias.config.blocks import make
from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.merging import EDITS, Edit
from debias.merging.changes import Adapter, read_adapter, write_adapter
from debias.merging.edits import LowRank
from debias.merging.folders import check_place, find_adapter, run_around
from debias.merging.retraining import LayerInputs, retrained
from debias.runs.data_files import BASE
from debias.runs.folder import labels_beside, settings_beside
from debias.runs.names import ADDITIONAL_TEMPLATES, LABELS, ORIGIN, SUMMARY, VOCABULARIES
from debias.runs.names import EDITS as EDITS_FILE
from debias.runs.whole import save_whole

logger = logging.getLogger(__name__)
# What a tokenizer or an image processor is written as, and the names of labels; a checkpoint's folder holds an
# optimizer's state too.
WORDS = ("*token*.json", *VOCABULARIES, "*processor_config.json", LABELS)
# How well an adapter in a folder does on rows held out; larger is better.
Score = Callable[[Path], float]


@dataclasses.dataclass(frozen=True)
class Edited:
    """What was written: where, by which edit, of which adapters (with the digests of their files).

    `ranks`: the smallest and the largest of a module before (of any adapter) and after. `norm`: of all changes
    together, as a share of the adapters' (their mean). `files`: all that the folder held when it was written. `tried`:
    of an edit that chooses, every adapter that was given with how it did on rows held out. `rows`: of an edit that fits
    the last layer to rows held out, how many there are, and the share on which it is right before and after; of one
    that reads groups also the share in the worst pair of label and group, and what it chose; of one that balances
    labels also the mean over labels. `variants`: of an edit that chooses among settings, each with its mean accuracy
    over pseudo groups of rows held out.
    """

    folder: str
    edit: str
    settings: dict[str, Any]
    adapters: list[dict[str, Any]]
    base: str | None
    modules: int
    whole: list[str]
    ranks: dict[str, list[int]]
    norm: float | None
    files: list[str]
    tried: list[dict[str, Any]]
    rows: dict[str, float]
    variants: list[dict[str, Any]]

    @property
    def line(self) -> str:
        """All of it in one line."""
        before, after = ("-".join(map(str, dict.fromkeys(self.ranks[when]))) for when in ("before", "after"))
        of = f"{len(self.adapters)} adapter{'s' if len(self.adapters) > 1 else ''}"
        of += f" (of {len(self.tried)}, chosen on validation rows)" if self.tried else ""
        norm = "" if self.norm is None else f"; the change has {self.norm:.3g} times the norm it had"
        of += self._choice
        return f"{self.folder}: {self.edit} of {of}, {self.modules} modules, rank {before} to {after}{norm}"

    @property
    def _choice(self) -> str:
        """Which setting was chosen of which."""
        tried = [(key, value) for one in self.variants for key, value in one["settings"].items() if value is not None]
        if not tried:
            return ""
        key, every = tried[0][0], ", ".join(f"{value:g}" for _, value in tried)
        return f" ({key} {self.settings[key]:g} of {every}, chosen over pseudo groups of validation rows)"


def edit_adapters(
    name: str,
    given: Sequence[Path],
    out: Path,
    settings: Mapping[str, Any] | None = None,
    score: Score | None = None,
    layer_inputs: LayerInputs | None = None,
    over_pseudo_groups: Score | None = None,
) -> Edited:
    """The edit called `name` of adapters, written to `out` as a plain PEFT adapter; `given`: runs or adapters' folders.

    `out` is new, empty, or what an earlier edit wrote. With the adapter come the first one's tokenizer, the settings of
    its run (labels, prompt: what judges it) and `edits.json`. InputError says in one line what cannot be edited
    exactly, and leaves what was in `out`. No base is loaded, but by `score`, which an edit that chooses among adapters
    asks: how a candidate in a folder does on rows held out; by `over_pseudo_groups`, which one that chooses among
    settings asks; and by `layer_inputs`, which one that retrains asks.
    """
    edit = make_edit(name, settings or {})
    folders, out = [adapter_folder(place) for place in given], Path(out).resolve()
    _check_writable(out, folders)
    try:
        edit.check(len(folders))
    except ValueError as error:
        raise InputError(f"edit: {error}") from None
    adapters = [read_adapter(folder) for folder in folders]
    check_alike(adapters)
    edit, variants = _best_of(edit, adapters, over_pseudo_groups)
    adapters, tried = _chosen(edit, adapters, score) if edit.asks else (adapters, [])
    changes, norm = _edited(edit, adapters)
    whole, rows = retrained(edit, adapters[0], layer_inputs) if edit.retrains else (None, {})
    told = _told(edit, adapters, changes)

    def save(part: Path) -> None:
        _write(part, edit, adapters, changes, whole)
        files = sorted([*(path.name for path in part.iterdir()), EDITS_FILE])
        made = Edited(folder=str(out), **told, norm=norm, files=files, tried=tried, rows=rows, variants=variants)
        (part / EDITS_FILE).write_text(json.dumps(dataclasses.asdict(made), indent=2) + "\n", encoding="utf-8")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_whole(out, save)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return Edited(**json.loads((out / EDITS_FILE).read_text(encoding="utf-8")))


def _write(
    folder: Path,
    edit: Edit,
    adapters: Sequence[Adapter],
    changes: Mapping[str, LowRank],
    whole: Mapping[str, Any] | None = None,
) -> None:
    """The edited adapter, with the words of the first; `whole`: what was trained whole, where the edit gave it."""
    write_adapter(folder, adapters[0].config, changes, _whole(edit, adapters) if whole is None else whole)
    _copy_words(adapters[0].folder, folder)


def _chosen(edit: Edit, adapters: Sequence[Adapter], score: Score | None) -> tuple[list[Adapter], list[dict[str, Any]]]:
    """Those that the edit keeps, and for the record how each did. Candidates are written aside, and go again."""
    if score is None:
        raise InputError(f"edit: {edit.name} chooses by how candidates do on rows held out; give it a score")
    with tempfile.TemporaryDirectory() as place:

        def held_out(members: Sequence[int]) -> float:
            folder = Path(place) / "-".join(map(str, members))
            some = [adapters[member] for member in members]
            _write(folder, edit, some, _edited(edit, some)[0])
            found = score(folder)
            logger.info("%s: %.4g on rows held out", " + ".join(str(one.folder) for one in some), found)
            shutil.rmtree(folder)
            return found

        tried = edit.choose(len(adapters), held_out)
    told = [{"folder": str(adapters[one.member].folder), **dataclasses.asdict(one)} for one in tried]
    return [adapters[one.member] for one in tried if one.kept], told


def _best_of(edit: Edit, adapters: Sequence[Adapter], score: Score | None) -> tuple[Edit, list[dict[str, Any]]]:
    """The variant of an edit that does best, of equals the first; and for the record how each did."""
    variants = edit.variants()
    if len(variants) == 1:
        return variants[0], []
    if score is None:
        raise InputError(f"edit: {edit.name} chooses by how variants do over pseudo groups; give it a score")
    found = []
    for variant in variants:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / edit.name
            _write(folder, variant, adapters, _edited(variant, adapters)[0])
            found.append(score(folder))
        told = ", ".join(f"{key} {value:g}" for key, value in dataclasses.asdict(variant).items() if value is not None)
        logger.info("%s, %s: %.1f %% over pseudo groups of rows held out", edit.name, told, 100 * found[-1])
    settings = [dataclasses.asdict(variant) for variant in variants]
    record = [{"settings": one, "pseudo_group_accuracy": reached} for one, reached in zip(settings, found, strict=True)]
    return variants[found.index(max(found))], record


def make_edit(name: str, settings: Mapping[str, Any]) -> Edit:
    """A row of `EDITS` with its settings; InputError names the setting, the value seen and what would be right."""
    if "name" in settings:
        raise InputError(f"edit.name is {settings['name']!r}, but the edit is {name}: leave it out")
    try:
        return make("edit", EDITS, {"name": name, **settings})
    except ValueError as error:
        raise InputError(str(error)) from None


def adapter_folder(place: Path) -> Path:
    """The adapter that a folder is, or that the run in it trained."""
    own = Path(place) / "adapter_config.json"
    return Path(place).resolve() if own.is_file() else find_adapter(Path(place), None).resolve()


def _check_writable(out: Path, read: list[Path]) -> None:
    check_place(out, read)
    inside = next((folder for folder in read if out.is_relative_to(folder)), None) or run_around(out)
    if inside is not None:
        raise InputError(f"{out}: lies in {inside}, which was trained; choose another folder")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise InputError(f"{out}: is not empty and holds more than an earlier edit's files; choose another folder")


def _is_ours(folder: Path) -> bool:
    """Whether all in a folder is what an edit wrote."""
    try:
        files = json.loads((folder / EDITS_FILE).read_text(encoding="utf-8"))["files"]
        return {path.name for path in folder.iterdir()} <= set(files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_alike(adapters: Sequence[Adapter]) -> None:
    """InputError unless all adapters change the same modules of one base, for the same labels in the same order."""
    first = adapters[0]
    for other in adapters[1:]:
        _check_same_settings(first, other)
        _check_same_modules(first, other)
        _check_same_task(first, other)


def _check_same_settings(first: Adapter, other: Adapter) -> None:
    bases = [one.config.base_model_name_or_path for one in (first, other)]
    if bases[0] != bases[1] and not (all(bases) and same_model(*bases)):
        raise InputError(f"adapter: {other.folder} was trained on {bases[1]}, {first.folder} on {bases[0]}")
    weights = [_base_weights(one.folder) for one in (first, other)]
    if None not in weights and weights[0] != weights[1]:  # no error: a base that was saved anew has other files, too
        told = (other.folder, first.folder, bases[0])
        logger.warning(
            "WARNING: %s and %s were trained on other weights of a base of one name, %s, as their run.json say", *told
        )
    for name in ("revision", "task_type", "target_parameters"):
        one, two = (getattr(adapter.config, name) for adapter in (first, other))
        if (sorted(one or ()) != sorted(two or ())) if name == "target_parameters" else (one != two):
            raise InputError(f"adapter: {name} is {two!r} in {other.folder}, {one!r} in {first.folder}")


def _base_weights(folder: Path) -> str | None:
    """The digest of the base that the run around an adapter kept, if it did: of one in a folder."""
    run = run_around(folder)
    try:
        told = json.loads((run / SUMMARY).read_text(encoding="utf-8")).get(BASE) if run is not None else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return told if isinstance(told, str) else None


def _check_same_modules(first: Adapter, other: Adapter) -> None:
    shapes = [_shapes(adapter) for adapter in (first, other)]
    for module in [*shapes[0], *shapes[1]]:
        one, two = (shape.get(module) for shape in shapes)
        if one is None or two is None:
            has, lacks = (first, other) if two is None else (other, first)
            raise InputError(f"adapter: {lacks.folder} does not change {module}, which {has.folder} does")
        if one != two:
            raise InputError(f"adapter: {module} has the shape {two} in {other.folder}, {one} in {first.folder}")


def _shapes(adapter: Adapter) -> dict[str, list[int]]:
    """Of every weight that is changed, and of every tensor that was trained whole."""
    whole = {name: list(tensor.shape) for name, tensor in adapter.whole.items()}
    return {**{module: adapter.shape(module) for module in adapter.pairs}, **whole}


def _check_same_task(first: Adapter, other: Adapter) -> None:
    """By the names of outputs that lie beside them, and by the settings of their runs, where both are known."""
    one, two = (_run_of(adapter.folder) for adapter in (first, other))
    beside = [labels_beside(adapter.folder) for adapter in (first, other)]
    settings = [None if run is None else run.data.labels for run in (one, two)]
    either = [names or told for names, told in zip(beside, settings, strict=True)]
    for has, others in (beside, settings, either):
        if has is not None and others is not None and has != others:
            raise InputError(f"adapter: {other.folder} has the labels {list(others)}, {first.folder} has {list(has)}")
    if one is None or two is None:
        return
    fields, others = (run.data.text_fields for run in (one, two))
    if fields != others and sorted(fields) == sorted(others):
        raise InputError(f"adapter: {other.folder} reads {list(others)} in this order, {first.folder} {list(fields)}")
    if fields != others or one.prompt != two.prompt:
        what = "data.text_fields" if fields != others else "prompt"
        logger.warning("WARNING: %s and %s have not the same %s: is it one task?", first.folder, other.folder, what)
    if first.whole and one.seed != two.seed:
        logger.warning(
            "WARNING: the seeds of the runs are %d and %d: modules trained whole (%s) began differently unless the base"
            " has them, and a soup is of models with one beginning",
            one.seed,
            two.seed,
            ", ".join(sorted(first.whole)),
        )


def _run_of(folder: Path) -> RunConfig | None:
    """The settings of the run that an adapter is of; None where none are there, or another program's."""
    file = settings_beside(folder)
    try:
        return None if file is None else load_config(file)
    except InputError as error:
        logger.warning("WARNING: %s is not read, so labels and prompt are unknown: %s", file, error)
        return None


def _edited(edit: Edit, adapters: Sequence[Adapter]) -> tuple[dict[str, LowRank], float | None]:
    """The changes after the edit, in float32's digits, and how their norm compares to the mean of those before."""
    changes, after, before = {}, 0.0, [0.0] * len(adapters)
    for module in adapters[0].pairs:
        given = [adapter.change(module) for adapter in adapters]
        made = edit.change(given)
        before = [total + one.squared_norm() for total, one in zip(before, given, strict=True)]
        after += made.squared_norm()
        changes[module] = LowRank(made.a_RI.float(), made.b_OR.float())
    mean = sum(math.sqrt(max(total, 0.0)) for total in before) / len(before)
    return changes, math.sqrt(max(after, 0.0)) / mean if mean else None


def _whole(edit: Edit, adapters: Sequence[Adapter]) -> dict[str, Any]:
    return {name: edit.whole([adapter.whole[name] for adapter in adapters]) for name in adapters[0].whole}


def _told(edit: Edit, adapters: Sequence[Adapter], changes: Mapping[str, LowRank]) -> dict[str, Any]:
    before = [adapter.rank(module) for adapter in adapters for module in changes]
    after = [change.rank for change in changes.values()]
    return {
        "edit": edit.name,
        "settings": dataclasses.asdict(edit),
        "adapters": [_source(adapter.folder) for adapter in adapters],
        "base": adapters[0].config.base_model_name_or_path,
        "modules": len(changes),
        "whole": sorted(adapters[0].whole),
        "ranks": {"before": [min(before), max(before)], "after": [min(after), max(after)]},
    }


def _source(folder: Path) -> dict[str, Any]:
    """An adapter by folder and digests; what an earlier edit said of it comes along."""
    files = [path for path in sorted(folder.iterdir()) if path.name.startswith("adapter_") and path.is_file()]
    found: dict[str, Any] = {"folder": str(folder)}
    found["sha256"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    record = folder / EDITS_FILE
    return {**found, "edits": json.loads(record.read_text(encoding="utf-8"))} if record.is_file() else found


def _copy_words(source: Path, part: Path) -> None:
    """The tokenizer, and the settings of the run: without its labels and prompt nobody could ask the adapter."""
    for path in {path for pattern in WORDS for path in source.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, part / path.name)
    if (source / ADDITIONAL_TEMPLATES).is_dir():
        shutil.copytree(source / ADDITIONAL_TEMPLATES, part / ADDITIONAL_TEMPLATES)
    run = _run_of(source)
    if run is not None:
        (part / ORIGIN).write_text(dump_config(run), encoding="utf-8")
