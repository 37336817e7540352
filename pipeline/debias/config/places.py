"""Where a run's files lie: recipes by name, data and models as absolute paths."""

import difflib
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from debias.config import deepspeed_file as zero_config
from debias.config.run import RunConfig
from debias.config.shipped import shipped_folders
from debias.errors import InputError


def find_recipe(path: Path) -> Path:
    """The file itself, or the shipped recipe of that name; InputError for a name that is neither."""
    shipped = [folder / path.with_suffix(".yaml").name for folder in shipped_folders("recipes")]
    found = next((place for place in (path, *shipped) if place.is_file()), None)
    if found is None and not path.exists() and path.name == str(path):
        names = sorted({place.stem for folder in shipped for place in folder.parent.glob("*.yaml")})
        near = difflib.get_close_matches(path.stem, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(names)}"
        raise InputError(f"{path}: no such file here, and no recipe of that name; {hint}")
    return found or path


def _absolute(folder: Path, name: str) -> str | None:
    """The absolute name of what lies in the folder under that name or pattern, None where nothing does.

    A link keeps its own name: what it leads to may lie in a store of files without suffixes.
    """
    place = folder / name
    if os.path.exists(place):  # for which a name that is too long is no error
        return str(place.parent.resolve() / place.name) if place.name else str(place.resolve())
    whole = Path(glob.escape(str(folder.resolve()))) / name
    return str(whole) if glob.has_magic(name) and glob.glob(str(whole), recursive=True) else None


def resolve_paths(config: RunConfig, base: Path | None) -> RunConfig:
    """The config with local files and folders as absolute paths, so that it means the same from anywhere.

    A file that is found through DEBIAS_DATA alone keeps its short name.
    """
    places = [folder for folder in (base, Path.cwd()) if folder is not None]

    def absolute(name: str) -> str:
        return next((found for folder in places if (found := _absolute(folder, name)) is not None), name)

    sources = {
        key: source.model_copy(update={"source": absolute(source.source)})
        for key in ("train", "validation")
        if (source := getattr(config.data, key)) is not None and source.source != "generated"
    }
    model = Path(config.model).expanduser()
    engine = config.deepspeed
    if engine is not None and engine not in zero_config.shipped():
        engine = str(zero_config.find(engine, base))
        zero_config.check_agrees(Path(engine), config)
    return config.model_copy(
        update={
            "deepspeed": engine,
            "data": config.data.model_copy(update=sources),
            "bias_model": _with_files(config.bias_model, absolute),
            "model": str(model.resolve()) if os.path.isdir(model) else config.model,
        }
    )


def runs_of(config: RunConfig) -> list[RunConfig]:
    """The run, and the runs that are trained before it: each may have a model of its own."""
    stages = [*([config.stage_before()] if config.first_stage else []), *config.bias_stages()]
    return [config, *(one for stage in stages for one in runs_of(stage))]


def resolve_stages(config: RunConfig, base: Path | None) -> RunConfig:
    """The config, whose first stage's own model and DeepSpeed file are absolute paths too: for a job, which starts in
    another folder. Elsewhere these keep the names they were given, by which a finished run is known again.
    """
    if config.first_stage is None:
        return config
    before, given = resolve_paths(config.stage_before(), base), config.first_stage.settings
    own = {key: getattr(before, key) for key in ("model", "deepspeed") if given.get(key) is not None}
    return config.model_copy(
        update={"first_stage": config.first_stage.model_copy(update={"settings": {**given, **own}})}
    )


def files_of(block: Any) -> list[str]:
    """The files that a bias model's block, or the blocks it is made of, reads."""
    blocks = block if isinstance(block, list | tuple) else [block]
    blocks = [one for one in blocks if isinstance(one, dict)]
    return [name for one in blocks for name in [one.get("file"), *files_of(one.get("of"))] if name]


def _with_files(block: Any, absolute: Callable[[str], str]) -> Any:
    """A bias model's block, or the blocks it is made of, with the file that it reads as an absolute path."""
    if isinstance(block, list | tuple):
        return type(block)(_with_files(one, absolute) for one in block)
    if not isinstance(block, dict):
        return block
    return {
        key: absolute(value) if key == "file" and value else _with_files(value, absolute) if key == "of" else value
        for key, value in block.items()
    }
