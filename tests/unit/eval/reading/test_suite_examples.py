"""From a suite to its examples: clusters, subsets of whole clusters, the hub in the place of a file."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from debias.data import Example
from debias.errors import InputError
from debias_eval.reading.examples import all_examples, suite_examples
from debias_eval.reading.places import where_from
from debias_eval.reading.subset import subset
from debias_eval.reading.suite import load_suite

NLI = ("entailment", "neutral", "contradiction")


def rows_of(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"r-{i}", "premise": f"p{i}", "hypothesis": f"h{i}", "label": NLI[i % 3]}
        | {name: values[i] for name, values in columns.items()}
        for i in range(count)
    ]


def suite_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"name": "mine", "version": 1, "description": "Mine.", "licence": "CC0", "task": "nli"}
    (folder / "suite.yaml").write_text(json.dumps(base | {"source": "rows.jsonl"} | settings))
    return load_suite(folder / "suite.yaml")


@pytest.mark.parametrize("by", [{}, {"group_rule": {"by_label": True}}])
def test_groups_that_are_one_but_for_how_they_are_written_are_a_warning(
    by: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = ["plain", "negated"] * 6
    all_examples(suite_of(tmp_path / "x", rows_of(12, kind=written), group_field="kind", **by))
    assert "differ" not in caplog.text
    written[:4] = ["plain ", "Negated", "plain", "negated"]
    all_examples(suite_of(tmp_path / "y", rows_of(12, kind=written), group_field="kind", **by))
    lines = [one.getMessage() for one in caplog.records if "differ in how they are written alone" in one.getMessage()]
    assert len(lines) == 2
    assert "'Negated" in lines[0] + lines[1]
    assert "'plain " in lines[0] + lines[1]


def clusters(suite: Any) -> list[str | None]:
    return [one.cluster for one in all_examples(suite)]


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (None, [None] * 4),
        ({"field": "id"}, ["a-1", "a-2", "b-1", "b-2"]),
        ({"field": "id", "regex": "^(.*)-[^-]+$"}, ["a", "a", "b", "b"]),
        ({"field": "premise"}, ["The cat sat", "A dog sat", "The cat sat", "The dog ran"]),
        ({"field": "group"}, ["g", "g", "h", "h"]),
        ({"field": "template"}, ["7", "8", "7", "row 4"]),
        ({"field": ["group", "template"]}, ["g | 7", "g | 8", "h | 7", "row 4"]),
        ({"field": "premise", "words": ["the", "sat"]}, ["the _ sat", "_ _ sat", "the _ sat", "the _ _"]),
        ({"field": ["group", "premise"], "words": ["the"]}, ["g | the _ _", "g | _ _ _", "h | the _ _", "h | the _ _"]),
    ],
)
def test_clusters_are_made_by_rule(tmp_path, cluster, expected):
    premises = ["The cat sat", "A dog sat", "The cat sat", "The dog ran"]
    rows = rows_of(4, id=["a-1", "a-2", "b-1", "b-2"], premise=premises, kind=list("gghh"), template=[7, 8, 7, None])
    assert clusters(suite_of(tmp_path, rows, group_field="kind", cluster=cluster)) == expected


def test_a_regex_that_finds_nothing_names_the_value(tmp_path):
    suite = suite_of(tmp_path, rows_of(2), cluster={"field": "id", "regex": "^(.*):"})
    with pytest.raises(InputError, match=r"suite mine: cluster\.regex '\^\(\.\*\):' finds nothing in id 'r-0'"):
        all_examples(suite)


def test_a_cluster_column_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"row 1: no column 'template'"):
        all_examples(suite_of(tmp_path, rows_of(2), cluster={"field": "template"}))


def test_clusters_and_groups_are_those_of_the_text_before_it_is_changed(tmp_path):
    rows = rows_of(30, premise=["the same"] * 30)
    planted = {"cue": "!!", "label": "neutral", "prevalence": 0.5, "strength": 0.5}
    examples = all_examples(suite_of(tmp_path, rows, cluster={"field": "premise"}, planted_bias=planted))
    assert {one.texts[0] for one in examples} == {"the same", "the same !!"}
    assert {one.cluster for one in examples} == {"the same"}
    stressed = all_examples(suite_of(tmp_path, rows, cluster={"field": "premise"}, stress="length_mismatch"))
    assert {one.cluster for one in stressed} == {"the same"}
    assert all(one.texts[0] == "the same" + " and true is true" * 5 for one in stressed)


def test_an_id_that_comes_again_gets_a_name_of_its_own(tmp_path):
    suite = suite_of(tmp_path, rows_of(5, id=["a", "b", "a", "a#2", "a"]), cluster={"field": "id"})
    examples = all_examples(suite)
    assert [one.id for one in examples] == ["a", "b", "a#3", "a#2", "a#4"]
    assert [one.cluster for one in examples] == ["a", "b", "a", "a#2", "a"]  # the data's own ids


def pairs(count: int, size: int = 2) -> list[Example]:
    return [Example(f"{c}-{i}", ("p", "h"), 0, cluster=f"c{c}") for c in range(count) for i in range(size)]


@pytest.mark.parametrize("consistency", [False, True])
def test_the_limit_of_a_source_leaves_clusters_whole(tmp_path, consistency):
    """Rows were drawn one by one: of most pairs one half was left."""
    source = {"source": "rows.jsonl", "limit": 20, "seed": 3}
    rows = rows_of(60, family=[i // 2 for i in range(60)])
    settings = {"cluster": {"field": "family"}, "consistency": consistency}
    kept = all_examples(suite_of(tmp_path, rows, **settings, source=source))
    assert set(Counter(one.cluster for one in kept).values()) == {2}
    assert len(kept) == 20
    assert kept != all_examples(suite_of(tmp_path, rows, **settings, source=source | {"seed": 4}))
    assert len(all_examples(suite_of(tmp_path, rows, **settings, source=source | {"limit": 99}))) == 60
    with pytest.raises(InputError, match=r"source.limit: 1 is too few: clusters are drawn whole, and hold up to 2"):
        all_examples(suite_of(tmp_path, rows, **settings, source=source | {"limit": 1}))


def test_the_limit_of_a_source_without_clusters_is_exact(tmp_path):
    kept = all_examples(suite_of(tmp_path, rows_of(60), source={"source": "rows.jsonl", "limit": 21}))
    assert len(kept) == 21


@pytest.mark.parametrize("limit", [5, 20, 99])
@pytest.mark.parametrize("size", [2, 5, 16])
def test_small_clusters_are_drawn_whole(limit, size):
    examples = pairs(60, size)
    if limit < size:
        with pytest.raises(InputError, match=rf"limit: {limit} is too few: clusters are drawn whole.* {size}"):
            subset(examples, limit, 0)
        return
    kept = subset(examples, limit, 0)
    assert limit - size < len(kept) <= limit
    assert set(Counter(one.cluster for one in kept).values()) == {size}
    assert kept == [one for one in examples if one in kept]  # in the original order
    assert kept == subset(examples, limit, 0)
    assert kept != subset(examples, limit, 1)


def test_every_cluster_is_drawn_equally_often():
    examples = [*pairs(10, 2), *[Example(f"s{i}", ("p",), 0, cluster=f"s{i}") for i in range(10)]]
    drawn = Counter(one.cluster for seed in range(2000) for one in subset(examples, 15, seed))
    per_cluster = [drawn[name] / (2 if name[0] == "c" else 1) / 2000 for name in drawn]
    assert len(per_cluster) == 20
    # Ten or so of twenty; a pair fits the last place a little less often than a single one.
    assert max(per_cluster) - min(per_cluster) < 0.09


def test_large_clusters_are_drawn_from_unless_they_must_be_whole():
    examples = pairs(4, 100)
    assert len(subset(examples, 150, 0)) == 150
    assert len({one.cluster for one in subset(examples, 150, 0)}) == 4
    whole = subset(examples, 150, 0, whole=True)
    assert len(whole) == 100
    assert len({one.cluster for one in whole}) == 1


def test_examples_without_a_cluster_are_drawn_alone():
    examples = [Example(str(i), ("t",), 0) for i in range(50)]
    assert len(subset(examples, 20, 3)) == 20


def test_consistency_keeps_clusters_whole(tmp_path):
    rows = rows_of(120, kind=[str(i // 30) for i in range(120)])
    loose = suite_of(tmp_path, rows, cluster={"field": "kind"})
    assert len(suite_examples(loose, 50)) == 50
    tight = suite_of(tmp_path, rows, cluster={"field": "kind"}, consistency=True)
    kept = suite_examples(tight, 50)
    assert len(kept) == 30
    assert len({one.cluster for one in kept}) == 1


HUB = {
    "source": "someone/pairs",
    "split": "test",
    "text_fields": ["sentence1", "sentence2"],
    "label_field": "gold",
    "id_field": None,
    "label_map": {"0": "entailment", "1": "neutral", "2": "contradiction"},
}


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Parquet folder as the hub has it, found under its hub id in DEBIAS_DATA; nothing reaches the network."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "data" / "someone" / "pairs" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 9), ("test", 6)):
        table = pa.table(
            {
                "sentence1": [f"{split} p{i}" for i in range(count)],
                "sentence2": [f"h{i}" for i in range(count)],
                "gold": [(i % 3) if i else -1 for i in range(count)],
                "kind": [f"k{i // 3}" for i in range(count)],
            }
        )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return folder


def test_the_hub_takes_the_place_of_a_file_that_is_absent(tmp_path, hub_folder, caplog):
    suite = suite_of(tmp_path / "s", [], source="not/here.jsonl", hub=HUB, cluster={"field": "kind"})
    with caplog.at_level(logging.INFO, "debias_eval"):
        examples = all_examples(suite)
    assert "no not/here.jsonl" in caplog.text
    assert "reading someone/pairs from the hub" in caplog.text
    assert [(one.id, one.texts, one.label, one.cluster) for one in examples] == [
        (f"test-{i + 1}", (f"test p{i}", f"h{i}"), i % 3, f"k{i // 3}") for i in range(1, 6)
    ]


@pytest.mark.parametrize("cluster", [None, {"field": "kind"}])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_hubs_rows_are_drawn_as_the_files_are(tmp_path, hub_folder, cluster, seed):
    """`source.limit` is the suite's, wherever its rows come from: the same ones, clusters whole."""
    rows = [
        {"premise": f"test p{i}", "hypothesis": f"h{i}", "label": ["entailment", "neutral", "contradiction"][i % 3]}
        | {"kind": f"k{i // 3}"}
        for i in range(1, 6)
    ]
    drawn = [
        all_examples(
            suite_of(tmp_path / name, rows, hub=HUB, source=source, **({"cluster": cluster} if cluster else {}))
        )
        for name, source in (
            ("file", {"source": "rows.jsonl", "limit": 3, "seed": seed}),
            ("hub", {"source": "not/here.jsonl", "limit": 3, "seed": seed}),
        )
    ]
    assert [one.texts for one in drawn[0]] == [one.texts for one in drawn[1]]
    assert len(drawn[1]) in ((2, 3) if cluster else (3,))


def test_a_suite_of_the_hub_alone(tmp_path, hub_folder):
    suite = suite_of(tmp_path / "s", [], source=None, hub=HUB, cluster={"field": "premise"})
    assert [one.cluster for one in all_examples(suite)] == [f"test p{i}" for i in range(1, 6)]
    assert where_from(suite) == "local"


def test_the_file_comes_before_the_hub(tmp_path, hub_folder):
    assert len(all_examples(suite_of(tmp_path / "s", rows_of(2), hub=HUB))) == 2


def test_a_planted_cue_and_the_hub(tmp_path, hub_folder):
    planted = {"cue": "!!", "label": "neutral", "prevalence": 0.4, "strength": 0.5}
    suite = suite_of(tmp_path / "s", [], source=None, hub=HUB, planted_bias=planted)
    assert sum(one.texts[0].endswith(" !!") for one in all_examples(suite)) == 2


def test_without_file_and_without_connection_there_is_one_clear_line(tmp_path, monkeypatch):
    import datasets

    def offline(*arguments: Any, **settings: Any) -> Any:
        raise ConnectionError("Couldn't reach 'someone/pairs' on the Hub (LocalEntryNotFoundError)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    suite = suite_of(tmp_path / "s", [], source="not/here.jsonl", hub=HUB)
    assert where_from(suite) == "hub"
    with pytest.raises(InputError) as caught:
        all_examples(suite)
    for part in (
        "suite mine: no not/here.jsonl; DEBIAS_DATA",
        "someone/pairs",
        "Couldn't reach",
        "without a connection",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_examples_would_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    assert where_from(load_suite("generated")) == "generated"
    assert where_from(load_suite("hans")) == "missing"
    assert where_from(load_suite("snli")) == "hub"
    assert where_from(suite_of(tmp_path / "s", rows_of(1))) == "local"
