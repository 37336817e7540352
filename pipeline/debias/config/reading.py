"""A run's YAML file: read, merged with what it extends and with `key=value`, validated; what is wrong in one line."""

import contextlib
import copy
import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from debias.config import blocks
from debias.config.elsewhere import ALSO_CALLED, NOT_SETTINGS
from debias.config.expanding import expanded
from debias.config.regular import check_regular
from debias.config.run import RunConfig
from debias.errors import InputError


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply `key=value` overrides (dots reach into blocks, values are YAML), validate.

    `extends: other.yaml` in the file takes that file's settings first. Raises InputError with one line: the key, the
    value seen, what would be right.
    """
    return parse(RunConfig, apply_overrides(_with_parents(Path(path)), overrides), where=str(path))


def _with_parents(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's settings over those of the file it extends, so that two recipes need not share their lines."""
    if path.resolve() in below:
        raise InputError(f"{path}: extends itself")
    values = read_yaml(path)
    if "extends" not in values:
        return values
    parent = values.pop("extends")
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends is {parent!r}, expected the name of one file")
    return _merged(_with_parents(path.parent / expanded(parent), (*below, path.resolve())), values)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(under[key], value) for key, value in over.items() if _are_blocks(under.get(key), value)}
    return {**under, **over, **both}


def _are_blocks(under: Any, over: Any) -> bool:
    return isinstance(under, dict) and isinstance(over, dict)


class _KeysOnce(yaml.constructor.SafeConstructor):
    """Of a key that is written twice, plain YAML takes the last without a word.

    A scalar that looks like a date or a number and is none (`2024-13-40`, `0x_`) is a YAML error of its line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            seen = node.value[:80] if isinstance(node.value, str) else node.tag
            what = f"{seen!r} is no {node.tag.rpartition(':')[2]} ({error}); put quotes around a text"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                what = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Loader(_KeysOnce, yaml.SafeLoader):
    """The reader whose words for a mistake are shown."""


try:

    class _FastLoader(_KeysOnce, yaml.CSafeLoader):
        """libyaml's reader: ten times as fast, and a sweep has a thousand files of settings."""

except AttributeError:  # a PyYAML without libyaml
    _FastLoader = _Loader  # type: ignore[misc, assignment]

# What the two read differently: tabs, marks of the byte order, a tag that is its mark alone, keys behind a question
# mark, and one within brackets.
_READ_DIFFERENTLY = re.compile(r"[\t\ufeff]|!(?:\s|\Z)|(?<!\w)\?(?:\s|$)|[\[{][^?]*\?")
# Deeper than this is for the slower reader, which knows when it is too deep for all that follows. An indented line
# begins a level, and so does a bracket.
_DEEP = re.compile(r"^[ -]{100}", re.MULTILINE)
_MANY_BRACKETS = 100


def _load(text: str) -> Any:
    deep = _DEEP.search(text) or text.count("[") + text.count("{") > _MANY_BRACKETS
    if not deep and not _READ_DIFFERENTLY.search(text):
        with contextlib.suppress(yaml.YAMLError, UnicodeError):  # read once more, to be said in the same words
            return yaml.load(text, Loader=_FastLoader)
    return yaml.load(text, Loader=_Loader)


def yaml_value(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError for whatever is wrong with it."""
    try:
        return _load(text)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    check_regular(path)
    try:
        loaded = _load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a file of settings") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds {type(loaded).__name__}, expected a mapping of settings")
    return loaded


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=VALUE` set; a block given as a short string (`method: edge`) becomes a mapping first.

    InputError for a block that is given after a setting in it: that would be gone without a word.
    """
    result = copy.deepcopy(values)
    given: list[str] = []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{item!r}: expected key=value")
        try:
            value = yaml_value(text)
        except yaml.YAMLError:
            raise InputError(f"{item[:200]!r}: the value is not valid YAML; quote it") from None
        key = key.strip()
        if (lost := next((one for one in given if one.startswith(f"{key}.")), None)) is not None:
            raise InputError(f"{item[:200]!r}: takes the place of the block in which {lost} was set; give {key} first")
        given.append(key)
        *blocks, last = key.split(".")
        node = result
        for block in blocks:
            node = _enter(node, block, item)
        node[last] = value
    return result


def _enter(node: dict[str, Any], block: str, item: str) -> dict[str, Any]:
    short = {"bias_weight": "source", "train": "source", "validation": "source"}
    short |= {name: kind.key for name, kind in blocks.KINDS.items()}
    if node.get(block) is None:
        node[block] = {}
    child = node[block]
    if isinstance(child, str) and block in short:
        child = {short[block]: child}
        node[block] = child
    if not isinstance(child, dict):
        raise InputError(f"{item!r}: {block} is {child!r}, not a block of settings")
    return child


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """`values` as a `model`; the first thing wrong becomes one line that starts with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error, model)}") from None


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    details = error.errors()
    # An unknown key often causes the "missing" beside it: name the cause.
    first = next((item for item in details if item["type"] == "extra_forbidden"), details[0])
    name = ".".join(str(part) for part in first["loc"] if not _is_of_a_union(part))
    if first["type"] == "extra_forbidden":
        return f"{name}: {_unknown(name, first['loc'], model)}"
    if first["type"] == "missing":
        return f"{name}: missing, and it has no default"
    if first["type"] == "model_type":
        return f"{name}: expected a block of settings (key: value), got {shown(first['input'])}"
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    if first["type"] == "value_error":
        return message if not name or message.startswith(f"{name}.") else f"{name}: {message}"
    return f"{name}: {message[0].lower()}{message[1:]}, got {shown(first['input'])}"


def shown(value: Any) -> str:
    """A value for a message, with an end however large it is."""
    return _SHORT.repr(value)


def _short() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    short.maxlist = short.maxtuple = short.maxset = short.maxdict = 20
    short.maxlevel = 4
    return short


_SHORT = _short()


def _unknown(name: str, place: Sequence[int | str], model: type[BaseModel]) -> str:
    """What to say of a key that there is not: what else it may be called, else the nearest."""
    keys = [*key_names(model), *(blocks.setting_names() if issubclass(model, RunConfig) else ())]
    if issubclass(model, RunConfig) and name in NOT_SETTINGS | ALSO_CALLED:
        return NOT_SETTINGS.get(name) or f"unknown key; did you mean {ALSO_CALLED[name]}?"
    near = difflib.get_close_matches(str(place[-1]), [key.split(".")[-1] for key in keys], n=1)
    matches = [key for key in keys if near and key.split(".")[-1] == near[0]]
    beside = ".".join([*map(str, place[:-1]), *near])
    matches = [beside] if beside in matches else matches  # where it was written, before other blocks
    return "unknown key" + (f"; did you mean {' or '.join(matches)}?" if matches else "")


def _is_of_a_union(part: int | str) -> bool:
    """pydantic names the member of a union that it tried last, behind the key."""
    return part in ("bool", "int", "float", "str") or str(part).startswith(("literal[", "tuple["))


def key_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that `model` accepts."""
    for key, info in model.model_fields.items():
        yield prefix + key
        for part in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from key_names(part, f"{prefix}{key}.")


def dump_config(config: BaseModel) -> str:
    """The resolved settings as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
