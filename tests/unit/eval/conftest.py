import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data.examples import Example
from debias_eval.results.files import write_results
from debias_eval.scores.scoring import Judged, score

DATA = Path(os.environ.get("DEBIAS_DATA", Path(__file__).parents[4] / "shared" / "data"))
NLI = ("entailment", "neutral", "contradiction")


class FakePredictor:
    """Answers with the label whose name is the last word of the last text, as sure as `log_odds`."""

    def __init__(self, labels: Sequence[str] = NLI, text_fields: Sequence[str] = ("premise", "hypothesis")):
        self.labels = tuple(labels)
        self.text_fields = tuple(text_fields)
        self.seen: list[Example] = []

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> np.ndarray:
        self.seen = list(examples)
        scores = np.zeros((len(examples), len(self.labels)))
        for i, example in enumerate(examples):
            word = example.texts[-1].split()[-1]
            scores[i, self.labels.index(word) if word in self.labels else 0] = 3.0
        return scores


@pytest.fixture
def fake() -> type[FakePredictor]:
    return FakePredictor


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not DATA.is_dir():
        pytest.skip("no local data: set DEBIAS_DATA")
    monkeypatch.setenv("DEBIAS_DATA", str(DATA))
    return DATA


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """A suite of a user's own: rows as (id, premise, hypothesis, label, group) beside its YAML."""

    def write(rows: Sequence[tuple[str, str, str, str, str | None]], **settings: Any) -> Path:
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        keys = ("id", "premise", "hypothesis", "label", "group")
        (folder / "rows.jsonl").write_text(
            "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
        )
        base = {"name": "mine", "version": 1, "description": "Mine.", "licence": "CC0"}
        base |= {"task": "nli", "source": "rows.jsonl"}
        (folder / "suite.yaml").write_text(json.dumps(base | settings))  # JSON is YAML
        return folder / "suite.yaml"

    return write


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A finished run folder with results; `right` of each group's 100 examples are answered right."""
    return partial(run_in, tmp_path)


@pytest.fixture(scope="session")
def make_run_in() -> Callable[..., Path]:
    """The same in a folder that is given first: for runs that several tests start from."""
    return run_in


def run_in(
    place: Path, name: str, method: str = "edge", seed: int = 0, suites: dict[str, dict[str, int]] | None = None
) -> Path:
    run = place / name
    run.mkdir(parents=True)
    config = RunConfig.model_validate(
        {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": str(run), "method": method, "seed": seed}
    )
    (run / "config.yaml").write_text(dump_config(config))
    info = {"status": "finished", "seed": seed, "seconds": 75.4, "steps": 40, "versions": {"torch": "2.9"}}
    (run / "run.json").write_text(json.dumps(info | {"commit": "abc", "acts_on": {"tensors": 4, "elements": 4096}}))
    lines = [{"step": i, "loss": 1 / i, "cosine": 0.9, "removed_share": 0.1 * i} for i in range(1, 41)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for suite, groups in (suites or {}).items():
        put_result(run, suite, groups)
    return run


def put_result(run: Path, suite: str, groups: dict[str, int], **more: Any) -> Path:
    judged, numbers = _scored(tuple(groups.items()))
    names = judged.groups
    result = {"suite": suite, "version": 1, "description": "What it is.", "available": len(names), **deepcopy(numbers)}
    examples = [Example(str(i), ("a", "b"), 0, name) for i, name in enumerate(names)]
    return write_results(run, result | {"examples_sha256": "same"} | more, examples, judged)


@cache
def _scored(groups: tuple[tuple[str, int], ...]) -> tuple[Judged, dict[str, Any]]:
    """Answers of 100 examples a group and their scores: intervals take longest, and many tests want the same."""
    names = tuple(name for name, _ in groups for _ in range(100))
    prediction = np.array([int(i >= right) for _, right in groups for i in range(100)])
    gold = np.zeros(len(names), dtype=np.int64)
    judged = Judged(("yes", "no"), gold, prediction, np.eye(2)[prediction] * 0.8 + 0.1, names)
    return judged, score(judged, ["bias-aligned"], ["bias-conflicting"])


@pytest.fixture
def put() -> Callable[..., Path]:
    return put_result
