"""An audit on a terminal."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from debias.audit.audit import Audit, block_as_yaml
from debias.audit.comparing import OnlyHere
from debias.audit.fields import Relation
from debias.audit.sureness import Interval
from debias.config.words import visible

SHOWN = 15
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control characters


def tables_of(audit: Audit) -> list[Any]:
    """What is printed of an audit: texts and rich tables, from top to bottom."""
    labels = ", ".join(f"{label} {count:,}" for label, count in audit.labels.items())
    head = f"{audit.name}: {audit.examples:,} examples; {labels}"
    return [
        _plain(head),
        *(_plain(line) for line in audit.about_labels),
        _plain(audit.verdict),
        *([_strong(audit)] if audit.strong else []),
        _alone(audit),
        *([_words(audit)] if audit.words else [_plain(f"No word gives a label away ({audit.looked_at:,} looked at).")]),
        _relations(audit),
        *([_forms(audit)] if audit.forms else []),
        *(_plain(line) for line in notes_of(audit)),
        *(_plain(line) for line in _next(audit)),
        _plain(block_as_yaml(audit.bias_model, audit.dealt_out)),
    ]


def _next(audit: Audit) -> list[str]:
    """Where the settings below go: the command that begins a run's file, as a shell takes it."""
    if audit.bias_model is None:
        return []
    columns = [
        *(word for field in audit.fields for word in ("--text-field", field)),
        "--label-field",
        audit.label_field,
    ]
    layout = [word for key, value in audit.layout.items() for word in _flag(key, value)]
    words = ["debias", "init", "--data", audit.name, *layout, *columns, "--model", "package:minilm", "--method", "erm"]
    return [f"What corrects for it, for a run's file such as this command writes: {shlex.join(words)}"]


def _flag(key: str, value: Any) -> list[str]:
    return (
        [f"--{'' if value else 'no-'}{key}"]
        if isinstance(value, bool)
        else [f"--{key}", str(value).replace("\t", r"\t")]
    )


def notes_of(audit: Audit) -> list[str]:
    """What a bias model would make of the data, of a test set, and the copies, a line each."""
    easy, copies, test = audit.easy, audit.copies, audit.test
    found = [
        f"bias model lexical: right on {percent(easy.accuracy, easy.interval)} out of fold, the most frequent label on "
        f"{100 * easy.most:.1f} %; {100 * easy.sure:.1f} % of the examples right with p > 0.8",
        f"copies: {copies.repeated:,} examples repeat an earlier one, {copies.disputed:,} have one with another label",
    ]
    if test is not None:
        found.append(
            f"on {test.name} ({test.examples:,} examples, {test.shared:,} of them in the data): right on "
            f"{percent(test.accuracy, test.interval)}, the most frequent label on {100 * test.most:.1f} %"
        )
    return found


def differences_table(differences: Sequence[OnlyHere]) -> Any:
    """A rich table of what holds in one data set and not in another."""
    from rich.table import Table

    table = Table("what", "holds in", "there", "not in", "there", title="Found in one and not in the other")
    for one in differences:
        _add(table, (one.what, one.found_in, one.here, one.not_in, one.there))
    return table


def percent(share: float, interval: Interval) -> str:
    """A share with its interval."""
    return f"{100 * share:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def p_value(p: float) -> str:
    """An adjusted p as it is printed."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(_UNSEEN.sub("\ufffd", visible(text)))


def _strong(audit: Audit) -> Any:
    from rich.table import Table

    table = Table("feature", "explains of the labels", title="Single features that explain much")
    for one in audit.strong:
        _add(table, (one.name, f"{100 * one.explains:.1f} %"))
    return table


def _alone(audit: Audit) -> Any:
    from rich.table import Table

    table = Table("field alone", "right, out of fold", "most frequent label", "p", "", title="What a field gives away")
    for one in audit.alone:
        told = (one.field, percent(one.accuracy, one.interval), f"{100 * one.most:.1f} %", p_value(one.p), _mark(one))
        _add(table, told)
    return table


def _words(audit: Audit) -> Any:
    from rich.table import Table

    title = f"Words that give a label away: {len(audit.words):,} of {audit.looked_at:,} looked at, the surest first"
    table = Table("word", "field", "label", "texts", "of the label", "else", "log-odds", "p", title=title)
    for one in audit.words[:SHOWN]:
        shares = (f"{100 * one.share:.1f} %", f"{100 * one.base:.1f} %", f"{one.log_odds:.2f}")
        _add(table, (one.text, one.field, one.label, f"{one.count:,}", *shares, p_value(one.p)))
    return table


def _relations(audit: Audit) -> Any:
    from rich.table import Table

    heads = [f"mean: {label}" for label in audit.labels][:6]
    table = Table("what", "effect", "p", "", *map(_seen, heads), title="Overlap, length and negation")
    _add_measures(table, audit.relations)
    return table


def _forms(audit: Audit) -> Any:
    from rich.table import Table

    heads = [f"mean: {label}" for label in audit.labels][:6]
    table = Table("what", "effect", "p", "", *map(_seen, heads), title="How texts are written")
    _add_measures(table, audit.forms)
    return table


def _add_measures(table: Any, measures: Sequence[Relation]) -> None:
    for one in measures:
        means = [f"{mean:.2f}" for mean in one.means.values()][:6]
        _add(table, (one.name, f"{one.effect:.3f}", p_value(one.p), _mark(one), *means))


def _add(table: Any, cells: Sequence[str]) -> None:
    """A row of what comes from the data: no markup, and nothing that moves a cursor."""
    table.add_row(*map(_seen, cells))


def _seen(text: str) -> str:
    from rich.markup import escape

    return escape(_UNSEEN.sub("\ufffd", visible(text)))


def _mark(one: Any) -> str:
    return "gives labels away" if one.found else ""
