"""One reader for every table of pieces: a block of settings becomes a frozen dataclass, with every default filled in.

A table maps names to frozen dataclasses whose fields are their YAML settings. `edge` and `{name: edge, alpha: 1.0}` are
one method, and so are a row's own name and what else it is called (`also_called`); what is unknown is an error with the
nearest name.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
Table = Mapping[str, type[T]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where the table of a kind of block lies, the row of a block that names none, and the setting that names it.

    Named here, and opened when a block is read: tables load torch, and stand above the settings.
    """

    module: str
    table: str
    default: str | None = None
    key: str = "name"


KINDS = {
    "method": Kind("debias.methods", "METHODS", "edge"),
    "loss": Kind("debias.losses", "LOSSES", "cross_entropy"),
    "bias_model": Kind("debias.bias", "BIAS_MODELS"),
    "groups": Kind("debias.grouping", "GROUPINGS"),
    "order": Kind("debias.data.orders", "ORDERS", "shuffled"),
    "sharpness": Kind("debias.sharpness", "SHARPNESS"),
    "smoothness": Kind("debias.smoothness", "SMOOTHNESS"),
    "weight_penalty": Kind("debias.penalties", "PENALTIES"),
    "weight_projection": Kind("debias.projections", "PROJECTIONS"),
    "gradient_mask": Kind("debias.masks", "MASKS"),
    "adapter": Kind("debias.adapters", "ADAPTERS", "lora", key="type"),
}
EXPECTED = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text"}
EXPECTS = "expects"  # in a field's metadata: what its values are, in words, where its type does not say it well
WAS = "was"  # there, too: the default of earlier versions, by which runs are still told apart


def table_of(kind: str) -> Table[Any]:
    """The table that reads blocks of this kind (a setting of a run: `method`)."""
    home = KINDS[kind]
    table: Table[Any] = getattr(importlib.import_module(home.module), home.table)
    return table


def read(kind: str, block: str | Mapping[str, Any]) -> dict[str, Any]:
    """A run's block in its canonical form; one that names no row is the kind's default."""
    default, key = KINDS[kind].default, KINDS[kind].key
    named = block if isinstance(block, str) or key in block or default is None else {key: default, **block}
    return canonical(kind, table_of(kind), named, key)


def make(kind: str, table: Table[T], block: str | Mapping[str, Any], key: str = "name") -> T:
    """The row that a block of settings describes; `kind` is what messages call it, `key` the setting that names it.

    A text is a name alone. Raises ValueError in one line: the setting, the value seen, what would be right.
    """
    values = {key: block} if isinstance(block, str) else dict(block)
    row = _row(f"{kind}.{key}", table, values.pop(key, None))
    hints = get_type_hints(row)
    fields = _fields(row)
    known = list(fields)
    for name in values:
        if name not in known:
            hint = _nearest(str(name), known) or f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{kind}.{name}: {_name_of(table, row)} has no such setting{hint}")
    checked = {
        name: _checked(f"{kind}.{name}", hints[name], value, fields[name].metadata.get(EXPECTS))
        for name, value in values.items()
    }
    try:
        return row(**checked)
    except ValueError as error:  # what a row itself asks of its settings
        raise ValueError(f"{kind}.{error}") from None
    except TypeError:
        missing = [f.name for f in dataclasses.fields(row) if f.default is dataclasses.MISSING and f.name not in values]  # type: ignore[arg-type]
        raise ValueError(f"{kind}.{missing[0]}: missing, and {_name_of(table, row)} has no default for it") from None


def canonical(kind: str, table: Table[Any], block: str | Mapping[str, Any], key: str = "name") -> dict[str, Any]:
    """The block with the row's own name and every default filled in; errors as in `make`."""
    made = make(kind, table, block, key)
    return {key: _name_of(table, type(made)), **dataclasses.asdict(made)}


def shortened(kind: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical block without what is a default of its row: what it says, whatever settings its row has later.

    A default that was another one (WAS) is said, and that one is not: a method is told by the same words as ever.
    """
    key, table = KINDS[kind].key, table_of(kind)
    fields = _fields(_row(f"{kind}.{key}", table, block.get(key)))
    plain = {name: field.metadata.get(WAS, field.default) for name, field in fields.items()}
    return {name: value for name, value in block.items() if name == key or not _same(value, plain.get(name))}


def _same(value: Any, default: Any) -> bool:
    """Lists of YAML and JSON are tuples in a row."""
    return bool(value == default) or (isinstance(default, tuple) and value == list(default))


def names_of(table: Table[Any]) -> dict[str, str]:
    """Every name that a table knows, and the row's own name for it."""
    others = {other: name for name, row in table.items() for other in getattr(row, "also_called", ())}
    return {**{name: name for name in table}, **others}


def setting_names() -> Iterator[str]:
    """Every `kind.setting` that a row of some table has, once."""
    for kind, home in KINDS.items():
        rows = table_of(kind).values()
        yield from dict.fromkeys(f"{kind}.{one}" for row in rows for one in [home.key, *_fields(row)])


def _fields(row: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(row) if field.init}


def _row(setting: str, table: Table[T], name: Any) -> type[T]:
    names = names_of(table)
    if name is None:
        raise ValueError(f"{setting}: missing; give one of {', '.join(names)}")
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{setting} is {name!r}, not one of {', '.join(names)}{_nearest(str(name), list(names))}")
    return table[names[name]]


def _name_of(table: Table[Any], row: type) -> str:
    return next(name for name, one in table.items() if one is row)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _checked(setting: str, hint: Any, value: Any, expects: str | None = None) -> Any:
    """The value as the field's type; YAML's texts for numbers (`1e-3`) are numbers, its flags are none."""
    wrong = isinstance(value, bool) and bool not in (hint, *get_args(hint)) and value not in get_args(hint)
    try:
        if not wrong:
            return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        if hint not in EXPECTED and not _choices(hint) and expects is None:
            message = error.errors()[0]["msg"].replace("a valid tuple", "a list")
            raise ValueError(f"{setting} is {value!r}: {message[0].lower()}{message[1:]}") from None
    one_of = f"not one of {', '.join(map(str, _choices(hint)))}" if _choices(hint) else ""
    raise ValueError(f"{setting} is {value!r}, {one_of or f'expected {expects or _in_words(hint)}'}")


def _in_words(hint: Any) -> str:
    if Ellipsis in get_args(hint):
        return f"a list, each of which is {_in_words(get_args(hint)[0])}"
    parts = [one for one in get_args(hint) if one is not type(None)] or [hint]
    return " or ".join(EXPECTED.get(one, str(one)) for one in parts)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Those of a Literal."""
    return get_args(hint) if getattr(hint, "__origin__", None) is not None and _is_literal(hint) else ()


def _is_literal(hint: Any) -> bool:
    return all(isinstance(one, str | int | float | bool) for one in get_args(hint))
