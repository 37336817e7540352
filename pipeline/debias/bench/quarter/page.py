"""The page of a session, from what its parts wrote down."""

from collections.abc import Iterator, Mapping
from typing import Any

TITLES = {
    "gradients": "Both gradients from one backward pass",
    "combination": "The combination",
    "large": "Qwen3-8B's shape in nf4",
    "engines": "DeepSpeed, and fp16 with a dynamic loss scale",
    "kernels": "Attention kernels, packed rows, compiled layers",
    "testbeds": "Testbeds",
}


def page_of(found: Mapping[str, Any]) -> str:
    """Markdown: for each part what was measured, what fell short, and what there was no time for."""
    lines = ["# A quarter of an hour on one GPU", "", _summary(found), ""]
    first = next(iter(found.values()))
    if "versions" in first:
        lines += [", ".join(f"{name} {version}" for name, version in first["versions"].items()), ""]
    for name, part in found.items():
        lines += [f"## {TITLES[name]}", "", *_part(part), ""]
    return "\n".join(lines)


def verdict(item: Mapping[str, Any]) -> str:
    """One word: error, not run, ok, short (of its bar), or measured."""
    if "error" in item:
        return "error"
    if "not_run" in item:
        return "not run"
    return "measured" if "ok" not in item else "ok" if item["ok"] else "short"


def _summary(found: Mapping[str, Any]) -> str:
    words = [verdict(item) for part in found.values() for item in part["items"].values()]
    counts = {word: words.count(word) for word in ("ok", "short", "error", "not run", "measured")}
    device = next((part["device"] for part in found.values() if "device" in part), "?")
    where = "a rehearsal on a CPU, tiny sizes" if device == "cpu" else device
    return f"On {where}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count) + "."


def _part(part: Mapping[str, Any]) -> Iterator[str]:
    if "took" in part:
        yield f"{part['took']:.0f} s of {part['budget']:.0f} s."
        yield ""
    if "ended" in part:
        yield f"**Cut short**: {part['ended']}."
        yield ""
    if part["items"]:
        yield "| item | verdict | found | s |"
        yield "|---|---|---|--:|"
    for title, item in part["items"].items():
        values = {key: value for key, value in item.items() if key not in ("ok", "seconds")}
        beside = f"; left out: {item['left_out']}" if "left_out" in item else ""
        said = f"see below{beside}" if _rows(item) else "; ".join(f"{key} {value}" for key, value in _flat(values))
        said = said.replace("|", "/").replace("\n", " ")
        yield f"| {title} | {verdict(item)} | {said} | {item.get('seconds', 0):.1f} |"
    for title, item in part["items"].items():
        if rows := _rows(item):
            yield from ("", f"{title}:", "", *_table(rows))


def _rows(item: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured of several things alike: by the name of each."""
    found = {name: value for name, value in item.items() if isinstance(value, Mapping)}
    kinds = {tuple(value) for value in found.values()}
    return found if len(found) > 1 and len(kinds) == 1 else {}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    heads = list(next(iter(rows.values())))
    yield "| | " + " | ".join(heads) + " |"
    yield "|---|" + "--:|" * len(heads)
    for name, row in rows.items():
        yield f"| {name} | " + " | ".join(value for _, value in _flat(row)) + " |"


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
