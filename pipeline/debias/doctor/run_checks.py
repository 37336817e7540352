"""A run's config: whether it parses, its model and data are here, its adapter matches, and it fits the GPU."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debias.config import deepspeed_file as zero_config
from debias.config.data import DataSource
from debias.config.places import find_recipe, resolve_paths, runs_of
from debias.config.reading import load_config
from debias.config.run import STAGES, RunConfig
from debias.data.rows import is_null
from debias.data.sources import load_with_columns
from debias.doctor.check import Check, bad, fine, from_error, guarded, warn
from debias.errors import InputError
from debias.hub import cache as hub
from debias.ranks.world import local_ranks, slurm_nodes, world_size

if TYPE_CHECKING:
    from debias.data.files import NumberedRow
    from debias.plan.planner import Planner

ROWS = 2000  # that are read of each source
PATIENCE = 5.0  # seconds that the hub has for its answer
FETCH = "debias fetch CONFIG, where there is a network"
COPIES = 3  # of what trains, in a checkpoint: the weights and AdamW's two moments, in float32
GB = 10**9


@dataclass(frozen=True)
class Patient:
    """A run that is looked at: its settings, and the folder its paths are relative to."""

    run: RunConfig
    base: Path
    gpu_memory: int | None = None

    @cached_property
    def model_folder(self) -> Path | None:
        """Where the model's files are, None where they are not on this machine."""
        return model_folder(self.run.model)

    @cached_property
    def planner(self) -> "Planner | None":
        """Counts and memory; None for pictures, and where the model's configuration is not here. Asks nobody."""
        from debias.plan.planner import Planner
        from debias.plan.shapes import is_carried
        from debias.plan.sheet import Machine

        name = self.run.model
        if name.startswith("vision:") or self.run.head == "image_classification":
            return None
        if self.model_folder is not None and (self.model_folder / hub.CONFIG).is_file():
            name = str(self.model_folder)
        elif not is_carried(name):
            return None
        gpus, nodes = gpus_and_nodes()
        machine = Machine(gpu_memory=self.gpu_memory, gpus=gpus, nodes=nodes)
        return Planner(self.run.model_copy(update={"model": name}), machine)

    def before(self) -> "list[tuple[str, Patient]]":
        """The runs that are trained before it, by the names of their folders; one for a bias model's."""
        stages = {Path(one.output_dir).name: one for one in runs_of(self.run)[1:]}
        alike = re.compile(r"bias_(?!1$)")
        return [
            (f"{STAGES}/{name}", dataclasses.replace(self, run=one))
            for name, one in stages.items()
            if not alike.match(name)
        ]

    def bytes_written(self) -> int | None:
        """About what the run writes: what was trained, and checkpoints of it; None where the model is not known."""
        if self.planner is None:
            return None
        trained = 4 * self.planner.counts.elements(trainable=True)
        kept = 0 if self.run.save_strategy == "no" else (self.run.save_total_limit or 10) + 1  # one more while it saves
        return trained * (1 + COPIES * kept)


def gpus_and_nodes() -> tuple[int, int]:
    """GPUs (or ranks) of a node and nodes, as the launcher's environment says."""
    import torch

    world, local = world_size(), local_ranks()
    if local is not None:
        return local, max(1, world // local)
    nodes = slurm_nodes() or world
    return max(1, torch.cuda.device_count(), world // nodes), nodes


def read(path: Path, overrides: Sequence[str], output_dir: str | None, gpu_memory: int | None) -> Patient:
    """The run of a config file; InputError for what is wrong with it."""
    path = find_recipe(path)
    base = path.resolve().parent
    run = resolve_paths(load_config(path, overrides), base)
    return Patient(run if output_dir is None else run.model_copy(update={"output_dir": output_dir}), base, gpu_memory)


def checks(patient: Patient) -> list[Check]:
    """All that needs a config."""
    looks: dict[str, Callable[[], Check | Sequence[Check]]] = {
        "packages": lambda: packages(patient.run),
        "DeepSpeed configuration": lambda: engine_config(patient.run),
        "model": lambda: models(patient),
        "data": lambda: data(patient),
        "adapter": lambda: adapter(patient),
        "memory": lambda: memory(patient),
    }
    return [check for name, look in looks.items() for check in guarded(name, look)]


def packages(run: RunConfig) -> list[Check]:
    """What this run alone needs."""
    needed = {"deepspeed": ("deepspeed", run.deepspeed is not None), "bitsandbytes": ("quant", run.load_in_4bit)}
    absent = {name: extra for name, (extra, wanted) in needed.items() if wanted and find_spec(name) is None}
    found = [bad("packages", f"{name} is not installed", f"pip install 'debias[{absent[name]}]'") for name in absent]
    return found or [fine("packages", "all that the run asks for")]


def engine_config(run: RunConfig) -> Check:
    """The run's DeepSpeed file with the run's batch, on this many ranks."""
    name = "DeepSpeed configuration"
    if run.deepspeed is None:
        return fine(name, "none")
    gpus, nodes = gpus_and_nodes()
    try:
        path = zero_config.find(run.deepspeed)
        found = zero_config.read(path, gpus * nodes, run.per_device_train_batch_size, run.gradient_accumulation_steps)
    except InputError as error:
        check = from_error(name, error)
        # How many ranks there will be is known under a launcher alone.
        unsure = "train_batch_size" in check.found and local_ranks() is None
        return warn(name, check.found, check.cure) if unsure else check
    return fine(name, f"{path.name}, stage {found.get('zero_optimization', {}).get('stage', 0)}")


def model_folder(name: str) -> Path | None:
    """The folder of a model's files, of any kind of name; None where they are not on this machine."""
    from debias.hub.packages import PREFIX, package_folder

    if name.startswith(PREFIX):
        folder = package_folder(name)
        return folder if folder.is_dir() else None
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    found = hub.in_cache(name)
    return None if found is None else found.folder


def models(patient: Patient) -> list[Check]:
    """Of the run, and of each run before it that has another."""
    others = {one.model: one for one in runs_of(patient.run)[1:] if one.model != patient.run.model}
    return [model(patient), *(model(dataclasses.replace(patient, run=one)) for one in others.values())]


def model(patient: Patient) -> Check:
    """Whether the model can be loaded here, or at least be downloaded."""
    name = patient.run.model
    if name.startswith("vision:"):
        return fine("model", f"{name} is drawn, not loaded")
    folder = patient.model_folder
    if folder is not None and (check := _in_folder(patient, folder)) is not None:
        return check
    if name.startswith("package:"):
        return warn("model", f"{name} is not on this machine, and will be taken from the package index", FETCH)
    return _on_hub("model", name)


def _in_folder(patient: Patient, folder: Path) -> Check | None:
    """The model's files; None where some are missing that will be downloaded."""
    name, local = patient.run.model, Path(patient.run.model).expanduser().is_dir()
    found = hub.in_folder(folder, tokenizer=patient.run.head != "image_classification")
    if found.damaged:
        place = folder if name.startswith("package:") else found.cached_as
        cure = "copy or save it again" if local else f"delete {place}, and fetch it again"
        return bad("model", f"{folder}: {'; '.join(found.damaged)}", cure)
    if not found.missing:
        return fine("model", f"{folder}, {found.bytes / GB:,.2f} GB")
    lacks = f"{folder} lacks {', '.join(found.missing)}"
    if local:
        return bad("model", lacks, "give a folder that save_pretrained wrote, with its tokenizer")
    return bad("model", lacks, FETCH) if hub.is_offline() else None


def _on_hub(kind: hub.Kind, name: str) -> Check:
    if hub.is_offline():
        return bad(kind, f"{name} is not in the cache, and HF_HUB_OFFLINE is set", FETCH)
    from huggingface_hub import HfApi

    with hub.one_line(kind, name):
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        ask(name, timeout=PATIENCE)
    return fine(kind, f"{name} is not in the cache; {hub.host()} has it, and it will be downloaded")


def data(patient: Patient) -> list[Check]:
    """The first rows of each source the run reads."""
    run = patient.run
    sources = {"training data": run.data.train}
    if run.data.validation is not None and run.eval_strategy != "no":
        sources["validation data"] = run.data.validation
    looks = {name: partial(_source, patient, name, source) for name, source in sources.items()}
    return [check for name, look in looks.items() for check in guarded(name, look)]


def _source(patient: Patient, name: str, source: DataSource) -> Check:
    """Rows that can be read, with every label among them; all rows are searched for a label that the first lack."""
    limit = min(source.limit or ROWS, ROWS) if source.source == "generated" else None
    source = source.model_copy(update={"limit": limit})
    labels = patient.run.data.labels
    try:
        counts, ended = _labels(patient, name, source, everywhere=False)
        if len(counts) < len(labels) and not ended:
            counts, _ = _labels(patient, name, source, everywhere=True)
    except InputError:
        if not _may_be_on_hub(source, patient):
            raise
        return _on_hub("dataset", source.source)
    absent = [label for index, label in enumerate(labels) if index not in counts]
    if absent:
        found = f"{source.source}: no row is labelled {', '.join(absent)}"
        return bad(name, found, "correct data.labels or data.label_map, or take rows that have it")
    shown = ", ".join(f"{label} {counts[index]:,}" for index, label in enumerate(labels))
    return fine(name, f"{source.source}: {counts.total():,} rows read; {shown}")


def _labels(patient: Patient, name: str, source: DataSource, *, everywhere: bool) -> tuple[Counter[int], bool]:
    """How often each label is among the rows read, and whether there are no other rows."""
    run = patient.run
    first = _First(run.data.label_field, everywhere)
    column = run.bias_weight.column if name == "training data" else None
    with hub.without_network():  # a look must not download gigabytes
        read = load_with_columns(source, run.data, (), base=patient.base, bias_column=column, through=first.rows)
    return Counter(example.label for example, _ in read), first.ended


class _First:
    """Lets the first rows through and, `everywhere`, of all others those with a label not seen before."""

    def __init__(self, field: str, everywhere: bool) -> None:
        self.field = field
        self.everywhere = everywhere
        self.ended = False

    def rows(self, rows: Iterable["NumberedRow"]) -> Iterator["NumberedRow"]:
        rows, labels = iter(rows), set()
        for number, row in itertools.islice(rows, ROWS):
            labels.add(self._label(row))
            yield number, row
        for number, row in rows if self.everywhere else ():
            if (label := self._label(row)) not in labels:
                labels.add(label)
                yield number, row
        self.ended = next(rows, None) is None

    def _label(self, row: Mapping[str, Any]) -> str | None:
        """The label as it is written; None of null and NaN, which are no label "None" and must not hide one."""
        value = row.get(self.field)
        return None if is_null(value) else str(value)


def _may_be_on_hub(source: DataSource, patient: Patient) -> bool:
    from debias.data.files import kind_of
    from debias.data.shards import resolve_path

    if source.source == "generated" or kind_of(source.source) or patient.run.data.pictures:
        return False
    try:
        return not resolve_path(source.source, patient.base).exists()
    except InputError:
        return True


def adapter(patient: Patient) -> Check:
    """What trains, found on the meta device; a target that matches nothing is an error there too.

    So is what a `weight_penalty` cannot take.
    """
    from debias.plan.checks import check_adapted

    planner = patient.planner
    if planner is None:
        return fine("adapter", "not looked at: the model's configuration is not here")
    counts, kind = planner.counts, patient.run.adapter["type"]
    check_adapted(planner.run, planner.config)
    for name, before in patient.before():
        if before.planner is not None:
            try:
                check_adapted(before.planner.run, before.planner.config)
                before.planner.counts  # noqa: B018 (asked for: targets that match nothing are found by it)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
    trains = counts.elements(trainable=True)
    tensors = sum(size.trainable for size in counts.sizes)
    return fine("adapter", f"{kind}: {trains:,} parameters in {tensors} tensors train, the base has {counts.base:,}")


def memory(patient: Patient) -> Check:
    """The plan beside the GPU's memory, where either the GPU or a figure for it is there; the largest of the run's and
    those of the runs before it.
    """
    limit = patient.gpu_memory
    if limit is None:
        return fine("memory", "no GPU here to compare the plan with; --gpu-memory 24GB names one")
    planners = {name: one.planner for name, one in [("", patient), *patient.before()]}
    needed = {
        name: planner.memory(planner.run.per_device_train_batch_size).total
        for name, planner in planners.items()
        if planner is not None
    }
    if not needed:
        return fine("memory", "not looked at: the model's configuration is not here")
    largest = max(needed, key=lambda name: needed[name])
    of = f" of {largest}" if largest else ""
    found = f"the plan{of} is {needed[largest] / GB:,.1f} of {limit / GB:,.1f} GB a GPU"
    if needed[largest] <= limit:
        unseen = [name or "the run" for name in planners if name not in needed]
        return fine(
            "memory", found + (f"; of {', '.join(unseen)} the model's configuration is not here" if unseen else "")
        )
    planner = planners[largest]
    advice = planner.plan().advice if planner is not None else ()
    return bad("memory", found, advice[0] if advice else "see debias plan CONFIG")
