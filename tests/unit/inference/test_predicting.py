"""`debias predict`: rows without labels, answered as `debias eval` answers them, in every kind of file, whole."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Command, command_line
from tiny_models import randomize_lora
from tiny_runs import PROMPT, config_for, save_bert, save_llama

from debias.building.model import build_model
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data import generate
from debias.errors import InputError
from debias.inference import predicting
from debias_eval.judging.evaluate import evaluate_run

LABELS = ("entailment", "neutral", "contradiction")
HEADS: dict[str, dict[str, Any]] = {
    "classification": {},
    "causal_lm": {"head": "causal_lm", "prompt": PROMPT},
}
ROWS = [
    {"id": f"n{i}", "premise": row["premise"], "hypothesis": row["hypothesis"], "label": row["label"]}
    for i, row in enumerate(generate("test", 41, 3), start=1)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each head, its adapter off its start."""
    place, found = tmp_path_factory.mktemp("runs"), {}
    for head, changes in HEADS.items():
        base = (save_bert if head == "classification" else save_llama)(place / f"base_{head}")
        config = config_for(base, place / head, **changes)
        model = build_model(config)
        torch.manual_seed(11)
        randomize_lora(model)
        model.save_pretrained(place / head / "adapter")
        (place / head / "config.yaml").write_text(dump_config(config))
        found[head] = place / head
    return found


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


def unlabelled(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """The rows without their labels, in the format that the name says."""
    kept = [{k: v for k, v in row.items() if k != "label"} for row in rows or ROWS]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".jsonl" in path.suffixes:
            file.write("".join(json.dumps(row) + "\n" for row in kept))
        else:
            writer = csv.DictWriter(file, kept[0], delimiter="\t" if ".tsv" in path.suffixes else ",")
            writer.writeheader()
            writer.writerows(kept)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """What was written: `row`, `id`, `label` and a dictionary of probabilities, whatever the format."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        flat = pq.read_table(path).to_pylist()
    else:
        with path.open(newline="") as file:
            flat = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [
        {"row": int(one["row"]), "id": one["id"], "label": one["label"]}
        | {"probabilities": {name: float(one[f"p_{name}"]) for name in LABELS}}
        for one in flat
    ]


def told_by_eval(run: Path, folder: Path) -> list[dict[str, Any]]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    suite = {"name": "mine", "version": 1, "description": "d", "licence": "CC0", "task": "nli", "source": "rows.jsonl"}
    suite |= {"text_fields": ["premise", "hypothesis"], "labels": list(LABELS)}
    (folder / "mine.yaml").write_text(yaml.safe_dump(suite))
    evaluate_run(run, folder / "mine.yaml", overlap="ignore", floor=False)
    with gzip.open(run / "eval" / "mine.predictions.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_rows_are_answered_as_eval_answers_them(
    runs: dict[str, Path],
    head: str,
    debias: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In every format, in chunks of 7 rows, one at a time and 64 at a time."""
    wanted = told_by_eval(runs[head], tmp_path)
    monkeypatch.setattr(predicting, "CHUNK", 7)
    cases = [("a.csv", "a.jsonl", 1), ("b.tsv", "b.csv", 64), ("c.jsonl.gz", "c.parquet", 5), ("d.csv.gz", "d.tsv", 64)]
    for name, out, batch in cases:
        data = unlabelled(tmp_path / name)
        said = debias("predict", runs[head], "--data", data, "-o", tmp_path / out, "--batch-size", batch)
        assert said.code == 0, said.err
        assert "41 rows answered" in caplog.text
        found = read(tmp_path / out)
        assert [one["row"] for one in found] == list(range(1, 42))
        assert [one["id"] for one in found] == [one["id"] for one in wanted]
        assert [one["label"] for one in found] == [one["prediction"] for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert len({one["label"] for one in wanted}) > 1  # a model that says one thing would pass with half of the code


def test_other_columns_another_delimiter_and_a_pattern(runs: dict[str, Path], debias: Command, tmp_path: Path) -> None:
    renamed = [{"key": row["id"], "first": row["premise"], "second": row["hypothesis"]} for row in ROWS]
    with (tmp_path / "all.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, renamed[0], delimiter=";")
        writer.writeheader()
        writer.writerows(renamed)
    unlabelled(tmp_path / "part-1.csv", renamed[:10])
    unlabelled(tmp_path / "part-2.csv", renamed[10:])
    columns = ("--text-field", "first", "--text-field", "second", "--id-field", "key")
    plain = debias("predict", runs["classification"], "--data", unlabelled(tmp_path / "plain.csv"))
    answers = [json.loads(line) for line in plain.out.splitlines()]
    for name, more in (("all.csv", ("--delimiter", ";")), ("part-*.csv", ())):
        said = debias("predict", runs["classification"], "--data", tmp_path / name, *columns, *more)
        assert said.code == 0, said.err
        for one, other in zip(map(json.loads, said.out.splitlines()), answers, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
            assert {**one, "probabilities": 0} == {**other, "probabilities": 0}


def test_an_adapter_of_nobodys_run_is_asked_by_prompt(runs: dict[str, Path], debias: Command, tmp_path: Path) -> None:
    """As `--model --adapter --prompt` in eval; ids that are not there are row numbers."""
    run = runs["causal_lm"]
    data = unlabelled(tmp_path / "rows.jsonl", [{k: v for k, v in row.items() if k != "id"} for row in ROWS[:3]])
    (tmp_path / "prompt.yaml").write_text(yaml.safe_dump({**PROMPT, "max_length": 48}, sort_keys=False))
    given = (
        "--model",
        run.parent / "base_causal_lm",
        "--adapter",
        run / "adapter",
        "--prompt",
        tmp_path / "prompt.yaml",
    )
    said = debias("predict", *given, "--data", data, "--float32")
    own = debias("predict", run, "--data", data)
    assert [json.loads(line)["id"] for line in own.out.splitlines()] == ["row-1", "row-2", "row-3"]
    assert said.out == own.out != ""


def test_memory_holds_one_chunk(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are checked, then read again as they are answered; what was said of a chunk is gone with the next."""
    read_so_far, seen = 0, []
    rows = predicting.unlabelled

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal read_so_far
        for row in rows(*args, **kwargs):
            read_so_far += 1
            yield row

    def watched(predictor: Any, chunk: Any, batch_size: Any = None) -> Any:
        seen.append((read_so_far, len(predictor._known)))
        return answered(predictor, chunk, batch_size)

    answered = predicting.answered
    monkeypatch.setattr(predicting, "CHUNK", 10)
    monkeypatch.setattr(predicting, "unlabelled", counted)
    monkeypatch.setattr(predicting, "answered", watched)
    source = predicting.DataSource(source=str(unlabelled(tmp_path / "rows.csv")))
    assert predicting.predict_rows(runs["classification"], predicting.Asked(source), tmp_path / "o.jsonl") == 41
    assert seen == [(41, 0), *((41 + read, 0) for read in (20, 30, 40, 41))]


def test_a_bad_row_is_found_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 4)
    monkeypatch.setattr(predicting, "load_run", lambda *_, **__: pytest.fail("the model was loaded"))
    settings = {"model": "m", "output_dir": "o", "method": "erm", "data": {"train": "generated"}}
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig.model_validate(settings)))
    broken = [{**row, "premise": "  "} if at == 9 else row for at, row in enumerate(ROWS[:12])]
    source = predicting.DataSource(source=str(unlabelled(tmp_path / "broken.csv", broken)))
    with pytest.raises(InputError, match="row 10: premise is empty"):
        predicting.predict_rows(tmp_path, predicting.Asked(source), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_a_bad_row_leaves_what_was_there(
    runs: dict[str, Path], debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 4)
    broken = [dict(row) for row in ROWS[:12]]
    broken[9]["premise"] = "  "
    for suffix in ("jsonl", "csv", "tsv", "parquet"):
        out = tmp_path / f"out.{suffix}"
        data = unlabelled(tmp_path / "broken.csv", broken)
        assert "row 10: premise is empty" in debias("predict", runs["classification"], "--data", data, "-o", out).error
        assert not out.exists()
        out.write_text("of yesterday")
        assert debias("predict", runs["classification"], "--data", data, "-o", out).code == 2
        assert out.read_text() == "of yesterday"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_refused_in_one_line_before_a_model_loads(
    runs: dict[str, Path], debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = runs["classification"], unlabelled(tmp_path / "rows.csv")
    (tmp_path / "empty.csv").write_text("id,premise,hypothesis\n")
    one = unlabelled(tmp_path / "one.csv", [{"id": 1, "premise": "a man sleeps"}])
    for loads in ("load_run", "load_given"):
        monkeypatch.setattr(predicting, loads, lambda *args, **kwargs: pytest.fail("a model was loaded"))
    records = [run / "eval" / "x.jsonl", run / "run.json", run / "adapter" / "x.csv"]
    wanted = {
        (run, runs["causal_lm"], "--data", data): "2 runs were given",
        (run,): "--data is missing",
        ("--data", data): "nothing to ask",
        (run, "--data", data, "--model", "m"): "--model: a run has its own",
        (run, "--data", tmp_path / "none.csv"): "no such file",
        (run, "--data", tmp_path / "empty.csv"): "no rows",
        (run, "--data", one): "no column 'hypothesis' (text_fields)",
        (run, "--data", data, "--text-field", "premise"): "the model reads 2 (premise, hypothesis)",
        (run, "--data", data, "--id-field", "key"): "no column 'key'",
        (run, "--data", data, "--normalize", "tokens"): "has a head of its own",
        (run, "--data", data, "--normalize", "token"): "normalize is 'token'",
        (run, "--data", data, "-o", tmp_path / "out.txt"): "none of the endings",
        (run, "--data", data, "-o", data): "is the data that is read",
        (run, "--data", data, "-o", tmp_path): "is a folder",
        (run.parent, "--data", data): "give the folder of one run",
        (run, "--data", "t10k-images-idx3-ubyte"): "not pictures",
        **{(run, "--data", data, "-o", path): "a run's own record" for path in records},
    }
    for arguments, line in wanted.items():
        assert line in debias("predict", *arguments).error, arguments


def test_texts_of_several_lines_are_believed_where_quotes_are_said(
    runs: dict[str, Path], debias: Command, tmp_path: Path
) -> None:
    """Without a label no column shows what is a row: `--quotes` says that a text of two lines is one."""
    data = tmp_path / "mail.csv"
    data.write_text('premise,hypothesis\n"hello","dear sir\nthanks, a man"\n"a man, a dog","sleep"\n')
    assert "would be read as one" in debias("predict", runs["classification"], "--data", data).error
    said = debias("predict", runs["classification"], "--data", data, "--quotes")
    assert [json.loads(line)["row"] for line in said.out.splitlines()] == [1, 2]
