"""The benchmark of judging many rows: it measures a real judging, and says what each process said."""

import json
from pathlib import Path

import pytest
import tiny_runs

from debias.bench.data import made_rows
from debias.bench.small import small_classifier
from debias_eval.judging import many
from debias_eval.judging.many import FEW, ManySetting, bench_many, table_of


def test_fewer_rows_than_it_is_held_against_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        ManySetting(rows=FEW - 1)


@pytest.mark.slow
def test_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: what starts one for each measurement is `bench data`'s as well, and tested there."""

    def measured(folder: Path, suite: str) -> dict[str, float]:
        many.main(folder, suite)
        found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    monkeypatch.setattr(many, "_measured", measured)
    model = tiny_runs.save_bert(tmp_path / "bert")
    result = bench_many(ManySetting(model=str(model), rows=1000), made_rows, small_classifier)
    assert result["few"]["peak_mb"] > 100
    assert result["rows_mb"] > 0.15
    assert result["predictions_mb"] > 0.01
    assert set(result["first"]) == set(result["few"]) == {"peak_mb", "seconds", "cpu_seconds"}
    assert json.loads(json.dumps(result)) == result
    assert table_of(result).row_count == 2
