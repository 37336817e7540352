"""What methods there are, told by their own docstrings: a list of all, a card of one. A table is one line."""

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from debias.adapters import ADAPTERS
from debias.bias import BIAS_MODELS
from debias.config.blocks import EXPECTS
from debias.data.orders import ORDERS
from debias.errors import InputError
from debias.grouping import GROUPINGS
from debias.losses import LOSSES
from debias.masks import MASKS
from debias.merging import EDITS
from debias.methods import METHODS
from debias.penalties import PENALTIES
from debias.projections import PROJECTIONS
from debias.sharpness import SHARPNESS
from debias.smoothness import SMOOTHNESS


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The table of one kind of method. `use`: how a row is asked for, with NAME for its name."""

    kind: str
    use: str
    rows: Mapping[str, type]


SHELVES = (
    Shelf("rule", "method: {name: NAME}", METHODS),
    Shelf("loss", "loss: {name: NAME}", LOSSES),
    Shelf("bias model", "bias_model: {name: NAME}", BIAS_MODELS),
    Shelf("groups", "groups: {name: NAME}", GROUPINGS),
    Shelf("order of the data", "order: {name: NAME}", ORDERS),
    Shelf("where gradients are taken", "sharpness: {name: NAME}", SHARPNESS),
    Shelf("smoothness term", "smoothness: {name: NAME}", SMOOTHNESS),
    Shelf("weight penalty", "weight_penalty: {name: NAME}", PENALTIES),
    Shelf("weight projection", "weight_projection: {name: NAME}", PROJECTIONS),
    Shelf("gradient mask", "gradient_mask: {name: NAME}", MASKS),
    Shelf("adapter", "adapter: {type: NAME}", ADAPTERS),
    Shelf("edit", "debias edit NAME RUN... -o FOLDER --set KEY=VALUE", EDITS),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a row: its name, what its values are, and its default in YAML; None where it must be given."""

    name: str
    type: str
    default: str | None


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of one method. `does`: the docstring's first sentence; `source`: what it says after `Source:`."""

    kind: str
    name: str
    also_called: tuple[str, ...]
    use: str
    does: str
    source: str
    settings: tuple[Setting, ...]
    docstring: str

    @property
    def text(self) -> str:
        """The card as it is printed."""
        others = f" (also {', '.join(self.also_called)})" if self.also_called else ""
        lines = [f"{self.name}{others}: {self.kind}", f"use: {self.use}"]
        for one in self.settings:
            lines.append(f"  {one.name} ({one.type}): {'must be given' if one.default is None else one.default}")
        return "\n".join([*lines, *([] if self.settings else ["  no settings"]), "", self.docstring])


def cards(name: str | None = None) -> list[Card]:
    """All cards, table by table; with a name (or what a row is also called) those of that name.

    InputError for a name that no table knows, with the nearest.
    """
    every = [_card(shelf, row, shelf.rows[row]) for shelf in SHELVES for row in shelf.rows]
    if name is None:
        return every
    found = [card for card in every if name in (card.name, *card.also_called)]
    if not found:
        known = [one for card in every for one in (card.name, *card.also_called)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys(known))}"
        raise InputError(f"no method is called {name!r}; {hint}")
    return found


def methods_table() -> Any:
    """A rich table of all methods."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", "name", "what it does", "source")
    for card in cards():
        table.add_row(*map(escape, (card.kind, card.name, card.does, card.source)))
    return table


def _card(shelf: Shelf, name: str, row: type) -> Card:
    told = inspect.getdoc(row) or ""
    return Card(
        kind=shelf.kind,
        name=name,
        also_called=tuple(getattr(row, "also_called", ())),
        use=shelf.use.replace("NAME", name),
        does=first_sentence(told),
        source=source_in(told),
        settings=tuple(_settings(row)),
        docstring=told,
    )


def first_sentence(docstring: str) -> str:
    """Up to the first full stop that ends a sentence (`eq. 4` has none), in one line."""
    words = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", words)[0]


def source_in(docstring: str) -> str:
    """The paragraph that begins with `Source:`, without the word; empty where there is none."""
    found = re.search(r"^Source:(.*?)(?:\n\n|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _settings(row: Any) -> list[Setting]:
    hints = get_type_hints(row)
    return [
        Setting(one.name, one.metadata.get(EXPECTS) or _in_words(hints[one.name]), _shown(one))
        for one in dataclasses.fields(row)
        if one.init
    ]


def _shown(field: "dataclasses.Field[Any]") -> str | None:
    if field.default is dataclasses.MISSING:
        return None
    if field.default is None or isinstance(field.default, bool):
        return {None: "null", True: "true", False: "false"}[field.default]
    return str(list(field.default)) if isinstance(field.default, tuple) else str(field.default)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_in_words(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_in_words(get_args(hint)[0])}"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))
