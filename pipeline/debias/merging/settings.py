"""A name and settings become a row of a table: a frozen dataclass whose fields are the settings."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


def make(kind: str, table: Mapping[str, type[T]], block: Mapping[str, Any]) -> T:
    """The row that `block` describes: `{"name": "truncate", "keep": 4}`. ValueError in one line names the setting."""
    values = dict(block)
    name = values.pop("name", None)
    if name not in table:
        raise ValueError(f"{kind}.name is {name!r}, not one of {', '.join(table)}{_nearest(name, list(table))}")
    hints, known = get_type_hints(table[name]), [field.name for field in dataclasses.fields(table[name])]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            has = _nearest(key, known) or f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{kind}.{key}: {name} has no such setting{has}")
    checked = {key: _checked(f"{kind}.{key}", hints[key], value) for key, value in values.items()}
    try:
        return table[name](**checked)
    except ValueError as error:
        raise ValueError(f"{kind}.{error}") from None


def _nearest(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _checked(setting: str, hint: Any, value: Any) -> Any:
    try:
        if not isinstance(value, bool):  # YAML's flags are no numbers
            return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("a valid tuple", "a list")
        raise ValueError(f"{setting} is {value!r}: {message[0].lower()}{message[1:]}") from None
    raise ValueError(f"{setting} is {value!r}, expected a number")
