"""The verb `debias eval` without a model: which suites are judged, which are left out, whose results a folder holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from debias.errors import InputError, Unreachable
from debias_eval.judging.judge import Judging, judge
from debias_eval.judging.models import judge_given

ROWS = [(str(i), f"premise {i}", f"ends in {label}", label, None) for i, label in enumerate(["yes", "no"] * 6)]


def never() -> Any:
    raise AssertionError("the model was loaded")


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch, write_suite: Callable[..., Path]) -> str:
    """`both`: a suite with labels yes and no, and `generated`, which has others."""
    mine = str(write_suite(ROWS, labels=["yes", "no"], task="nli"))
    monkeypatch.setattr("debias_eval.reading.collection.collection_names", lambda: ["both"])
    monkeypatch.setattr("debias_eval.reading.collection.members", lambda name: ("generated", mine))
    return mine


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_a_collection_leaves_out_what_does_not_fit(
    collection: str, run: Path, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "debias_eval")
    outcome = judge(run, ["both"], lambda: fake(("yes", "no")))
    assert [result["suite"] for result in outcome.results] == ["mine"]
    assert list(outcome.skipped) == ["generated"]
    assert "skipped: suite generated: the model answers ['yes', 'no']" in caplog.text
    assert caplog.text.rstrip().endswith("not judged: generated")
    assert (run / "eval" / "mine.json").exists()
    assert not (run / "eval" / "generated.json").exists()


@pytest.mark.parametrize("fault", [Unreachable, InputError])
def test_a_server_that_is_gone_is_no_suite_left_out(
    collection: str, run: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, fault: type[InputError]
) -> None:
    """What is wrong with one suite leaves it out; what is wrong with the server ends the command."""

    def broken(*_: Any) -> Any:
        raise fault("endpoint: it is gone")

    predictor = fake(("yes", "no"))
    monkeypatch.setattr(predictor, "label_scores", broken)
    with pytest.raises(InputError) as raised:
        judge(run, ["both"], lambda: predictor)
    assert (type(raised.value), str(raised.value).startswith("endpoint:")) == (fault, fault is Unreachable)


def test_a_suite_that_is_named_must_fit(collection: str, run: Path, fake: Any) -> None:
    with pytest.raises(InputError, match="suite generated: the model answers"):
        judge(run, ["generated", collection], lambda: fake(("yes", "no")))
    assert not (run / "eval").exists()


@pytest.mark.parametrize("names", [["both", "generated"], ["generated", "both"]])
def test_named_beside_its_collection_counts_as_named(collection: str, run: Path, names: list[str]) -> None:
    with pytest.raises(InputError, match="suite generated: the model answers"):
        judge(run, names, never, labels=("yes", "no"))


def test_what_cannot_fit_is_found_before_the_model_is_loaded(collection: str, run: Path) -> None:
    with pytest.raises(InputError, match="suite generated: the model answers"):
        judge(run, ["generated"], never, labels=("yes", "no"))
    with pytest.raises(InputError, match="unknown suite"):
        judge(run, ["nothing"], never)
    with pytest.raises(InputError, match=r"no suite of both can be judged: .* \(and 1 more, above\)"):
        judge(run, ["both"], never, labels=("sad", "glad"), text_fields=("premise", "hypothesis"))


def test_data_that_is_not_there(run: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    monkeypatch.setattr("debias_eval.judging.judge.where_from", lambda suite: "missing")
    with pytest.raises(InputError, match="suite generated: its data is not there: generated, DEBIAS_DATA"):
        judge(run, ["generated"], never, labels=("entailment", "neutral", "contradiction"))


def test_settings_reach_every_suite(collection: str, run: Path, fake: Any) -> None:
    outcome = judge(run, [collection], lambda: fake(("yes", "no")), judging=Judging(limit=5, seed=3, floor=False))
    (result,) = outcome.results
    assert (result["n"], result["limit"], result["limit_seed"]) == (5, 5, 3)
    assert result["partial_input"] is None


def test_a_folder_holds_the_results_of_one_model(
    run: Path, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    import yaml

    answers = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text(yaml.safe_dump({"template": "{premise} {hypothesis}", "verbalizers": answers}, sort_keys=False))
    monkeypatch.setattr("debias.inference.any_model.load_given", lambda given, scoring: fake())
    given = {"model": "some/model", "prompt": prompt}
    out = tmp_path / "out"
    with pytest.raises(InputError, match="unknown suite"):
        judge_given(out, ["nothing"], given)
    assert not out.exists()
    few = Judging(limit=30)
    judge_given(out, ["generated"], given, judging=few)
    told = json.loads((out / "run.json").read_text())
    assert told["judged"]["prompt"]["verbalizers"] == answers
    assert told["judged"]["model"] == "some/model"
    judge_given(out, ["generated_ood"], given, judging=few)
    assert sorted(path.name for path in (out / "eval").glob("*.json")) == ["generated.json", "generated_ood.json"]
    with pytest.raises(InputError, match=r"another model or setting \(normalize\)"):
        judge_given(out, ["generated"], given, normalize="tokens")
    (run / "config.yaml").write_text("model: x\n")
    with pytest.raises(InputError, match="is the folder of a run"):
        judge_given(run, ["generated"], given)
    from debias_eval.results.runs import read_run

    read = read_run(out)
    assert read.method == {"name": "model"}
    assert read.results["generated"].n == 30


def _given(folder: Path, max_length: int = 60) -> dict[str, Any]:
    """A model in a folder, with weights, and a prompt file beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"first")
    answers = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
    prompt = {"template": "{premise} {hypothesis}", "verbalizers": answers, "max_length": max_length}
    (folder / f"prompt{max_length}.yaml").write_text(json.dumps(prompt))
    return {"model": str(folder), "prompt": folder / f"prompt{max_length}.yaml"}


def test_a_folder_holds_results_of_one_length_and_one_set_of_weights(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("debias.inference.any_model.load_given", lambda given, scoring: fake())
    given, out, few = _given(tmp_path / "model"), tmp_path / "out", Judging(limit=10, floor=False)
    caplog.set_level("INFO", logger="debias_eval")
    judge_given(out, ["generated"], given, judging=few)
    assert "overlap with the training data not checked: nobody says here what" in caplog.text
    with pytest.raises(InputError, match=r"another model or setting \(max_length\); give another -o"):
        judge_given(out, ["generated"], _given(tmp_path / "model", 14), judging=few)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"second")
    with pytest.raises(InputError, match=r"another model or setting \(weights\); give another -o"):
        judge_given(out, ["generated"], given, judging=few)
    told = json.loads((out / "run.json").read_text())
    for key in ("max_length", "weights"):
        del told["judged"][key]
    (out / "run.json").write_text(json.dumps(told))  # of a version that did not say them
    assert judge_given(out, ["generated_ood"], given, judging=few).results
    told["judged"]["normalize"] = "tokens"
    (out / "run.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"another model or setting \(normalize\); give another -o"):
        judge_given(out, ["generated_ood"], given, judging=few)
