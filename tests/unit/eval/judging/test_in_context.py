"""A base judged with examples in context, and beside the runs that were fine-tuned from it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Command, command_line
from completions_server import ANSWERS, NAME, TEMPLATE, Server, save_model, serving
from tiny_runs import PROMPT, save_bert, save_foreign_adapter, save_llama

from debias.config.prompt_file import Shots
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data import Example, generate
from debias.inference.any_model import Given, given_config, given_shots, load_given
from debias_eval.reporting.card import write_cards
from debias_eval.reporting.reproduce import commands
from debias_eval.results.files import read_result
from debias_eval.results.runs import read_run

LABELS = ["entailment", "neutral", "contradiction"]
SAID = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def tuned(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of two seeds: settings, an adapter off its start, and what `run.json` holds."""
    place = tmp_path_factory.mktemp("runs") / "erm"
    for seed in range(2):
        run_folder(llama, place / f"seed{seed}", seed=seed)
    return place


def run_folder(llama: Path, run: Path, **changes: Any) -> Path:
    prompt = {**PROMPT, "verbalizers": SAID}
    values = {"model": str(llama), "head": "causal_lm", "prompt": prompt, "max_length": 60, "method": "erm"}
    data = {"train": {"source": "generated", "limit": 90}}
    config = RunConfig.model_validate({**values, "data": data, "output_dir": str(run), **changes})
    save_foreign_adapter(llama, run / "adapter")
    (run / "config.yaml").write_text(dump_config(config))
    (run / "run.json").write_text(json.dumps({"status": "finished", "steps": 4, "selection": "last"}))
    return run


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return prompt_file(tmp_path)


def prompt_file(folder: Path, **changes: Any) -> Path:
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({"template": PROMPT["template"], "verbalizers": SAID, **changes}, sort_keys=False))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", generate("train", 60, 3))


def write_rows(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def mine(write_suite: Callable[..., Path]) -> Path:
    """A suite of 24 pairs, one label more often than the others."""
    made = generate("validation", 24, 0)
    return write_suite([(str(i), row["premise"], row["hypothesis"], row["label"], None) for i, row in enumerate(made)])


def by_hand(predictor: Any, before: str, example: Example) -> list[float]:
    """log p of each answer behind the examples and the prompt, a pass for each."""
    words = predictor.task.tokenizer
    filled = before + PROMPT["template"].format(premise=example.texts[0], hypothesis=example.texts[1])
    start = list(words(filled)["input_ids"])
    found = []
    for answer in SAID.values():
        ids = list(words(answer, add_special_tokens=False)["input_ids"])
        with torch.inference_mode():
            logits = predictor.model(input_ids=torch.tensor([start + ids])).logits[0].double()
        log_p = torch.log_softmax(logits, dim=-1)
        found.append(math.fsum(float(log_p[len(start) - 1 + k, token]) for k, token in enumerate(ids)))
    return found


def test_every_prompt_begins_with_the_examples(llama: Path, asked: Path, rows: Path) -> None:
    given = Given(model=str(llama), prompt=asked, bf16=False)
    shown = given_shots(given, Shots(3, 1, str(rows)))
    predictor = load_given(given, shown=shown)
    examples = [Example(str(i), (row["premise"], row["hypothesis"]), 0) for i, row in enumerate(generate("test", 7, 1))]
    before = "".join(
        f"{PROMPT['template'].format(premise=one.texts[0], hypothesis=one.texts[1])}{SAID[LABELS[one.label]]}\n\n"
        for one in shown.examples
    )
    got = predictor.label_scores(examples)
    np.testing.assert_allclose(got, [by_hand(predictor, before, one) for one in examples], atol=1e-5)
    assert predictor.description["one_pass"] is True  # the tree, whose head the examples are
    bare = load_given(given).label_scores(examples)
    assert np.abs(got - bare).max() > 0.01


def test_the_verb_writes_what_was_shown(debias: Command, llama: Path, asked: Path, rows: Path, mine: Path) -> None:
    out = mine.parent / "judged"
    words = ("eval", "--model", llama, "--prompt", asked, "--suite", mine, "-o", out, "--float32")
    others = (*words[:-3], "-o", mine.parent / "others", "--float32", "--shots", 4)
    said = debias(*words, "--shots", 4, "--shots-from", rows, "--shots-seed", 2)
    assert said.code == 0, said.err
    shots = read_result(out / "eval" / "mine.json").judge["shots"]
    assert (shots["number"], shots["seed"], shots["source"]) == (4, 2, str(rows))
    told = json.loads((out / "run.json").read_text())
    assert told["judged"]["shots"] == shots
    assert told["judged"]["prompt"]["template"] == PROMPT["template"]
    assert {key: told["asked"][key] for key in ("shots", "shots_seed", "shots_from")} == {
        "shots": 4,
        "shots_seed": 2,
        "shots_from": str(rows),
    }
    assert read_run(out).called == "llama, 4-shot"
    (line,) = commands(read_run(out))
    assert f"--shots 4 --shots-seed 2 --shots-from {rows} -o judged --suite {mine}" in line
    ((card, _),) = write_cards([out])
    assert "- Examples in context: 4 of " in card.read_text()
    assert (
        "with examples in context, which are not exported"
        in debias("export-harness", mine, "--prompt", out, "-o", mine.parent / "tasks").error
    )
    assert "(shots)" in debias(*words, "--shots", 4, "--shots-from", rows).error  # another seed, in the same folder
    assert "(shots)" in debias(*words).error
    assert "are rows of the suite" in debias(*others, "--shots-from", mine.parent / "rows.jsonl").error
    assert debias(*others, "--shots-from", rows).code == 0  # the folder holds no results yet
    bare = mine.parent / "bare"
    assert debias(*words[:-3], "-o", bare, "--float32").code == 0
    compared = debias("compare", bare, out)
    assert compared.code == 0
    assert "judged in different ways: shots" in compared.out
    assert shots["sha256"][:8] in "".join(compared.out.split())
    assert shots["sha256"] not in "".join(compared.out.split())


def refusals(llama: Path, asked: Path, rows: Path, mine: Path) -> list[tuple[list[Any], str]]:
    model = ["--model", llama, "--prompt", asked]
    suite = json.loads(mine.read_text())
    test = mine.parent / suite["source"]
    return [
        ([*model, "--shots", 61, "--shots-from", rows], f"shots: 61 asked for, and {rows} has 60 labelled rows"),
        ([*model, "--shots", 4], f"--shots-from is missing: {asked} has no data of its own"),
        ([*model, "--shots-from", rows], "--shots-from: of --shots alone"),
        ([*model, "--shots-seed", 0], "--shots-seed: of --shots alone"),
        ([*model, "--shots", 4, "--shots-from", test], f"4 of 4 examples of {test} are rows of the suite mine"),
        (
            [*model, "--shots", 40, "--shots-from", rows],
            "shots: 24 of 24 prompts do not fit into max_length, 512",
        ),
        ([*model, "--base", "x"], "--base: of runs, whose base it is"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_what_is_refused_is_one_line(
    debias: Command, llama: Path, asked: Path, rows: Path, mine: Path, case: int
) -> None:
    words, wanted = refusals(llama, asked, rows, mine)[case]
    out = mine.parent / "judged"
    assert wanted in debias("eval", *words, "--suite", mine, "-o", out, "--float32").error
    assert not (out / "eval").exists()


def test_prompts_that_do_not_fit_are_counted_over_all_pieces(
    debias: Command, llama: Path, asked: Path, rows: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("debias_eval.judging.predict.PIECE", 7)
    words = ("--shots", 40, "--shots-from", rows, "--suite", mine, "-o", mine.parent / "out", "--float32")
    assert "shots: 24 of 24 prompts do not fit" in debias("eval", "--model", llama, "--prompt", asked, *words).error


def test_a_folder_of_a_judging_that_was_cut_off_is_somebodys(
    debias: Command, llama: Path, asked: Path, rows: Path, mine: Path
) -> None:
    """Its scores would be gone on with."""
    out = mine.parent / "cut"
    words = ("eval", "--model", llama, "--prompt", asked, "--suite", mine, "-o", out, "--float32")
    assert debias(*words).code == 0
    (out / "eval" / "mine.json").rename(out / "eval" / ".mine.scores")
    assert "(shots)" in debias(*words, "--shots", 2, "--shots-from", rows).error
    assert debias(*words).code == 0  # the same model goes on


def test_a_chat_shows_all_in_one_turn(rows: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text(json.dumps({"template": TEMPLATE, "verbalizers": ANSWERS, "chat": True}))
    given = Given(model=str(folder), prompt=prompt, bf16=False)
    shown = given_shots(given, Shots(2, 0, str(rows)))
    predictor = load_given(given, shown=shown)
    text = predictor.task.tokenizer.decode(predictor.task.prompt.ids(Example("a", ("P", "H"), 0)))
    assert text == f"<s>{shown.text(given_config(given))}P\nIs it so that H?</s><s>"


def test_a_classifier_shows_no_examples(debias: Command, tmp_path: Path, rows: Path, mine: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bert = save_bert(tmp_path / "bert")
    names = dict(enumerate(LABELS))
    head = AutoModelForSequenceClassification.from_pretrained(
        bert, id2label=names, label2id={name: index for index, name in names.items()}
    )
    head.save_pretrained(tmp_path / "head")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "head")
    words = ("eval", "--model", tmp_path / "head", "--suite", mine, "-o", tmp_path / "out")
    assert "has a head of its own and no prompt" in debias(*words, "--shots", 2, "--shots-from", rows).error


def test_a_served_model_is_shown_the_same(
    monkeypatch: pytest.MonkeyPatch, debias: Command, tmp_path: Path, rows: Path, mine: Path
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    folder = save_model(tmp_path / "model")
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text(json.dumps({"template": TEMPLATE, "verbalizers": ANSWERS}))
    shots = ("--shots", 3, "--shots-from", rows, "--suite", mine, "--prompt", prompt, "--limit", 6)
    here, outs = tmp_path / "here", [tmp_path / "text", tmp_path / "tokens"]
    assert debias("eval", "--model", folder, "-o", here, "--float32", *shots).code == 0
    with serving(Server(folder)) as url:
        for out, more in zip(outs, ((), ("--tokenizer", folder)), strict=True):
            said = debias("eval", "--endpoint", url, "--model", NAME, "-o", out, *shots, *more)
            assert said.code == 0, said.err
        many = ("--shots", 15, "--shots-from", rows, "--tokenizer", folder, "-o", tmp_path / "no", *shots[4:])
        prompt.write_text(json.dumps({"template": TEMPLATE, "verbalizers": ANSWERS, "max_length": 8}))
        assert "of 6 prompts do not fit" in debias("eval", "--endpoint", url, "--model", NAME, *many).error
    want = read_result(here / "eval" / "mine.json")
    for out in outs:
        got = read_result(out / "eval" / "mine.json")
        assert got.brier == pytest.approx(want.brier, abs=1e-5)
        assert got.judge["shots"] == want.judge["shots"]


@pytest.mark.parametrize("shots", [0, 3])
def test_runs_beside_their_base(debias: Command, tuned: Path, mine: Path, llama: Path, shots: int) -> None:
    base = mine.parent / "base"
    words = ("eval", tuned, "--suite", mine, "--base", base, *(("--shots", shots) if shots else ()))
    said = debias(*words)
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    assert "erm" in text
    assert "difference [95 % interval] in points" in text
    for why in ("was only judged, not trained here", "erm has 2 seeds, fewer than 5"):
        assert why in text
    assert ("judged in different ways: shots" in text) == bool(shots)
    assert "unknown compute" not in text
    result = read_result(base / "eval" / "mine.json")
    assert result.examples_sha256 == read_result(tuned / "seed0" / "eval" / "mine.json").examples_sha256
    alone = mine.parent / "alone"
    prompt = tuned / "seed0" / "config.yaml"
    more = ("--shots", shots) if shots else ()
    assert debias("eval", "--model", llama, "--prompt", prompt, "--suite", mine, "-o", alone, *more).code == 0
    assert read_result(alone / "eval" / "mine.json").brier == pytest.approx(result.brier, abs=1e-7)
    told = json.loads(debias(*words, "--json").out)
    assert list(told) == ["results", "comparisons"]
    assert set(told["results"]) == {str(base), str(tuned / "seed0"), str(tuned / "seed1")}
    (pair,) = told["comparisons"]
    accuracy = next(one for one in pair["differences"] if one["measure"] == "accuracy")
    assert accuracy["difference"] == pytest.approx(accuracy["second"] - accuracy["first"])
    assert accuracy["first"] == pytest.approx(result.accuracy)


def test_bases_that_cannot_be_judged_are_one_line(
    debias: Command, tuned: Path, tmp_path: Path, mine: Path, llama: Path
) -> None:
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    values = {"model": str(llama), "data": {"train": "generated"}, "output_dir": str(classifier)}
    (classifier / "config.yaml").write_text(dump_config(RunConfig.model_validate(values)))
    other = run_folder(llama, tmp_path / "other", max_length=61)
    suite, base = ("--suite", mine), ("--base", tmp_path / "base")
    refused = debias("eval", classifier, *suite, *base).error
    assert "is a classifier, and its base has no head that was trained" in refused
    assert f"{other} has another max_length than {tuned / 'seed0'}" in debias("eval", tuned, other, *suite, *base).error
    refused = debias("eval", tuned, *suite, "--shots", 2).error
    assert "a run is asked as it was trained; --base FOLDER shows them" in refused
    assert "is the folder of a run" in debias("eval", tuned, *suite, "--base", other).error
    trained = run_folder(llama, tmp_path / "trained", data={"train": {"source": "generated", "limit": 30}})
    words = ("eval", tuned, trained, *suite, *base, "--overlap", "exclude")
    refused = debias(*words).error
    assert f"--overlap exclude: {trained} has another data.train than {tuned / 'seed0'}" in refused
    assert not (tmp_path / "base").exists()


def test_rows_of_one_training_set_are_left_out_beside_its_base(
    debias: Command, tuned: Path, llama: Path, tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    made = [*generate("train", 90, 0)[:6], *generate("validation", 12, 0)]
    rows = [(str(i), row["premise"], row["hypothesis"], row["label"], None) for i, row in enumerate(made)]
    said = debias("eval", tuned, "--suite", write_suite(rows), "--base", tmp_path / "base", "--overlap", "exclude")
    assert said.code == 0, said.err
    results = [read_result(folder / "eval" / "mine.json") for folder in (tmp_path / "base", *tuned.glob("seed*"))]
    assert [result.n for result in results] == [12] * 3
