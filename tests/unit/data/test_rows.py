"""As many rows as there are in the file: quotes, delimiters, blank cells, long lines, shards, links, workbooks.

Training and the evaluator read each file here, and have to agree.
"""

import csv
import gzip
import io
import json
import os
import sys
import types

import pytest
import yaml

from debias.config.data import DataConfig, DataSource
from debias.config.places import resolve_paths
from debias.config.reading import parse
from debias.config.run import RunConfig
from debias.data import load_examples, opening
from debias.data.files import read_rows
from debias.data.sources import unlabelled
from debias.errors import InputError
from debias_eval.reading.examples import all_examples
from debias_eval.reading.suite import load_suite

LABELS = ["no", "yes"]
QUOTE = '"'


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def both(folder, source, **settings):
    """What training and the evaluator read of a source in the folder: texts, labels, groups, ids."""
    source = {"source": source} if isinstance(source, str) else source
    rules = {"text_fields": ["text"], "labels": LABELS, **settings}
    data = DataConfig.model_validate({"train": source, **rules})
    trained = load_examples(data.train, data, base=folder)
    suite = {"name": "mine", "version": 1, "description": "d", "licence": "l", "task": "other"}
    (folder / "suite.yaml").write_text(yaml.safe_dump({**suite, "source": source, **rules}))
    judged = all_examples(load_suite(folder / "suite.yaml"))
    seen, also = ([(one.texts[0], LABELS[one.label], one.group) for one in found] for found in (trained, judged))
    assert seen == also
    return seen


def refusal(folder, source, **settings):
    """The one line of both."""
    lines = []
    for reader in (0, 1):
        with pytest.raises(InputError) as caught:
            only(reader, folder, source, **settings)
        lines.append(str(caught.value))
    assert lines[0].replace(str(folder) + "/", "") in lines[1].replace(str(folder.resolve()) + "/", "")
    assert "\n" not in lines[0]
    return lines[0]


def only(reader, folder, source, **settings):
    """One reader alone."""
    source = {"source": source} if isinstance(source, str) else source
    rules = {"text_fields": ["text"], "labels": LABELS, **settings}
    if reader == 0:
        data = DataConfig.model_validate({"train": source, **rules})
        return load_examples(data.train, data, base=folder)
    suite = {"name": "mine", "version": 1, "description": "d", "licence": "l", "task": "other"}
    (folder / "suite.yaml").write_text(yaml.safe_dump({**suite, "source": source, **rules}))
    return all_examples(load_suite(folder / "suite.yaml"))


# --- quotes -----------------------------------------------------------------------------------------------------------

# What annotators typed: quotes that open a sentence, end it, stand alone, or are none of a field's.
TYPED = ['"stop', 'he said "no"', 'no"', '"', '""', 'a "b" c', '"fine" she said', "plain", 'end"', '"again']


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"], ids=["tab", "comma", "semicolon"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_lone_quotes_take_no_row(tmp_path, delimiter, place):
    names = ["id", "label"]
    names.insert(place, "text")
    lines = [delimiter.join(names)]
    for number, text in enumerate(TYPED):
        cells = [str(number), LABELS[number % 2]]
        cells.insert(place, text)
        lines.append(delimiter.join(cells))
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    found = both(tmp_path, {"source": "rows.tsv", "delimiter": delimiter})
    assert [text for text, _, _ in found] == TYPED


def test_a_tab_may_be_written_as_the_hint_writes_it():
    """`--delimiter "\\t"` comes from a shell as two characters."""
    assert DataSource(source="rows.csv", delimiter=r"\t").delimiter == "\t"


@pytest.mark.parametrize("delimiter", ["\t", ","], ids=["tab", "comma"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quoted_fields_are_held_together(tmp_path, delimiter, quoting):
    """What spreadsheets and pandas write, with lines and delimiters in it."""
    texts = ['a "b"', f"x{delimiter}y", "two\nlines", f"three{delimiter}\nlines, 1\n2", '"all"', "plain"]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting)
    writer.writerows([["label", "text"], *([LABELS[i % 2], text] for i, text in enumerate(texts))])
    (tmp_path / "rows.csv").write_text(out.getvalue(), newline="")
    found = both(tmp_path, {"source": "rows.csv", "delimiter": delimiter})
    assert [text for text, _, _ in found] == texts


def test_rows_in_a_field_are_an_error_with_file_and_row(tmp_path):
    """One quoted comma makes quotes mean something; a lone one would then take two rows with it."""
    rows = ["id,text,label", '0,"a, b",yes', '1,"he left,no', "2,she came,yes", '3,they"",no', '4,so ran",yes']
    rows[4] = "3,they ran,no"
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    said = refusal(tmp_path, "rows.csv")
    assert said.endswith("set quotes: false beside source (--no-quotes)")
    assert "rows.csv: row 2: a quote opens in 'text' and closes 3 line(s) below, so that 4 rows would be" in said
    # Read as characters, the row with the quoted comma does not fit.
    assert "row 1: number of fields differs" in refusal(tmp_path, {"source": "rows.csv", "quotes": False})


def test_a_text_of_several_lines_is_no_row(tmp_path):
    """Lines with as many commas as a row has, and no label where a row has one."""
    (tmp_path / "rows.csv").write_text('text,label\n"good, yes\nbut dear, very\nand late",yes\n"a, b",no\n')
    assert [text for text, _, _ in both(tmp_path, "rows.csv")] == ["good, yes\nbut dear, very\nand late", "a, b"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize(
    ("lines", "texts", "told"),
    [
        (
            '"good film",yes\n"great" movie,yes\n"bad film",no\n',
            ['"good film"', '"great" movie', '"bad film"'],
            "line 3",
        ),
        ('"good film",yes\n"great" movie,yes\n"oh" well,no\n', ['"good film"', '"great" movie', '"oh" well'], None),
        ('"good,yes\nfilm",no\n', ['"good', 'film"'], "1 texts of several lines"),
        ('"good,yes\nfilm,no\n', ['"good', "film"], None),
    ],
)
def test_quotes_that_may_be_meant_to_hold_fields_are_said(tmp_path, caplog, lines, texts, told, delimiter):
    """They are read as characters, and one lone quote among many that are closed decides that for all."""
    (tmp_path / "rows.csv").write_text(f"text,label\n{lines}".replace(",", delimiter))
    assert [text for text, _, _ in both(tmp_path, {"source": "rows.csv", "delimiter": delimiter})] == texts
    assert (told in caplog.text and "quotes: true or false" in caplog.text) if told else "quote" not in caplog.text
    (tmp_path / "rows.csv").rename(tmp_path / "rows.tsv")
    caplog.clear()
    told_so = {"source": "rows.tsv", "delimiter": delimiter, "quotes": False}
    assert [text for text, _, _ in both(tmp_path, told_so)] == texts
    assert caplog.text == ""


def test_without_a_label_numbers_show_what_is_a_row(tmp_path):
    """Rows to be answered: a line of a text has no number where rows have an id; one that may be a row is asked for."""
    data = DataConfig(train=DataSource(source="x"), text_fields=("text",), labels=tuple(LABELS))

    def read(lines, **told):
        (tmp_path / "ask.csv").write_text(lines)
        source = DataSource(source=str(tmp_path / "ask.csv"), **told)
        return [one.texts[0] for _, one in unlabelled(source, data)]

    sound = 'id,text\n1,"Dear Sir,"\n2,"Hello there\nThanks, John"\n3,fine\n'
    assert read(sound) == ["Dear Sir,", "Hello there\nThanks, John", "fine"]
    assert read('text,nr\n"a, b",1\n"Hello, John\nbye",2\n') == ["a, b", "Hello, John\nbye"]
    lone = 'id,text\n0,"a, b"\n1,"he left\n2,she came\n3,so ran"\n'
    for swallowed, texts in (
        (lone, ["a, b", "he left\n2,she came\n3,so ran"]),
        (sound.replace("1,", "a,").replace("2,", "b,"), ["Dear Sir,", "Hello there\nThanks, John", "fine"]),
    ):
        with pytest.raises(InputError, match=r"row 2: a quote opens in 'text' .* set quotes: true \(--quotes\); else"):
            read(swallowed)
        assert read(swallowed, quotes=True) == texts


def test_what_looks_like_rows_is_read_as_one_text_where_quotes_are_told_and_said(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text('text,label\n"so it says, yes\nand ends",no\n"a, b",yes\n')
    assert "set quotes: true (--quotes)" in refusal(tmp_path, "rows.csv")
    found = both(tmp_path, {"source": "rows.csv", "quotes": True})
    assert [text for text, _, _ in found] == ["so it says, yes\nand ends", "a, b"]
    assert "row 1: a quote opens in 'text' and closes 1 line(s) below, which look like rows" in caplog.text


def test_quotes_can_be_told(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"whole"\tyes\n"too"\tno\n')
    assert [text for text, _, _ in both(tmp_path, "rows.tsv")] == ["whole", "too"]
    told = {"source": "rows.tsv", "quotes": False}
    assert [text for text, _, _ in both(tmp_path, told)] == ['"whole"', '"too"']


def test_a_quote_that_never_closes(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\n"a, b",yes\n"never,no\n')
    assert "rows.csv: row 2: broken CSV: unexpected end of data; if quotes are characters" in refusal(
        tmp_path, "rows.csv"
    )


@pytest.mark.parametrize("delimiter", [None, ";"])
@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ('"first line\nsecond line"\nplain\n', ["first line\nsecond line", "plain"]),  # as pandas writes it
        ('"a ""word"" of\ntwo lines"\n', ['a "word" of\ntwo lines']),
        ('"Hello" he said\nplain\n', ['"Hello" he said', "plain"]),  # broken with quotes: characters
        ('never "closed\n"so it goes\n', ['never "closed', '"so it goes']),
        ('"whole"\nplain\n', ["whole", "plain"]),
    ],
)
def test_texts_of_several_lines_in_a_file_of_one_column(tmp_path, caplog, lines, texts, delimiter):
    """Every line has one field, whatever its quotes mean: what the file is as a whole decides."""
    (tmp_path / "rows.csv").write_text(f"text\n{lines}")
    source = DataSource(source=str(tmp_path / "rows.csv"), delimiter=delimiter)
    data = DataConfig.model_validate({"train": source, "text_fields": ["text"]})
    assert [example.texts for _, example in unlabelled(source, data)] == [(text,) for text in texts]
    assert ("texts of several lines in quotes" in caplog.text) == any("\n" in text for text in texts)
    # Under the other name each line is a row.
    (tmp_path / "rows.csv").rename(tmp_path / "rows.tsv")
    lone = DataSource(source=str(tmp_path / "rows.tsv"))
    if texts != ["whole", "plain"]:
        assert [example.texts[0] for _, example in unlabelled(lone, data)] == lines.splitlines()


# --- headers, cells, delimiters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl"])
def test_a_column_that_is_there_twice(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name.endswith("parquet"):
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["yes"]), pa.array(["no"])], ["text", "label", "label"])
        pq.write_table(table, tmp_path / name)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text('{"text": "a", "label": "yes", "label": "no"}\n')
    else:
        (tmp_path / name).write_text("text,label,label\na,yes,no\n".replace(",", "\t" if "tsv" in name else ","))
    assert "'label' is there twice" in refusal(tmp_path, name)


def test_columns_without_a_name_do_no_harm(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label,,\na,yes,,\nb,no,,x\n")
    assert len(both(tmp_path, "rows.csv")) == 2


@pytest.mark.parametrize("blank", ["", " ", "\u00a0"])
def test_a_blank_cell_is_no_group_no_cluster_and_no_id(tmp_path, blank):
    rows = [f"{text},{label},{kind},{kind},{kind}" for text, label, kind in ("ayg", "bn ", "cy ", "dng")]
    text = "\n".join(["text,label,kind,of,id", *rows]).replace(" ", blank)
    (tmp_path / "rows.csv").write_text(text)
    assert [group for _, _, group in both(tmp_path, "rows.csv", group_field="kind", label_map=MAP)] == [
        "g", None, None, "g"
    ]  # fmt: skip
    clusters = [one.cluster for one in only(1, tmp_path, "rows.csv", cluster={"field": "of"}, label_map=MAP)]
    assert clusters[0] == clusters[3]
    assert len(set(clusters)) == 3
    assert [one.id for one in only(0, tmp_path, "rows.csv", label_map=MAP)] == ["g", "train-2", "train-3", "g"]


MAP = {"y": "yes", "n": "no"}


def test_a_number_that_is_none_is_no_group_either(tmp_path):
    """What pandas writes for an empty cell of a column of numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"text": ["a", "b"], "label": LABELS, "kind": [float("nan"), 1.0]}), tmp_path / "rows.parquet"
    )
    assert [group for _, _, group in both(tmp_path, "rows.parquet", group_field="kind")] == [None, "1.0"]


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_label_is_none_but_where_label_map_has_it(tmp_path, blank):
    (tmp_path / "rows.csv").write_text(f"text,label\na,yes\nb,{blank}\n")
    assert [label for _, label, _ in both(tmp_path, "rows.csv")] == ["yes"]
    assert both(tmp_path, "rows.csv", label_map={blank: "no"})[1][1] == "no"


@pytest.mark.parametrize(("name", "null"), [("None", None), ("nan", float("nan"))])
def test_null_is_no_label_that_is_called_so(tmp_path, name, null):
    """Where a class is called "None" or "nan", rows that say nothing are not of it."""
    rows = [{"text": f"{n}", "label": value} for n, value in enumerate([name, "yes", null, "  "])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for reader in (0, 1):
        read = only(reader, tmp_path, "rows.jsonl", labels=[name, "yes"])
        assert [(one.texts[0], one.label) for one in read] == [("0", 0), ("1", 1)]
        read = only(reader, tmp_path, "rows.jsonl", labels=["no", "yes", "  "], label_map={name: "no"})
        assert [one.label for one in read] == [0, 1, 0, 2]


def test_null_is_no_value_that_a_suite_keeps(tmp_path):
    rows = [{"text": f"{n}", "label": "yes", "part": part} for n, part in enumerate(["None", None, "", "b"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for values, kept in ((["None"], ["0"]), ([""], ["1", "2"])):
        read = only(1, tmp_path, "rows.jsonl", keep={"field": "part", "values": values})
        assert [one.texts[0] for one in read] == kept


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_another_delimiter(tmp_path, delimiter):
    (tmp_path / "rows.csv").write_text(
        "text,label\na, b,yes\nc,no\n".replace(",", delimiter).replace(f"a{delimiter}", "a,")
    )
    said = refusal(tmp_path, "rows.csv")
    assert "rows.csv: header: one column" in said
    assert "set delimiter: " in said
    assert [text for text, _, _ in both(tmp_path, {"source": "rows.csv", "delimiter": delimiter})] == ["a, b", "c"]


@pytest.mark.parametrize(("key", "value"), [("delimiter", ";"), ("quotes", False), ("quotes", True)])
def test_a_layout_goes_with_its_kind_of_file(tmp_path, key, value):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    assert f"{key} is {value!r}, which goes with .csv and .tsv; remove it" in refusal(
        tmp_path, {"source": "rows.jsonl", key: value}
    )
    with pytest.raises(InputError, match=f"generated: {key} is"):
        load_examples(DataSource(source="generated", **{key: value}), DataConfig(train="generated"))


@pytest.mark.parametrize("value", ["", "ab", '"', "\n"])
def test_a_delimiter_is_one_character(value):
    with pytest.raises(InputError, match=r"source\.delimiter|delimiter: expected one character"):
        parse(DataSource, {"source": "x.csv", "delimiter": value}, "source")


# --- long -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_a_long_text_is_read_whole(tmp_path, name):
    text = "word, " * 40_000
    out = io.StringIO()
    if name.endswith("jsonl"):
        out.write(json.dumps({"text": text, "label": "yes"}))
    else:
        csv.writer(out, delimiter="\t" if "tsv" in name else ",").writerows([["text", "label"], [text, "yes"]])
    (tmp_path / name).write_text(out.getvalue())
    assert both(tmp_path, name)[0][0] == text


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv.gz", "rows.jsonl", "rows.jsonl.zst"])
def test_a_line_without_end_is_refused_without_being_held(tmp_path, name, monkeypatch):
    monkeypatch.setattr(opening, "LONGEST", 1000)
    content = (shard("a") if "json" in name else b"text,label\n") + b"x" * 200_000
    (tmp_path / name).write_bytes(packed(name, content))
    said = refusal(tmp_path, name)
    assert said.endswith("line 2 has more than 1,000 characters; no row is that long")


def packed(name, content):
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        import pyarrow

        return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content


# --- shards, packed files, links, pipes -------------------------------------------------------------------------------


def shard(texts):
    return "".join(json.dumps({"text": text, "label": LABELS[0]}) + "\n" for text in texts).encode()


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "d [1]").mkdir()
    folder = tmp_path / "d [1]"
    for name, texts in (("part-2.jsonl.gz", "de"), ("part-1.jsonl", "abc"), ("part-3.jsonl.zst", "f")):
        (folder / name).write_bytes(packed(name, shard(texts)))
    (folder / "part-9.csv").write_text("text,label\ng,yes\n")
    assert "".join(text for text, _, _ in both(folder, "part-*")) == "abcdefg"
    assert "".join(text for text, _, _ in both(folder, "part-[13].*")) == "abcf"
    ids = [one.id for one in only(0, folder, "part-*.jsonl*")]
    assert ids == [f"train-{number}" for number in range(1, 7)]


def test_a_bad_row_of_a_shard_is_named_where_it_is(tmp_path):
    (tmp_path / "a1.jsonl").write_bytes(b"\n" + shard("ab") + b"\n")
    (tmp_path / "a2.jsonl").write_bytes(shard("c") + b'{"text": "d"}\n')
    assert refusal(tmp_path, "a?.jsonl").startswith(f"{tmp_path}/a2.jsonl: row 2: no column 'label'")
    (tmp_path / "a1.jsonl").write_bytes(shard("ab") + b"broken\n")
    assert "a1.jsonl: row 3: broken JSON" in refusal(tmp_path, "a?.jsonl")


def test_a_pattern_that_names_nothing(tmp_path):
    with pytest.raises(InputError, match=r"part-\*\.jsonl: no file of that pattern; looked for"):
        only(0, tmp_path, "part-*.jsonl")


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    (tmp_path / "rows[1].jsonl").write_bytes(shard("ab"))
    (tmp_path / "rows1.jsonl").write_bytes(shard("c"))
    assert len(both(tmp_path, "rows[1].jsonl")) == 2


def test_a_run_keeps_a_pattern_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "[x]").mkdir()
    (tmp_path / "[x]" / "p1.jsonl").write_bytes(shard("a"))
    config = RunConfig.model_validate({"model": "m", "output_dir": "o", "data": {"train": "p*.jsonl"}})
    found = resolve_paths(config, tmp_path / "[x]").data
    monkeypatch.chdir("/")
    data = found.model_copy(update={"text_fields": ("text",), "labels": ("no", "yes")})
    assert len(load_examples(found.train, data)) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.csv.gz"])
def test_a_link_is_read_by_its_own_name(tmp_path, name):
    """Stores of files (DVC, git-annex, the hub's cache) have names without suffixes."""
    store = tmp_path / "objects"
    store.mkdir()
    content = shard("ab") if name.endswith("jsonl") else b"text,label\na,no\nb,no\n"
    (store / "ab12cdef").write_bytes(packed(name, content))
    (tmp_path / name).symlink_to(store / "ab12cdef")
    assert len(both(tmp_path, name)) == 2
    config = RunConfig.model_validate({"model": "m", "output_dir": "o", "data": {"train": name}})
    assert resolve_paths(config, tmp_path).data.train.source == str(tmp_path / name)


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe.csv", "pipe.parquet", "pipe.tsv.gz", "pipe.jsonl.zst"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert refusal(tmp_path, name).endswith("is a pipe, expected a regular file")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_zst(tmp_path, damage):
    content = packed("x.zst", shard("abcdef" * 500))
    (tmp_path / "rows.jsonl.zst").write_bytes(content[: len(content) // 2] if damage == "cut" else b"plain text")
    assert "rows.jsonl.zst: cannot be read: " in refusal(tmp_path, "rows.jsonl.zst")


def test_a_number_of_thousands_of_digits_names_its_row(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(shard("a") + b'{"text": ' + b"1" * 5000 + b"}\n")
    assert "row 2: broken JSON: Exceeds the limit" in refusal(tmp_path, "rows.jsonl")


# --- workbooks --------------------------------------------------------------------------------------------------------


class Sheet:
    """As openpyxl's, whose stored size is wrong until it is reset."""

    def __init__(self, rows):
        self.rows, self.size = rows, 1

    def reset_dimensions(self):
        self.size = None

    def iter_rows(self, values_only):
        assert values_only
        return iter(self.rows[: self.size])


@pytest.fixture
def books(monkeypatch):
    """openpyxl as far as it is used here: sheets by name, of which a test says the rows."""
    sheets = {}

    class Book(dict):
        @property
        def sheetnames(self):
            return list(self)

    def load_workbook(file, read_only, data_only):
        assert (read_only, data_only) == (True, True)
        if file.read() != b"a book":
            raise KeyError("no workbook part")
        return Book(sheets)

    module = types.ModuleType("openpyxl")
    module.load_workbook = load_workbook
    monkeypatch.setitem(sys.modules, "openpyxl", module)
    return sheets


def test_a_workbook(tmp_path, books):
    books["one"] = Sheet([("text", "label", None), ("a", "yes", None), (None, None, None), ("b", "no", None)])
    (tmp_path / "rows.xlsx").write_bytes(b"a book")
    assert [text for text, _, _ in both(tmp_path, "rows.xlsx")] == ["a", "b"]
    assert [number for number, _ in read_rows(tmp_path / "rows.xlsx")] == [1, 3]
    books["two"] = Sheet([("text", "label"), ("c", "yes")])
    assert "has the sheets one, two; say which with name" in refusal(tmp_path, "rows.xlsx")
    assert [text for text, _, _ in both(tmp_path, {"source": "rows.xlsx", "name": "two"})] == ["c"]
    assert "name is 'three', its sheets are one, two" in refusal(tmp_path, {"source": "rows.xlsx", "name": "three"})
    books["two"] = Sheet([("text", "label"), ("c", "yes", "x")])
    said = refusal(tmp_path, {"source": "rows.xlsx", "name": "two"})
    assert "row 1: a value in a column that the header does not name" in said
    (tmp_path / "rows.xlsx").write_bytes(b"no book")
    assert "rows.xlsx: is no workbook that can be read: KeyError: 'no workbook part'" in refusal(tmp_path, "rows.xlsx")


def test_a_workbook_needs_openpyxl(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "rows.xlsx").write_bytes(b"a book")
    assert refusal(tmp_path, "rows.xlsx").endswith("reading .xlsx needs openpyxl: pip install 'debias[excel]'")
