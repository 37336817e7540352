"""`debias init`: a YAML file that trains, from the first rows of somebody's data; what is in doubt is asked for."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, command_line
from tiny_runs import save_bert, save_llama

from debias.building.examples import training_examples
from debias.config.reading import load_config
from debias.data import generate, load_examples
from debias.errors import InputError
from debias.init.writing import Wanted, write_first

MODEL = ("--model", "package:minilm")


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return command_line(monkeypatch, capsys)


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def pairs(number: int = 24, **names: str) -> list[dict[str, Any]]:
    """Generated pairs; `names`: what the columns are called otherwise."""
    keys = ("premise", "hypothesis", "label")
    return [{names.get(key, key): row[key] for key in keys} for row in generate("train", number, 2)]


REVIEWS = [
    {
        "nr": i,
        "what they wrote": f"number {i} of these was, all in all, as I like it",
        "stars": i % 3,
        "shop": "ab"[i % 2],
    }
    for i in range(30)
]


def test_a_file_whose_header_leaves_no_doubt(debias: Command, tmp_path: Path) -> None:
    table(tmp_path / "my.csv", [{**row, "genre": "ab"[i % 2], "id": i} for i, row in enumerate(pairs())])
    said = debias("init", "--data", "my.csv", *MODEL, "--out", "mine.yaml")
    assert (said.code, said.out) == (0, "mine.yaml\n")
    data = load_config(tmp_path / "mine.yaml").data
    assert (data.train.source, data.text_fields, data.label_field) == ("my.csv", ("premise", "hypothesis"), "label")
    assert (data.labels, data.id_field) == (("contradiction", "entailment", "neutral"), "id")
    assert data.group_field == "genre"
    text = (tmp_path / "mine.yaml").read_text()
    assert text.count("  # ") >= 6
    assert "bias_model: {name: artifacts}  # " in text
    assert "what occurs in all 24 rows" in text


@pytest.mark.parametrize(
    ("columns", "found"),
    [({"id": 1}, "id"), ({"pairID": 1}, "pairID"), ({"id": 0}, None), ({"uid": 1, "idx": 1}, None), ({"nr": 1}, None)],
)
def test_the_column_that_names_a_row(
    columns: dict[str, int], found: str | None, debias: Command, tmp_path: Path
) -> None:
    """One that is called so, and is another in each row (here: i, or 0 everywhere)."""
    rows = [{**row, **{name: i * step for name, step in columns.items()}} for i, row in enumerate(pairs())]
    table(tmp_path / "my.csv", rows)
    assert debias("init", "--data", "my.csv", *MODEL).code == 0
    assert load_config(tmp_path / "run.yaml").data.id_field == found


def test_columns_are_told_by_what_is_in_them(debias: Command, tmp_path: Path) -> None:
    """No name says anything: two columns have a few short values, and one is named as the label."""
    table(tmp_path / "r.csv", REVIEWS)
    assert "which column is the label?" in debias("init", "--data", "r.csv", *MODEL).error
    table(tmp_path / "s.csv", [{k: v for k, v in row.items() if k != "shop"} for row in REVIEWS])
    for words in (("r.csv", "--label-field", "stars"), ("s.csv",)):
        out = tmp_path / "of" / f"{words[0]}.yaml"
        assert debias("init", "--data", *words, *MODEL, "--out", out).code == 0
        config = load_config(out)
        assert config.data.text_fields == ("what they wrote",)
        assert (config.data.label_field, config.data.labels) == ("stars", ("0", "1", "2"))
        assert (config.data.id_field, config.data.group_field) == (None, None)
        assert config.data.train.source == str(tmp_path / words[0])  # the YAML lies elsewhere


def test_names_that_yaml_would_read_otherwise(debias: Command, tmp_path: Path) -> None:
    rows = [
        {"no": f"it is # not: so {i} of them, {{or}} 'so'", "label": ["yes", "no", "1.0", "a: b", "ü"][i % 5]}
        for i in range(20)
    ]
    table(tmp_path / "odd: #1.csv", rows)
    for head in ("classification", "causal_lm"):
        assert debias("init", "--data", "odd: #1.csv", *MODEL, "--head", head, "--out", f"{head}.yaml").code == 0
        config = load_config(tmp_path / f"{head}.yaml")
        assert (config.data.train.source, config.data.text_fields) == ("odd: #1.csv", ("no",))
        assert config.data.labels == ("1.0", "a: b", "no", "yes", "ü")
    assert config.prompt is not None
    assert config.prompt.template == "no: {no}\nLabel:"
    assert config.prompt.verbalizers["a: b"] == " a: b"
    assert '  template: "no: {no}\\nLabel:"\n' in (tmp_path / "causal_lm.yaml").read_text()


def test_what_is_refused_in_one_line(debias: Command, tmp_path: Path) -> None:
    table(tmp_path / "my.csv", pairs())
    (tmp_path / "there.yaml").write_text("mine")
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.csv").write_text("premise,hypothesis,label\n")
    table(tmp_path / "one.csv", [{"text": f"word {i}", "label": "same"} for i in range(5)])
    table(tmp_path / "dotted.csv", [{"a.b": "some text", "label": i % 2} for i in range(5)])
    given = ("--data", "my.csv", *MODEL)
    wanted = {
        MODEL: "--data is missing",
        ("--data", "my.csv"): "--model is missing",
        ("--data", "gone.csv", *MODEL): "no such file",
        ("--data", "empty.csv", *MODEL): "no rows",
        ("--data", "one.csv", *MODEL): "is 'same' in every row",
        ("--data", "dotted.csv", *MODEL, "--head", "causal_lm"): "{a.b} would look inside of a text",
        ("--data", "t10k-images-idx3-ubyte", *MODEL): "holds pictures",
        (*given, "--head", "causal"): "--head is 'causal'",
        (*given, "--text-field", "premis"): "no column 'premis'",
        (*given, "--group-field", "g"): "--group-field: no column 'g'",
        (*given, "--text-field", "label"): "'label' is the label",
        (*given, "--method", "egde"): "edge",
        (*given, "--out", "there.yaml"): "is there already",
        (*given, "--out", "dangling.yaml"): "is there already",
    }
    before = sorted(tmp_path.iterdir())
    for words, line in wanted.items():
        assert line in debias("init", *words).error, words
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.yaml").read_text() == "mine"


@pytest.mark.parametrize("column", ["label", "sentiment", "verdict of theirs"])
def test_names_of_classes_are_those_of_the_column_that_is_the_label(
    column: str, debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Parquet a label is a number with a name: which column's names, is known once the label is."""
    from datasets import ClassLabel, Dataset, Features, Value

    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    rows = {"text": [f"film {n} so it was" for n in range(40)], column: [n % 2 for n in range(40)]}
    features = Features({"text": Value("string"), column: ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    assert debias("init", "--data", "x.parquet", *MODEL, "--out", "x.yaml").code == 0
    config = load_config(tmp_path / "x.yaml")
    assert (config.data.label_field, config.data.labels) == (column, ("neg", "pos"))
    assert len(training_examples(config, tmp_path)) == 40


@pytest.mark.parametrize("names", ["ab", ["None", "Hate"], ["nan", "x"]])
@pytest.mark.parametrize("empty", ["", " ", None, float("nan")])
def test_the_file_of_rows_without_a_label_is_one_that_train_reads(
    empty: Any, names: Sequence[str], debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"film {n} so", "label": empty if n % 10 == 9 else names[n % 2]} for n in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert debias("init", "--data", "x.jsonl", *MODEL, "--out", "x.yaml").code == 0
    text = (tmp_path / "x.yaml").read_text()
    assert "  # label: 4 of 40 rows (10.0 %) are empty, have no label for it, and are left out.\n" in text
    assert "  # what else occurs in all 40 rows\n" in text
    assert yaml.safe_load(text)["data"]["labels"] == sorted(names)
    assert len(training_examples(load_config(tmp_path / "x.yaml"), tmp_path)) == 36


def test_only_what_is_missing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "r.tsv", REVIEWS, "\t")
    answers = {"Training data": "r.tsv", "Model": "m", "Head": "classification", "Column of the label": "stars"}
    asked = []

    def ask(question: str, otherwise: str) -> str:
        asked.append(next(name for name in answers if name in question))
        return answers[asked[-1]]

    config = load_config(write_first(Wanted(), tmp_path / "a.yaml", ask))
    assert asked == list(answers)
    assert (config.model, config.data.label_field) == ("m", "stars")
    told = Wanted("r.tsv", "m", "classification", ("what they wrote",), "stars", "shop")
    config = load_config(write_first(told, tmp_path / "b.yaml", ask))
    assert asked == list(answers)  # nothing was asked again
    assert config.data.group_field == "shop"
    with pytest.raises(InputError, match="which column is the label"):
        write_first(Wanted("r.tsv", "m"), tmp_path / "c.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["classification", "causal_lm"])
def test_what_was_written_trains(head: str, debias: Command, tmp_path: Path) -> None:
    """As it stands, for two steps, from a file whose columns have other names and whose labels are words."""
    base = (save_bert if head == "classification" else save_llama)(tmp_path / "base")
    said_as = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
    rows = [{**row, "gold_label": said_as[row["gold_label"]]} for row in pairs(40, label="gold_label")]
    table(tmp_path / "my.csv", rows)
    assert debias("init", "--data", "my.csv", "--model", base, "--head", head).code == 0
    said = debias("train", "run.yaml", "max_steps=2")
    assert (said.code, said.out) == (0, "runs/run\n"), said.err
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["steps"] == 2
    assert yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())["head"] == head


def test_words_that_give_the_label_away_are_named_and_left_to_a_task_of_one_field(
    debias: Command, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    rows = [
        {"text": f"n{n % 37} {('good', 'bad')[n % 2]} film{' !!' if n % 6 == 1 else ''}", "label": n % 2}
        for n in range(240)
    ]
    for row in rows[::5]:
        row["text"] = str(row["text"]).replace("bad", "odd")
    table(tmp_path / "films.csv", rows)
    assert debias("init", "--data", "films.csv", "--text-field", "text", *MODEL, "--out", "films.yaml").code == 0
    text = (tmp_path / "films.yaml").read_text()
    assert "# Found in all 240 rows: “good” in text explains" in text
    assert "# Take out of `allowed` what a label should not hang on" in text
    block = load_config(tmp_path / "films.yaml").bias_model
    assert block is not None
    assert "good" in block["allowed"]
    assert "!!" not in block["allowed"]


@pytest.mark.parametrize(("read", "searched"), [(200, 150), (200, 10**6), (10**6, 150), (10**6, 10**6)])
def test_of_long_texts_a_part_is_read_and_searched_and_the_file_says_so(
    read: int, searched: int, debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of ten characters, and one of the label: the 19th is the first with which they hold more than 200."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr("debias.init.guessing.CHARACTERS", read)
    monkeypatch.setattr("debias.audit.first_rows.SEARCHED", searched)
    table(tmp_path / "films.csv", [{"text": f"film {n:02} so", "label": "ab"[n % 2]} for n in range(40)])
    assert debias("init", "--data", "films.csv", *MODEL, "--out", "films.yaml").code == 0
    text = (tmp_path / "films.yaml").read_text()
    seen, part = ("the first 19 rows", 15) if read == 200 else ("all 40 rows", 15)
    assert f"labels: [a, b]  # what occurs in {seen}\n" in text
    assert f"# Nothing of the kind was found in {f'{part} of ' if searched == 150 else ''}{seen}.\n" in text


def test_how_a_file_is_laid_out_is_said_by_flags_and_kept(debias: Command, tmp_path: Path) -> None:
    table(tmp_path / "my.csv", pairs(), ";")
    assert 'set delimiter: ";" beside source (--delimiter)' in debias("init", "--data", "my.csv", *MODEL).error
    said = debias("init", "--data", "my.csv", "--delimiter", ";", "--no-quotes", *MODEL)
    assert (said.code, said.out) == (0, "run.yaml\n"), said.err
    source = load_config(tmp_path / "run.yaml").data.train
    assert (source.source, source.delimiter, source.quotes, source.name) == ("my.csv", ";", False, None)
    wrong = debias("init", "--data", "my.csv", "--delimiter", "ab", *MODEL, "--out", "b.yaml")
    assert wrong.error.startswith("error: --data: delimiter: expected one character such as ';'"), wrong.error
    sheet = debias("init", "--data", "my.csv", "--name", "first", "--delimiter", ";", *MODEL, "--out", "b.yaml")
    assert "only a hub dataset has named configurations, and .xlsx sheets" in sheet.error


def test_signs_that_give_the_label_away_change_places(debias: Command, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = [
        {"premise": f"thing {n % 41}{' !!' if n % 2 and n % 3 else ''}", "claim": f"so {n % 7}", "label": "ab"[n % 2]}
        for n in range(240)
    ]
    table(tmp_path / "my.csv", rows)
    fields = ("--text-field", "premise", "--text-field", "claim", "--label-field", "label")
    assert debias("init", "--data", "my.csv", *fields, *MODEL).code == 0
    config = load_config(tmp_path / "run.yaml")
    assert config.data.swap is not None
    assert config.data.swap.tokens == ("!!",)
    text = (tmp_path / "run.yaml").read_text()
    assert "# Found in all 240 rows: “!!” in premise explains" in text
    assert "bias_model=null loss=cross_entropy data.swap=null output_dir=runs/run_plain" in text


def test_vowel_signs_of_a_word_are_no_signs_that_change_places(debias: Command, tmp_path: Path) -> None:
    """Hindi: an ending tells the label, and was taken for a sign of its own, which `swap` would have torn off."""
    stems = ["बोल", "देख", "सुन", "खेल", "लिख", "चल", "रुक", "हँस", "डर", "जाग"]
    rows = [
        {"text": f"शहर {stems[at * 3 % 10]} पानी {stems[at % 10]}{'ी।' if at % 2 else 'ा।'}", "label": "mf"[at % 2]}
        for at in range(300)
    ]
    table(tmp_path / "hi.csv", rows)
    assert debias("init", "--data", "hi.csv", *MODEL, "--out", "hi.yaml").code == 0
    text = (tmp_path / "hi.yaml").read_text()
    assert "swap" not in text.replace("data.swap", "")


def test_minus_one_is_a_label_where_it_makes_a_scale(
    debias: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"number {i} of these, all in all", "sentiment": i % 3 - 1} for i in range(60)]
    table(tmp_path / "scale.csv", rows)
    debias("init", "--data", "scale.csv", *MODEL, "--out", "scale.yaml")
    assert load_config(tmp_path / "scale.yaml").data.labels == ("-1", "0", "1")
    assert "'-1', in 20 of 60 rows (33.3 %), is taken for a label beside 0, 1" in caplog.text
    assert "is taken for a label" in (tmp_path / "scale.yaml").read_text()
    audited = json.loads(debias("audit", "scale.csv", "--json").out)["audits"][0]
    assert audited["labels"] == {"-1": 20, "0": 20, "1": 20}
    assert "is taken for a label" in audited["about_labels"][0]
    table(tmp_path / "nli.csv", [*pairs(120), *({**row, "label": "-"} for row in pairs(2))])
    debias("init", "--data", "nli.csv", *MODEL, "--out", "nli.yaml")
    assert load_config(tmp_path / "nli.yaml").data.labels == ("contradiction", "entailment", "neutral")
    told = "2 of 122 rows (1.6 %) have '-', which means no label, and are left out"
    assert told in caplog.text
    assert told in (tmp_path / "nli.yaml").read_text()
    assert told in " ".join(debias("audit", "nli.csv").out.split())


def test_labels_in_several_ways_of_writing_are_made_one(
    debias: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what a run then reads are two labels with all rows."""
    written = ["pos", "Pos", "neg", "pos ", "neg", "NEG"]
    table(tmp_path / "x.csv", [{"text": f"number {i} of these, {i % 6}", "label": written[i % 6]} for i in range(60)])
    debias("init", "--data", "x.csv", *MODEL, "--out", "x.yaml")
    data = load_config(tmp_path / "x.yaml").data
    assert data.labels == ("neg", "pos")
    assert data.label_map == {"NEG": "neg", "Pos": "pos", "pos ": "pos"}
    assert "made one in label_map" in caplog.text
    read = load_examples(data.train, data, base=tmp_path)
    assert [one.label for one in read] == [int(written[i % 6].strip().lower() == "pos") for i in range(60)]
    assert "what occurs in all 60 rows" in (tmp_path / "x.yaml").read_text()
    said = debias("audit", "x.csv")
    assert "differ in how they are written alone" in " ".join(said.out.split())
    table(tmp_path / "y.csv", [{"text": f"number {i} of these", "label": "yY"[i % 2]} for i in range(20)])
    assert "and there is no other" in debias("init", "--data", "y.csv", *MODEL, "--out", "y.yaml").error


@pytest.mark.parametrize(
    ("text", "head", "model", "line"),
    [
        ("很" * 200, "classification", "no/such-model", "512  # tokens; by its words it holds 100 of 100 rows"),
        ("ไม่ดี" * 40, "classification", "no/such-model", "256  # tokens; by its words it holds 100 of 100 rows"),
        ("a b " * 400, "classification", "no/such-model", "512  # tokens; by its words it holds 5 of 100 rows, and "),
        ("yes no " * 40, "classification", "here", "128  # tokens; by the model's tokenizer it holds 100 of 100 rows"),
        # Each sign is a token of a tokenizer that knows the letters alone, and words have no say.
        ("zqzqzqzqzq " * 10, "classification", "here", "128  # tokens; by the model's tokenizer it holds 100 of"),
        ("yes no " * 30, "causal_lm", "here", "128  # tokens; by the model's tokenizer it holds 100 of 100 rows"),
    ],
)
def test_rows_are_measured_in_tokens(
    text: str, head: str, model: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19 of 20 rows have this text, one is short."""
    monkeypatch.chdir(tmp_path)
    if model == "here":
        letters_alone(tmp_path / "here")
    rows = [{"text": f"{text} {at}" if at % 20 else "yes", "label": "ab"[at % 2]} for at in range(60)]
    table(tmp_path / "x.csv", rows)
    write_first(Wanted(data="x.csv", model=model, head=head), Path("x.yaml"))
    assert f"max_length: {line}" in Path("x.yaml").read_text()


def letters_alone(folder: Path) -> None:
    """A folder with a tokenizer that makes a token of each letter of a word that is not yes, no or a number."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"yes": 0, "no": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"yes|no|\d+|."), behavior="isolated")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
