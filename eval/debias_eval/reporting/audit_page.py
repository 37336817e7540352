"""The page of an audit of data: which shortcuts it offers, in the style of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from debias_eval.reporting.report import environment, write_page

SHOWN = 100  # words of one data set


def write_audit(records: Mapping[str, Any], out: Path) -> Path:
    """One HTML page on what `debias audit --json` prints (it needs nothing but itself), written whole; returns `out`.

    InputError where `out` is a folder or cannot be written.
    """
    return write_page(out, "an HTML file", lambda: render_audit(records))


def render_audit(records: Mapping[str, Any]) -> str:
    """The page as text; everything that comes from the data is escaped."""
    pages = environment()
    pages.filters |= {"p_value": _p_value, "share": _share}
    return pages.get_template("audit.html.j2").render(shown=SHOWN, **records)


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"
