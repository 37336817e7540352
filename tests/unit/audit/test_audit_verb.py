"""`debias audit` from a person's file: columns guessed or asked for, errors in one line, a table, JSON and a page."""

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, command_line

from debias.audit.reading import Columns, read_dataset, read_like
from debias.errors import InputError
from debias_eval.reporting.audit_page import render_audit

pytest.importorskip("sklearn")
Row = Mapping[str, Any]


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


def mails(count: int = 200, told: float = 0.9) -> list[Row]:
    """Mails of which `hi` gives the class away, in a share of cases."""
    draw = np.random.default_rng(0)
    labels = [("ham", "spam")[int(draw.integers(2))] for _ in range(count)]
    shows = [one if draw.random() < told else ("ham", "spam")[int(draw.integers(2))] for one in labels]
    return [
        {"text": f"{'hi' if shown == 'ham' else 'buy'} <b>n{i % 40}</b>", "class": label}
        for i, (label, shown) in enumerate(zip(labels, shows, strict=True))
    ]


def written(file: Path, rows: Sequence[Row]) -> Path:
    with file.open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    return file


@pytest.mark.parametrize("name", ["mails.csv", "mails.tsv"])
def test_a_file_with_a_clear_header_needs_no_more(tmp_path: Path, debias: Command, name: str) -> None:
    said = debias("audit", written(tmp_path / name, mails()))
    assert said.code == 0, said.err
    for told in (
        "200 examples; ham",
        "Words that give a label away",
        "hi ",
        "buy ",
        'bias_model: {name: artifacts, allowed: ["buy"]}',
    ):
        assert told in said.out


def test_columns_are_guessed_as_init_guesses_them(tmp_path: Path, debias: Command) -> None:
    """No name says which is the label, its values do; what is printed is the command that `init` takes."""
    rows = [{"nr": i, "what they wrote": f"{row['text']} of these, all in all", "verdict": row["class"]} for i, row in
            enumerate(mails())]  # fmt: skip
    said = debias("audit", written(tmp_path / "my mails.csv", rows))
    assert said.code == 0, said.err
    (line,) = [one for one in said.out.splitlines() if "debias init" in one]
    words = shlex.split(line[line.index("debias init") :])
    columns = ["--text-field", "what they wrote", "--label-field", "verdict"]
    wanted = ["debias", "init", "--data", str(tmp_path / "my mails.csv"), *columns, "--model", "package:minilm"]
    wanted += ["--method", "erm"]  # the two lines below go into its file
    assert words == wanted
    assert debias(*words[1:], "-o", tmp_path / "run.yaml").code == 0
    text = (tmp_path / "my mails.csv").read_text().replace(", all", " all").replace(",", ";")
    (tmp_path / "their mails.csv").write_text(text)
    assert "(--delimiter)" in debias("audit", tmp_path / "their mails.csv").error
    said = debias("audit", tmp_path / "their mails.csv", "--delimiter", ";", "--no-quotes")
    (line,) = [one for one in said.out.splitlines() if "debias init" in one]
    words = shlex.split(line[line.index("debias init") :])
    assert words[4:7] == ["--delimiter", ";", "--no-quotes"]
    assert debias(*words[1:], "-o", tmp_path / "theirs.yaml").code == 0
    fair = debias("audit", written(tmp_path / "fair.csv", mails(told=0.0)))
    assert "debias init" not in fair.out  # nothing is to be corrected


def test_json_and_the_page_say_the_same(tmp_path: Path, debias: Command) -> None:
    page = tmp_path / "page.html"
    file, other = written(tmp_path / "mails.csv", mails()), written(tmp_path / "fair.csv", mails(told=0.0))
    said = debias("audit", file, other, "--test", other, "--json", "--html", page)
    records = json.loads(said.out)
    first, second = records["audits"]
    assert first["bias_model"] == {"name": "artifacts", "allowed": ["buy"]}
    assert second["bias_model"] is None
    assert first["alone"][0]["found"]
    assert first["test"]["examples"] == 200
    assert first["test"]["accuracy"] < 0.65
    assert {one["not_in"] for one in records["differences"]} == {str(other)}
    text = page.read_text()
    assert first["verdict"] in text
    assert "Found in one and not in the other" in text
    assert "nothing is to be corrected" in text
    assert "http://" not in text
    assert "https://" not in text


def test_what_comes_from_the_data_is_escaped() -> None:
    word = {"text": "<script>", "field": "f", "label": "<b>", "count": 5, "share": 1.0, "base": 0.5, "log_odds": 2.0}
    one = {
        **{"name": "<i>x", "examples": 9, "labels": {"<b>": 9}, "verdict": "<h2>", "settings": "# none"},
        **{"alone": [], "relations": [], "words": [{**word, "p": 0.0}], "looked_at": 1, "test": None},
        "easy": {"accuracy": 0.5, "interval": (0.4, 0.6), "most": 0.5, "sure": 0.0},
        "copies": {"repeated": 0, "disputed": 0},
    }
    page = render_audit({"audits": [one], "differences": []})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<i>x" not in page


def test_nothing_in_the_data_moves_a_cursor(tmp_path: Path, debias: Command) -> None:
    hostile = [{"text": f"[bold]\x1b[31m{('a', 'b')[i % 2]} n{i % 9}", "label": f"{i % 2}\x1b[2J"} for i in range(80)]
    said = debias("audit", written(tmp_path / "x.csv", hostile))
    assert said.code == 0, said.err
    assert "\x1b[31m" not in said.out
    assert "\x1b[2J" not in said.out
    assert "0\ufffd[2J" in said.out


def test_columns_that_were_named(tmp_path: Path) -> None:
    rows = [{"a": f"x {i}", "b": f"y {i}", "kind": i % 2, "id": i} for i in range(30)]
    file = str(written(tmp_path / "odd.csv", rows))
    data = read_dataset(file, Columns(("b", "a"), "kind"))
    assert (data.fields, data.labels, data.examples[1].texts) == (("b", "a"), ("0", "1"), ("y 1", "x 1"))
    assert len(read_dataset(file, Columns(("a",), "kind"), limit=10).examples) == 10
    assert read_like(data, file).labels == data.labels


@pytest.mark.parametrize(
    ("header", "fields", "label"),
    [
        (("id", "Question1", "Question2", "is_duplicate"), ("Question1", "Question2"), "is_duplicate"),
        (("premise", "hypothesis", "gold_label", "genre"), ("premise", "hypothesis"), "gold_label"),
        (("utterance", "label"), ("utterance",), "label"),
    ],
)
def test_a_clear_header_is_understood(tmp_path: Path, header: Sequence[str], fields: Any, label: str) -> None:
    rows = [dict.fromkeys(header, f"t{i}") | {label: i % 2} for i in range(4)]
    data = read_dataset(str(written(tmp_path / "x.csv", rows)), Columns())
    assert (data.fields, data.label_field) == (fields, label)


def test_rows_without_a_gold_label_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": ("a", "b", "-", "-1")[i % 4]} for i in range(8)]
    data = read_dataset(str(written(tmp_path / "x.csv", rows)), Columns())
    assert (data.labels, len(data.examples)) == (("a", "b"), 4)


def test_sources_that_configs_accept() -> None:
    data = read_dataset("generated", Columns(), limit=40)
    assert (data.fields, len(data.examples), len(data.labels)) == (("premise", "hypothesis"), 40, 3)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"text": "x", "label": "a"}], Columns(("txt",)), "no column 'txt' (--text-field); did you mean text?"),
        ([{"text": "x", "label": "a"}], Columns((), "lable"), "no column 'lable' (--label-field); did you mean label?"),
        ([{"text": "x", "label": "a"}] * 3, Columns(), "label is 'a' in every row: with fewer than two labels"),
        (
            [{"text": "x", "score": 1}],
            Columns(),
            "which column is the label? the columns are text, score; name it with",
        ),
        ([{"text": "x", "label": 1, "class": 2}], Columns(), "label and class may be it; name it with --label-field"),
        ([{"a": "x", "b": "y", "label": 1}], Columns(), "which columns are text? the columns are a, b, label; name"),
        ([{"text": f"{i}", "label": i / 7} for i in range(120)], Columns(), "label has 120 values ("),
        ([{"text": "", "label": "a"}, {"text": "x", "label": "b"}], Columns(), "row 1: text is empty"),
    ],
)
def test_errors_for_people(tmp_path: Path, rows: Sequence[Row], columns: Columns, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_dataset(str(written(tmp_path / "x.csv", rows)), columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of JSON too, where an empty cell is null or not a number: no `nan` stands among the labels."""
    labels = ["a", "b", "", None, " ", float("nan")] * 4
    rows = [{"text": f"text {place}", "label": label} for place, label in enumerate(labels)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_dataset(str(tmp_path / "x.jsonl"), Columns())
    assert (data.labels, len(data.examples)) == (("a", "b"), 8)
    (line,) = data.about_labels
    assert "16 of 24 rows (66.7 %) are empty" in line


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_an_empty_file(tmp_path: Path, debias: Command, content: str) -> None:
    (tmp_path / "empty.csv").write_text(content)
    assert "it is empty, expected rows" in debias("audit", tmp_path / "empty.csv").error
    assert "no such file" in debias("audit", tmp_path / "none.csv").error


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path, debias: Command) -> None:
    said = debias("audit", written(tmp_path / "mails.csv", mails(60)), "--html", tmp_path)
    assert "is a folder, expected the name of an HTML file" in said.error


def test_labels_of_a_test_set_are_those_of_the_data(tmp_path: Path, debias: Command) -> None:
    other = written(tmp_path / "other.csv", [{"text": "x", "class": "eggs"}])
    said = debias("audit", written(tmp_path / "mails.csv", mails(60)), "--test", other)
    assert "row 1: label 'eggs' is not in labels ['ham', 'spam']" in said.error


def test_pictures_have_no_words() -> None:
    with pytest.raises(InputError, match="holds pictures, and an audit reads words"):
        read_dataset("train-images-idx3-ubyte.gz", Columns())
