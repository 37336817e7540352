"""Sources: every way in gives the same examples; every bad row gives one line that names file, row and value."""

import csv
import gzip
import io
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debias.config.data import DataConfig, DataSource
from debias.data.generator import generate
from debias.data.shards import resolve_path
from debias.data.sources import load_examples
from debias.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED_DATA = Path(os.environ.get("DEBIAS_DATA", REPOSITORY.parent / "shared" / "data"))
LABELS = ("entailment", "neutral", "contradiction")
ROWS = [
    {"premise": "A dog, brown.", "hypothesis": 'An "animal".', "label": "entailment", "id": "a", "w": 0.5, "kind": "x"},
    {"premise": "A cat.", "hypothesis": "A tab\tcat – ünï.", "label": "neutral", "id": "b", "w": 0.0, "kind": "y"},
    {"premise": "A fish.", "hypothesis": "A bird.", "label": "contradiction", "id": "c", "w": 2.0, "kind": "x"},
]


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def write_rows(path, rows):
    """The rows in the format that the name of the file asks for."""
    plain = path.name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        content = parquet_bytes(rows)
    elif plain.endswith((".csv", ".tsv")):
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], delimiter="\t" if plain.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def parquet_bytes(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def load(path, *, bias_column=None, require_every_label=False, base=None, **settings):
    of_source = {key: settings.pop(key) for key in ("split", "name", "limit", "seed") if key in settings}
    source = DataSource(source=str(path), **of_source)
    data = DataConfig(train=source, **settings)
    return load_examples(source, data, base=base, bias_column=bias_column, require_every_label=require_every_label)


def refusal(path, **settings):
    with pytest.raises(InputError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_row(tmp_path, **changes):
    """A file whose second row is changed; None as a key's value of `...` removes the key."""
    row = {key: value for key, value in {**ROWS[1], **changes}.items() if value is not ...}
    return write_rows(tmp_path / "data.jsonl", [ROWS[0], row, ROWS[2]])


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".JSONL"])
def test_every_format_gives_the_same_examples(tmp_path, suffix, gz):
    name = "data" + suffix + gz
    path = write_rows(tmp_path / name, ROWS)
    loaded = load(path, group_field="kind", bias_column="w")
    assert [example.texts for example in loaded] == [(row["premise"], row["hypothesis"]) for row in ROWS]
    assert [example.label for example in loaded] == [0, 1, 2]
    assert [example.id for example in loaded] == ["a", "b", "c"]
    assert [example.group for example in loaded] == ["x", "y", "x"]
    assert [example.bias_weight for example in loaded] == [0.5, 0.0, 2.0]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path, suffix):
    path = write_rows(tmp_path / ("data" + suffix), ROWS)
    marked = b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n"
    path.write_bytes(marked)
    packed = tmp_path / f"data{suffix}.gz"
    packed.write_bytes(gzip.compress(marked))
    assert len(load(path)) == len(load(packed)) == 3


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=20)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5), suffix=st.sampled_from([".jsonl.gz", ".csv"]))
def test_any_text_survives_the_trip(tmp_path_factory, pairs, suffix):
    rows = [{"premise": p, "hypothesis": h, "label": "neutral"} for p, h in pairs]
    path = write_rows(tmp_path_factory.mktemp("trip") / ("data" + suffix), rows)
    assert [example.texts for example in load(path)] == pairs


def test_absent_ids_are_made_and_double_ids_are_kept(tmp_path):
    path = write_rows(tmp_path / "data.jsonl", [{**row, "id": "same"} for row in ROWS])
    assert [example.id for example in load(path)] == ["same"] * 3
    assert [example.id for example in load(path, id_field=None, split="dev")] == ["dev-1", "dev-2", "dev-3"]
    assert [example.id for example in load(path, id_field="uid")] == ["train-1", "train-2", "train-3"]


def test_one_text_field(tmp_path):
    path = write_rows(tmp_path / "data.jsonl", ROWS)
    assert load(path, text_fields=("hypothesis",))[0].texts == ('An "animal".',)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_label_map_goes_by_the_raw_value(tmp_path):
    rows = [{**row, "label": raw} for row, raw in zip(ROWS, (0, "no idea", True), strict=True)]
    path = write_rows(tmp_path / "data.jsonl", rows)
    names = {"0": "contradiction", "no idea": "neutral", "True": "entailment"}
    assert [example.label for example in load(path, label_map=names)] == [2, 1, 0]


@pytest.mark.parametrize("missing", [-1, "-", "-1", None, "", "  ", float("nan")])
def test_rows_without_a_gold_label_are_dropped_and_counted(tmp_path, caplog, missing):
    path = with_row(tmp_path, label=missing)
    with caplog.at_level(logging.INFO, logger="debias.data.sources"):
        assert [example.id for example in load(path)] == ["a", "c"]
    assert "dropped 1 of 3 rows" in caplog.text


def test_minus_one_can_be_a_label(tmp_path):
    path = with_row(tmp_path, label=-1)
    assert [example.label for example in load(path, label_map={"-1": "contradiction"})] == [0, 2, 2]


def dataset_of_classes(labels):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS)})
    columns = {"premise": ["p"] * len(labels), "hypothesis": ["h"] * len(labels), "label": labels}
    return Dataset.from_dict(columns, features=features)


def test_class_labels_of_a_dataset_folder_and_of_its_file(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    dataset_of_classes([2, 0, -1, 1]).to_parquet(folder / "train.parquet")
    reordered = ("neutral", "contradiction", "entailment")
    for source in (folder, folder / "train.parquet"):
        assert [example.label for example in load(source, labels=reordered)] == [1, 2, 0]
        assert [example.label for example in load(source, label_map={"2": "neutral"})] == [1, 0, 1]
    assert [example.id for example in load(folder)] == ["train-1", "train-2", "train-4"]


def test_a_class_label_that_is_not_known_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    dataset_of_classes([0, 1]).to_parquet(path)
    assert "row 2: label 1 (neutral) is not in" in refusal(path, labels=("entailment", "contradiction"))


def test_a_class_that_never_occurs_is_named_only_if_asked(tmp_path):
    path = write_rows(tmp_path / "data.jsonl", ROWS[:2])
    assert len(load(path)) == 2
    assert "no example of contradiction among 2" in refusal(path, require_every_label=True)


# --- limit and the generator ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 40), limit=st.integers(1, 50), seed=st.integers(0, 99))
def test_limit_is_a_seeded_subset_in_order(tmp_path_factory, size, limit, seed):
    rows = [{**ROWS[0], "id": index} for index in range(size)]
    path = write_rows(tmp_path_factory.mktemp("limit") / "data.jsonl", rows)
    kept = [int(example.id) for example in load(path, limit=limit, seed=seed)]
    assert len(kept) == min(size, limit)
    assert kept == sorted(set(kept))
    assert kept == [int(example.id) for example in load(path, limit=limit, seed=seed)]


def test_the_seed_chooses_the_subset(tmp_path):
    path = write_rows(tmp_path / "data.jsonl", [{**ROWS[0], "id": index} for index in range(200)])
    first, second = ([example.id for example in load(path, limit=50, seed=seed)] for seed in (0, 1))
    assert first != second
    assert first != [str(index) for index in range(50)]


def test_generated_examples_are_the_generators_rows():
    loaded = load("generated", split="ood", limit=60, seed=3, group_field="group")
    rows = generate("ood", 60, 3)
    assert [(*example.texts, LABELS[example.label], example.group, example.id) for example in loaded] == [
        (row["premise"], row["hypothesis"], row["label"], row["group"], row["id"]) for row in rows
    ]


def test_generated_has_three_thousand_unless_told():
    counts = Counter(example.label for example in load("generated", require_every_label=True))
    assert counts == {0: 1000, 1: 1000, 2: 1000}


def test_generated_refuses_what_it_has_not():
    assert "expected one of train" in refusal("generated", split="dev")
    assert "no column 'text' (text_fields); the columns are id, premise" in refusal("generated", text_fields=("text",))


# --- where a file is looked up ----------------------------------------------------------------------------------------


def test_beside_the_config_then_here_then_the_data_folder(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("config", "here", "data")]
    for folder in folders:
        folder.mkdir()
        write_rows(folder / "x.jsonl", ROWS)
    monkeypatch.chdir(folders[1])
    monkeypatch.setenv("DEBIAS_DATA", str(folders[2]))
    for folder in folders:
        found = resolve_path("x.jsonl", base=folders[0])
        assert found == folder / "x.jsonl"
        assert len(load("x.jsonl", base=folders[0])) == 3
        found.unlink()
    message = refusal("x.jsonl", base=folders[0])
    assert "no such file" in message
    assert all(str(folder / "x.jsonl") in message for folder in folders)


def test_an_absolute_path_is_looked_for_there_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path / "none.csv")
    assert message.count("none.csv") == 2
    assert "DEBIAS_DATA" in message


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch, tmp_path):
    import datasets

    def fail(source, name, split):
        raise ConnectionError(f"cannot reach {source} {name} {split}\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refusal("somebody/some_set", name="plain", split="dev")
    assert "ConnectionError: cannot reach somebody/some_set plain dev" in message
    assert "local file" in message


def test_a_folder_without_data_and_a_split_that_is_not_there(tmp_path):
    (tmp_path / "set").mkdir()
    assert "neither a file here nor a dataset" in refusal(tmp_path / "set")
    dataset_of_classes([0]).to_parquet(tmp_path / "set" / "train.parquet")
    assert "split 'dev'" in refusal(tmp_path / "set", split="dev")


def test_name_is_for_hub_sets(tmp_path):
    assert "name is 'big'" in refusal(write_rows(tmp_path / "data.csv", ROWS), name="big")
    assert "name is 'big'" in refusal("generated", name="big")


# --- bad rows and bad files -------------------------------------------------------------------------------------------

BAD_ROWS = [
    ({"premise": ...}, {}, "row 2: no column 'premise' (text_fields); the columns are hypothesis, label, id, w, kind"),
    ({"label": ...}, {}, "row 2: no column 'label' (label_field); the columns are premise"),
    ({"premise": 7}, {}, "row 2: premise is 7, expected text"),
    ({"premise": None}, {}, "row 2: premise is None, expected text"),
    ({"hypothesis": " \n"}, {}, "row 2: hypothesis is empty"),
    ({"hypothesis": "a \ud800."}, {}, "row 2: hypothesis holds half of a character at 2 ('\\ud800')"),
    ({"label": "maybe"}, {}, "row 2: label 'maybe' is not in labels ['entailment', 'neutral', 'contradiction']"),
    ({"label": 3}, {"label_map": {"0": "neutral"}}, "row 2: label 3 is not in labels ['entailment', 'neutral', 'con"),
    ({"label": 3}, {"label_map": {"0": "neutral"}}, "and label_map {'0': 'neutral'}"),
    ({"kind": ...}, {"group_field": "kind"}, "row 2: no column 'kind' (group_field)"),
    ({"w": ...}, {"bias_column": "w"}, "row 2: no column 'w' (bias_weight.column)"),
    *[
        ({"w": bad}, {"bias_column": "w"}, f"row 2: w is {bad!r}, expected a finite number that is not negative")
        for bad in (-0.1, float("nan"), float("inf"), "much", None, True, [1])
    ],
]


@pytest.mark.parametrize(("changes", "settings", "says"), BAD_ROWS, ids=lambda value: str(value)[:30])
def test_a_bad_row_is_named(tmp_path, changes, settings, says):
    path = with_row(tmp_path, **changes)
    message = refusal(path, **settings)
    assert message.startswith(f"{path}: ")
    assert says in message


@pytest.mark.parametrize(
    ("line", "says"),
    [('{"premise": "a', "broken JSON"), ("[1, 2]", "JSON list"), ("7", "JSON int"), ("[" * 100_000, "broken JSON")],
    ids=["cut", "list", "number", "deep"],
)
def test_a_bad_json_line_is_named(tmp_path, line, says):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    message = refusal(path)
    assert message.startswith(f"{path}: row 3: ")
    assert says in message


@pytest.mark.parametrize("line", ["only one", "a,b,c,d,e", 'a,"b,c'], ids=["few", "many", "open quote"])
def test_a_bad_csv_record_is_named(tmp_path, line):
    path = tmp_path / "data.csv"
    path.write_text("premise,hypothesis,label\np,h,neutral\n" + line + "\n")
    assert refusal(path).startswith(f"{path}: row 2: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", b""),
        ("data.jsonl.gz", b"\n"),
        ("data.csv", b""),
        ("data.csv", b"premise,hypothesis,label\n"),
        ("data.parquet", parquet_bytes([ROWS[0]][:0])),
    ],
)
def test_an_empty_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert refusal(path) == f"{path}: no examples, it is empty"


def test_nothing_but_rows_without_a_label(tmp_path):
    path = write_rows(tmp_path / "data.jsonl", [{**row, "label": "-"} for row in ROWS])
    assert "all rows lack a gold label" in refusal(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_damaged_gzip(tmp_path, suffix, damage):
    path = write_rows(tmp_path / f"data{suffix}.gz", ROWS * 50)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes(255 - byte for byte in content[middle : middle + 20]) + content[middle + 20 :]
    path.write_bytes({"cut": content[:middle], "not gzip": b"plain text", "flipped": flipped}[damage])
    assert refusal(path).startswith(f"{path}: damaged gzip file")


def test_damaged_parquet(tmp_path):
    path = write_rows(tmp_path / "data.parquet", ROWS * 500)
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"", whole[:4] + b"?" * 200 + whole[204:]):
        path.write_bytes(damaged)
        assert refusal(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_not_utf8(tmp_path, name):
    path = write_rows(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes() + "{café".encode("latin-1"))
    assert "not UTF-8" in refusal(path)


def test_a_folder_with_a_files_name_and_a_file_of_unknown_kind(tmp_path):
    (tmp_path / "data.jsonl").mkdir()
    assert "cannot be read" in refusal(tmp_path / "data.jsonl")
    (tmp_path / "data.ods").write_text("x")
    assert "unknown kind of file" in refusal(tmp_path / "data.ods")


# --- the room as a whole ----------------------------------------------------------------------------------------------


def test_importing_the_data_room_is_light():
    code = "import sys, debias.data; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "pipeline")}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize(("split", "rows"), [("dev", 9842), ("test", 9824)])
def test_real_snli(split, rows):
    path = SHARED_DATA / "snli" / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip("no SNLI in the data folder")
    loaded = load(path, split=split, group_field="group", require_every_label=True)
    assert len(loaded) == rows
    assert {example.group for example in loaded} == {"hyp_easy", "hyp_hard"}
    assert len({example.id for example in loaded}) == rows
