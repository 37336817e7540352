"""A model's configuration without its weights: of a local folder, or of a shape that the project carries."""

import difflib
import json
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias.models.load_errors import reason
from debias.models.source import resolve_model

# What follows a shape's name in the hub ids of models that have it.
SUFFIXES = ("", "-instruct", "-base", "-instruct-2507", "-thinking", "-original", "-it", "-pt")
FOLDER = Path(__file__).parents[1] / "shapes"


def carried() -> dict[str, Path]:
    """The configurations that come with the project, by the model's short name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def find_config(name: str) -> Any:
    """The transformers configuration of a model's text part; nothing is downloaded for a carried shape.

    `name`: a folder with config.json or that file itself, a hub id or short name of `carried`, package:..., or any hub
    id that is in the local cache. InputError that names the shapes there are.
    """
    from transformers import AutoConfig

    if name.startswith("vision:"):
        raise InputError(f"model: {name!r} reads pictures; a plan is made for language models only")
    if (path := _of_shape(name)) is not None:
        return AutoConfig.for_model(**json.loads(path.read_text(encoding="utf-8")))
    try:
        found = _of_file(Path(name).expanduser()) or resolve_model(name).config
    except InputError:
        raise
    except Exception as error:  # of a damaged file too
        why = reason(error, name)[:300]
        raise InputError(f"model: {name!r} has no configuration here ({why}); {_known(name)}") from None
    return found.get_text_config()


def _of_file(path: Path) -> Any:
    """The configuration in a JSON file, None where `path` is none; code that it names is not run."""
    from transformers import AutoConfig

    if path.suffix != ".json" or not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ValueError("the file has no model_type, as a model's config.json has")
    return AutoConfig.for_model(**settings)


def is_carried(name: str) -> bool:
    """Whether the configuration of that name comes with the project."""
    return _of_shape(name) is not None


def _of_shape(name: str) -> Path | None:
    """The carried shape of a hub id or short name; a local folder of that name goes first."""
    if Path(name).expanduser().is_dir():
        return None
    short = name.rpartition("/")[2].lower()
    shapes = {key.lower(): path for key, path in carried().items()}
    names = [short.removesuffix(one) for one in SUFFIXES] + [short.replace("-instruct-", "-")]
    return next((shapes[one] for one in names if one in shapes), None)


def _known(name: str) -> str:
    near = difflib.get_close_matches(name.rpartition("/")[2], carried(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"give a folder with its config.json, or one of {', '.join(carried())}{hint}"
