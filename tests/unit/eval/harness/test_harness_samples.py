"""debias_eval.harness.samples: samples files as the harness writes them become results, damaged ones a clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias.config.run import RunConfig
from debias.errors import InputError
from debias_eval.harness.export import export
from debias_eval.harness.samples import import_samples, read_samples
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.results.files import predictions_path, read_predictions, read_results

ANSWERS = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
CONFIG: dict[str, Any] = {
    "model": "m",
    "head": "causal_lm",
    "data": {"train": "t.jsonl"},
    "output_dir": "o",
    "prompt": {"template": "{premise}\nSo: {hypothesis}\nAnswer:", "verbalizers": ANSWERS},
}
TWO_WAY: dict[str, Any] = {
    "labels": ["entailment", "not_entailment"],
    "merge": {"neutral": "not_entailment", "contradiction": "not_entailment"},
    "group_field": "group",
    "gap": {"aligned": ["easy"], "conflicting": ["hard"]},
}
LABELS = tuple(ANSWERS)


def rows(n: int = 40) -> list[tuple[str, str, str, str, str]]:
    gold = ("entailment", "not_entailment")
    return [
        (f"id{i}", f"premise {i}\r\n\u2028", f"hypothesis {i}", gold[i % 2], ("easy", "hard")[i % 3 == 0])
        for i in range(n)
    ]


def scores(n: int) -> np.ndarray:
    return -np.random.default_rng(5).exponential(4, size=(n, 3))


def log_samples(out: Path, task: str, scores_NM: np.ndarray, target: Path, prompt: str | None = None) -> Path:
    """A samples file as lm-eval 0.4.13 writes it (`EvaluationTracker.save_results_samples`): numbers are strings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with (out / f"{task}.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            doc = json.loads(line)
            asked = prompt or f"{doc['premise']}\nSo: {doc['hypothesis']}\nAnswer:"
            pairs = [[str(value), "False"] for value in scores_NM[number]]
            sample = {
                "doc_id": number,
                "doc": doc,
                "target": str(doc["debias_target"]),
                "arguments": {
                    f"gen_args_{i}": {"arg_0": asked, "arg_1": a} for i, a in enumerate(doc["debias"]["answers"])
                },
                "resps": [[pair] for pair in pairs],
                "filtered_resps": pairs,
                "filter": "none",
                "metrics": ["acc"],
                "acc": 1.0,
            }
            lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    target.write_text("".join(lines), encoding="utf-8")
    return target


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> Path:
    return write_suite(rows(), **TWO_WAY)


@pytest.fixture
def samples(suite: Path, tmp_path: Path) -> Path:
    export([str(suite)], RunConfig.model_validate(CONFIG), tmp_path / "tasks", compare_tokens=False)
    return log_samples(
        tmp_path / "tasks", "debias_mine", scores(40), tmp_path / "log" / "m" / "samples_debias_mine_1.jsonl"
    )


def changed(samples: Path, change: Callable[[dict[str, Any]], None], line: int = 2) -> None:
    lines = samples.read_text(encoding="utf-8").split("\n")
    sample = json.loads(lines[line])
    change(sample)
    lines[line] = json.dumps(sample)
    samples.write_text("\n".join(lines), encoding="utf-8")


class Same:
    """A predictor with the scores that were logged."""

    labels = LABELS
    text_fields = ("premise", "hypothesis")

    def label_scores(self, examples: Any, batch_size: int | None = None) -> np.ndarray:
        return scores(len(examples))


def test_results_are_those_of_eval(samples: Path, suite: Path, tmp_path: Path) -> None:
    (result,) = import_samples([samples], tmp_path / "imported", [str(suite)])
    (tmp_path / "judged").mkdir()
    expected = evaluate_run(tmp_path / "judged", str(suite), predictor=Same())
    differing = {"seconds", "judge"}
    assert {k: v for k, v in result.items() if k not in differing} == {
        k: v for k, v in expected.items() if k not in differing
    }
    assert result["groups"].keys() == {"easy", "hard"}
    assert result["gap"] is not None
    assert result["judge"]["by"] == "lm-evaluation-harness"
    assert read_results(tmp_path / "imported")["mine"].n == 40
    both = [read_predictions(predictions_path(tmp_path / name, "mine")) for name in ("imported", "judged")]
    assert both[0] == both[1]


def test_against_plain_counting(samples: Path, suite: Path, tmp_path: Path) -> None:
    """Accuracy by group by hand: the best of three answers, merged to two labels."""
    (result,) = import_samples([samples.parent.parent], tmp_path / "imported", [str(suite)])
    right: dict[str, list[bool]] = {"easy": [], "hard": []}
    for (_, _, _, gold, group), score in zip(rows(), scores(40), strict=True):
        best = LABELS[int(np.argmax(score))]
        right[group].append((best == "entailment") == (gold == "entailment"))
    for group, hits in right.items():
        assert result["groups"][group]["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert result["gap"] == pytest.approx(np.mean(right["easy"]) - np.mean(right["hard"]))


def test_a_subset_is_judged_as_the_subset(suite: Path, tmp_path: Path) -> None:
    export([str(suite)], RunConfig.model_validate(CONFIG), tmp_path / "t", limit=9, seed=4, compare_tokens=False)
    path = log_samples(tmp_path / "t", "debias_mine", scores(9), tmp_path / "samples_x.jsonl")
    (result,) = import_samples([path], tmp_path / "imported", [str(suite)])
    assert (result["n"], result["available"], result["limit"], result["limit_seed"]) == (9, 40, 9, 4)


DAMAGE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda s: s.pop("doc"), "line 3: not a sample of a task that `debias export-harness` wrote"),
    (lambda s: s["doc"].pop("debias"), "line 3: not a sample of a task"),
    (lambda s: s["doc"]["debias"].update(version="new"), "line 3: damaged: doc.debias.version: "),
    (lambda s: s["doc"]["debias"].pop("rows"), "line 3: damaged: doc.debias.rows: "),
    (lambda s: s["doc"]["debias"].update(version=2), "line 3: is of another export than the lines before it"),
    (lambda s: s["doc"].pop("premise"), "line 3: damaged: a text of 'id2' is missing"),
    (lambda s: s["doc"].update(premise=3), "line 3: damaged: a text of 'id2' is missing"),
    (lambda s: s.pop("filtered_resps"), "line 3: damaged: filtered_resps is None"),
    (lambda s: s.update(filtered_resps=[["a", "b"]] * 3), "line 3: damaged: filtered_resps is"),
    (lambda s: s.update(filtered_resps=[["-1", "x"]] * 2), "line 3: damaged: 2 log-likelihoods for 3 labels"),
    (lambda s: s.update(filtered_resps=[["nan", "x"]] * 3), "line 3: .* are not log-likelihoods"),
    (lambda s: s.update(filtered_resps=[["1.5", "x"]] * 3), "line 3: .* are not log-likelihoods"),
    (lambda s: s.update(arguments=[]), "line 3: damaged: arguments"),
    (
        lambda s: s["arguments"]["gen_args_1"].update(arg_1=" perhaps"),
        r"line 3: was asked for .*perhaps.*, exported were",
    ),
    (lambda s: s["doc"]["debias"].update(id="id1") or s["doc"].update(rows1()), "line 3: answers 'id1' a second time"),
]


def rows1() -> dict[str, str]:
    return {"premise": rows()[1][1], "hypothesis": rows()[1][2]}


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_damaged_line_is_named(
    change: Callable[[dict[str, Any]], None], message: str, samples: Path, suite: Path, tmp_path: Path
) -> None:
    changed(samples, change)
    with pytest.raises(InputError, match=message) as caught:
        import_samples([samples], tmp_path / "imported", [str(suite)])
    assert "\n" not in str(caught.value)
    assert str(samples) in str(caught.value)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"doc": ', "line 1: damaged: "),
        (b"[1]\n", "line 1: holds list, expected a logged sample"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "line 1: damaged: "),
    ],
)
def test_a_file_that_is_no_samples_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "samples_x.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_samples(path)


def test_half_a_file(samples: Path) -> None:
    text = samples.read_text(encoding="utf-8")
    samples.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2[01]: damaged"):
        read_samples(samples)


def test_fewer_rows_than_exported(samples: Path) -> None:
    """`lm_eval --limit` takes the first rows, which in HANS are all of one heuristic."""
    lines = samples.read_text(encoding="utf-8").split("\n")
    samples.write_text("\n".join(lines[:10]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds 10 of the 40 exported rows.*--limit"):
        read_samples(samples)


def test_another_version_of_the_suite(samples: Path, write_suite: Callable[..., Path], tmp_path: Path) -> None:
    path = write_suite(rows(), **TWO_WAY, version=7)
    with pytest.raises(InputError, match="is of version 1 of the suite mine, here it has version 7"):
        import_samples([samples], tmp_path / "imported", [str(path)])


def test_data_that_changed_under_the_same_version(
    samples: Path, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_suite([*rows()[:39], ("id39", "another", "text", "entailment", "easy")], **TWO_WAY)
    with pytest.raises(InputError, match=r"holds no answers for 1 of 40 examples \(first: id39\)"):
        import_samples([samples], tmp_path / "imported", [str(path)])


def test_a_suite_that_nobody_knows(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown suite 'mine'"):
        import_samples([samples], tmp_path / "imported")


def test_two_files_of_one_suite(samples: Path, suite: Path, tmp_path: Path) -> None:
    again = samples.with_name("samples_debias_mine_2.jsonl")
    again.write_bytes(samples.read_bytes())
    with pytest.raises(InputError, match="has the same suite 'mine' as"):
        import_samples([samples.parent], tmp_path / "imported", [str(suite)])


def test_no_samples_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no samples_"):
        import_samples([tmp_path], tmp_path / "imported")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        import_samples([tmp_path / "samples_x.jsonl"], tmp_path / "imported")


def test_changed_prompts_are_counted(
    suite: Path, tmp_path: Path, samples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = log_samples(tmp_path / "tasks", "debias_mine", scores(40), tmp_path / "samples_x.jsonl", prompt="few shots")
    (result,) = import_samples([path], tmp_path / "imported", [str(suite)])
    assert result["judge"]["changed_prompts"] == 40
    assert "40 prompts are not as exported" in caplog.text
    assert read_samples(samples).description["changed_prompts"] == 0


def test_a_chat_prompt_without_its_template(suite: Path, tmp_path: Path) -> None:
    chat = {**CONFIG, "prompt": {**CONFIG["prompt"], "chat": True}}
    export([str(suite)], RunConfig.model_validate(chat), tmp_path / "t", compare_tokens=False)
    plain = log_samples(tmp_path / "t", "debias_mine", scores(40), tmp_path / "samples_x.jsonl")
    with pytest.raises(InputError, match=r"line 1: .*give lm_eval --apply_chat_template"):
        read_samples(plain)
    rendered = log_samples(tmp_path / "t", "debias_mine", scores(40), tmp_path / "samples_y.jsonl", prompt="<user>...")
    assert read_samples(rendered).description["changed_prompts"] is None, "no tokenizer said what it should be"
