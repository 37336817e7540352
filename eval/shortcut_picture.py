"""Draw `shortcut.svg`, the picture on the first page: what a shortcut costs, from a study's table in BENCHMARKS.md.

`python eval/shortcut_picture.py` writes it anew. No figure stands in this file: all are read from that table.
"""

import re
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
TABLE = HERE.parent / "BENCHMARKS.md"
PICTURE = HERE / "shortcut.svg"

SECTION = "Planted SST-2"
# Arms of the study, and what they are called in the picture.
SHOWN = {
    "erm": "Plain fine-tuning",
    "artifacts": "Logit correction by what single features give away (no group labels)",
    "oracle": "Plain fine-tuning on data without the shortcut",
}
# Columns of the table, what a bar of each is called, and its colour (apart for the colour-blind, and in grey).
BARS = (("cue right", "shortcut right", "#7a9cc6"), ("cue wrong", "shortcut wrong", "#b3442c"))
WIDTH, LEFT, SCALE = 720, 132, 5.2  # SCALE: pixels of a percent
TOP, BAR, STEP = 66, 22, 92

Rows = list[tuple[str, dict[str, str]]]


def study_rows(page: str) -> Rows:
    """`(method, {column: text})` of the shown arms, from the first table under the study's heading."""
    section = re.split(r"^## ", page.partition(f"\n## {SECTION}")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip("| \n").split(" | ") for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip(" |") for cell in cells] for cells in lines]
    found = {cells[0].split("`")[1]: dict(zip(head[1:], cells[1:], strict=True)) for cells in rows}
    return [(name, found[arm]) for arm, name in SHOWN.items()]


def draw(rows: Rows) -> str:
    """The picture as SVG: two bars a method, from 0 to 100 percent."""
    height = TOP + STEP * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(20, 30, "Accuracy in percent, where the shortcut is right and where it is wrong", size=16, weight="bold"),
    ]
    for place, (method, figures) in enumerate(rows):
        parts += _method(method, figures, TOP + place * STEP)
    parts.append(
        _text(20, height - 14, f"MiniLM on SST-2 with a planted cue: means of {rows[0][1]['seeds']} seeds.", size=12)
    )
    return "\n".join([*parts, "</svg>", ""])


def _method(method: str, figures: dict[str, str], top: int) -> list[str]:
    parts = [_text(20, top, method, size=14, weight="bold")]
    for place, (column, label, colour) in enumerate(BARS):
        y, length = top + 10 + place * (BAR + 4), float(figures[column].split()[0]) * SCALE
        parts.append(_text(LEFT - 10, y + 16, label, size=12, anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(_text(LEFT + length + 8, y + 16, figures[column].split()[0], size=14))
    return parts


def _text(x: float, y: float, text: str, *, size: int, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="#222222">{escape(text)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(study_rows(TABLE.read_text(encoding="utf-8"))), encoding="utf-8")
