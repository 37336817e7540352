"""Examples and tokens in kept tables are those that a list would hold, and never those of other data."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch

from debias.config.data import DataConfig, DataSource
from debias.data import Example, load_examples
from debias.data.digests import digests_of
from debias.data.encode import encode_for_answers, encode_for_classification
from debias.data.examples import labels_of
from debias.data.facts import facts_of, group_names
from debias.data.prompt import Prompt
from debias.data.sources import kept_examples
from debias.data.store import ROWS, key_of
from debias.data.tables import Examples, Ids, keep_examples
from debias.data.tokens import lengths_of, tokenizer_digest
from debias.errors import InputError

UGLY = ["plain", "ünïcödé 日本", "a\0b", "\0", "line\nbreak", " ", "🙂" * 9, "'\"", "x" * 5000]
SIZES = [1, 2, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rows(size: int, *, groups: bool = True, weights: bool = True, p: bool = False) -> list[Example]:
    return [
        Example(
            id="\ud800 half" if i == 1 else f"id {i}",
            texts=(UGLY[i % len(UGLY)], UGLY[(i * 5 + 1) % len(UGLY)]),
            label=i % 3,
            group=["b", "a\ud800", "", "a\0"][i % 4] if groups or i % 7 else None,
            bias_weight=1 / (i + 3) if weights or i % 7 else None,
            bias_p=(0.1, 0.2, 0.7) if p else None,
        )
        for i in range(size)
    ]


def stored(examples: Sequence[Example], key: str = "") -> Examples:
    return keep_examples(key_of("test", key, repr(examples)), lambda notes: iter(examples))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("partly", [{}, {"groups": False, "weights": False, "p": True}], ids=["all", "partly"])
def test_examples_come_back_as_they_were(size: int, partly: dict[str, bool]) -> None:
    before = rows(size, **partly)
    after = stored(before)
    assert len(after) == size
    assert list(after) == before
    assert [after[i] for i in range(-size, size)] == before + before
    assert after[size // 2 :] == before[size // 2 :]
    assert list(Ids(after)) == [one.id for one in before]
    for place in (size, -size - 1):
        with pytest.raises(IndexError):
            after[place]


@pytest.mark.parametrize("partly", [{}, {"groups": False}, {"weights": False}], ids=["all", "groups", "weights"])
def test_columns_are_what_a_list_says(partly: dict[str, bool]) -> None:
    before = rows(ROWS + 90, **partly)
    after = stored(before)
    np.testing.assert_array_equal(digests_of(after), digests_of(before))
    np.testing.assert_array_equal(labels_of(after), labels_of(before))
    assert group_names(after) == group_names(before)
    same_facts(facts_of(after), facts_of(before))


def same_facts(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, fact in left.items():
        assert fact.dtype == right[name].dtype
        assert torch.equal(fact, right[name])


def test_a_part_is_a_list_of_that_part() -> None:
    """Also of a part; a group that only others have is none of it."""
    before = [replace(one, group="rare" if i == 5 else one.group) for i, one in enumerate(rows(ROWS + 50))]
    places = np.random.default_rng(0).permutation(ROWS + 50)[:300]
    places = places[places != 5]
    after, left = stored(before).take(places), [before[i] for i in places]
    assert list(after) == left
    np.testing.assert_array_equal(digests_of(after), digests_of(left))
    same_facts(facts_of(after), facts_of(left))
    assert "rare" not in group_names(after)
    assert list(after.take(np.array([7, 0]))) == [left[7], left[0]]
    assert after.take(np.array([7, 0])).key != after.key != stored(before).key


# Tokens.


@pytest.fixture(scope="module")
def words() -> Any:
    return tiny_runs.tokenizer(causal=False)


def texts(size: int) -> list[Example]:
    vocabulary = ["yes", "no", "maybe", "premise", "question"]
    return [Example(str(i), (" ".join(vocabulary[: i % 5 + 1] * 2), vocabulary[i % 3]), i % 3) for i in range(size)]


@pytest.mark.parametrize("size", [1, ROWS, ROWS + 3])
def test_tokens_come_back_as_they_were(size: int, words: Any) -> None:
    plain, after = texts(size), encode_for_classification(stored(texts(size)), words, 9)
    before = encode_for_classification(plain, words, 9)
    assert list(after.features) == before.features
    assert after.features[-1] == before.features[-1]
    assert list(lengths_of(after.features)) == lengths_of(before.features)
    assert list(after.sampler(4, 0)) == list(before.sampler(4, 0))


def test_how_many_were_cut_is_known_of_what_is_kept(words: Any, caplog: pytest.LogCaptureFixture) -> None:
    size = ROWS + 3
    long = sum(2 * (i % 5 + 1) + 1 + 3 > 9 for i in range(size))  # words of two texts, and three signs
    for _ in range(2):  # made, and read
        caplog.clear()
        encoded = encode_for_classification(stored(texts(size)), words, 9)
        assert (encoded.cut, list(encoded.cut_at)) == (long, [])
        assert f"{long} of {size} texts are longer than max_length=9 and were cut" in caplog.messages
    assert len(encode_for_classification(texts(size), words, 9).cut_at) == long


@pytest.mark.parametrize("with_answer", [True, False])
def test_prompts_come_back_as_they_were(with_answer: bool, caplog: pytest.LogCaptureFixture) -> None:
    prompt = Prompt(tiny_runs.tokenizer(causal=True), "{a} question {b} :", ["yes", "no no", "maybe"], ["a", "b"])
    before = encode_for_answers(texts(40), prompt, 9, with_answer=with_answer)
    said = caplog.messages.copy()
    for _ in range(2):  # made, and read
        caplog.clear()
        after = encode_for_answers(stored(texts(40)), prompt, 9, with_answer=with_answer)
        assert list(after.features) == before.features
        assert [line for line in caplog.messages if "lost the start of their texts" in line] == said
    if with_answer:
        assert {type(value) for value in after.features[0]["answer_mask"]} == {bool}


def test_what_was_tokenized_is_not_tokenized_again(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_for_classification(stored(texts(9)), words, 20)
    monkeypatch.setattr(type(words), "__call__", lambda *args, **kwargs: pytest.fail("tokenized again"))
    assert list(encode_for_classification(stored(texts(9)), words, 20).features) == list(first.features)
    with pytest.raises(pytest.fail.Exception):
        encode_for_classification(stored(texts(9)), words, 21)


def test_a_digest_says_what_a_tokenizer_does() -> None:
    def changed(change: Callable[[Any], Any]) -> str | None:
        tokenizer = tiny_runs.tokenizer(causal=False)
        change(tokenizer)
        return tokenizer_digest(tokenizer)

    same = changed(lambda tokenizer: None)
    assert same == changed(lambda tokenizer: tokenizer("yes no", truncation=True, max_length=3, padding="max_length"))
    assert same == changed(lambda tokenizer: setattr(tokenizer, "padding_side", "left"))
    others = [
        changed(lambda tokenizer: tokenizer.add_tokens(["quite new"])),
        changed(lambda tokenizer: setattr(tokenizer, "truncation_side", "left")),
        changed(lambda tokenizer: setattr(tokenizer, "model_input_names", ["input_ids"])),
        changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", None)),
        tokenizer_digest(tiny_runs.tokenizer(causal=True)),
    ]
    assert len({same, *others}) == 6

    class Own(type(tiny_runs.tokenizer(causal=False))):  # type: ignore[misc]
        """With code of its own."""

    assert tokenizer_digest(Own(tokenizer_object=tiny_runs.tokenizer(causal=False).backend_tokenizer)) is None


# Sources.

DATA = DataConfig.model_validate({"train": "rows.jsonl"})


def write(folder: Path, *changes: dict[str, Any], name: str = "rows.jsonl") -> Path:
    plain = {"premise": "a b", "hypothesis": "c", "label": "neutral"}
    lines = [json.dumps({**plain, **change}) for change in ({}, {"label": "entailment"}, *changes)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def read(folder: Path, data: DataConfig = DATA, **options: Any) -> Examples:
    return kept_examples(data.train, data, base=folder, **options)


def test_a_row_that_changes_is_seen_though_the_file_looks_the_same(cache: Path) -> None:
    path = write(cache, {"premise": "old"})
    state = path.stat()
    assert read(cache)[2].texts[0] == "old"
    write(cache, {"premise": "new"})
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read(cache)[2].texts[0] == "new"


@pytest.mark.parametrize(
    "change",
    [
        {"text_fields": ["hypothesis"]},
        {"text_fields": ["hypothesis", "premise"]},
        {"labels": ["neutral", "entailment", "contradiction"]},
        {"label_map": {"neutral": "contradiction"}},
        {"group_field": "premise"},
        {"id_field": "premise"},
        {"train": {"source": "rows.jsonl", "split": "other"}},
        {"train": {"source": "rows.jsonl", "limit": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_other_examples(change: dict[str, Any], cache: Path) -> None:
    write(cache)
    before, data = read(cache), DataConfig.model_validate({"train": "rows.jsonl", **change})
    assert list(read(cache, data)) == load_examples(data.train, data, base=cache) != list(before)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "label": ({"label": "other"}, {}),
    "text": ({"premise": 7}, {}),
    "empty": ({"hypothesis": "  "}, {}),
    "half": ({"premise": "\ud800"}, {}),
    "weight": ({"w": -1.0}, {"bias_column": "w"}),
    "probabilities": ({"p": 0.3}, {"p_columns": ["p"]}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_said_as_ever_and_each_time(name: str, cache: Path) -> None:
    change, options = WRONG[name]
    fine = {"w": 1.0, "p": 1.0}
    path = write(cache, fine, {**fine, **change})
    lines = path.read_text().splitlines()[2:]  # the first two have no such columns
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as plain:
        load_examples(DATA.train, DATA, base=cache, **options)
    assert f"{path}: row 2: " in str(plain.value)
    for _ in range(2):
        with pytest.raises(InputError) as found:
            read(cache, **options)
        assert str(found.value) == str(plain.value)
    assert not [name for name in (cache / "cache").rglob("*") if name.is_file() and name.name != "lock"]


def test_dropped_rows_are_said_each_time(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write(cache, {"label": "-"})
    for _ in range(2):
        caplog.clear()
        assert len(read(cache)) == 2
        assert "dropped 1 of 3 rows without a gold label" in caplog.text


def test_a_label_that_is_missing_is_said_each_time(cache: Path) -> None:
    write(cache)
    for _ in range(2):
        with pytest.raises(InputError, match="no example of contradiction among 2"):
            read(cache, require_every_label=True)


def test_rows_are_read_again_where_the_first_folder_fills(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def full(number: int) -> Iterator[None] | None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(cache))
    write(cache, {"premise": "third"})
    monkeypatch.setattr(os, "fsync", full)
    assert [one.texts[0] for one in read(cache)] == ["a b", "a b", "third"]


def test_a_file_that_is_written_while_it_is_read_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = write(cache), digests_of

    def meanwhile(examples: Any) -> Any:
        path.write_text(path.read_text() + "\n")
        return plain(examples)

    monkeypatch.setattr("debias.data.shards._digest", lambda file: meanwhile([]) is None or "old")
    source = DataSource(source=str(path))
    with pytest.raises(InputError, match="has changed while it was read"):
        kept_examples(source, DATA)
