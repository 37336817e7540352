"""The benchmark of the data's cost: rows as they are said to be, differences, and the verb itself."""

from pathlib import Path

import pytest
import tiny_runs

from debias.bench.data import FEW, LABELS, DataSetting, _beyond, bench_data, made_rows, table_of


def test_rows_are_of_the_length_that_is_said() -> None:
    rows = list(made_rows(500))
    assert rows == list(made_rows(500))
    assert {row["label"] for row in rows} == set(LABELS)
    assert {len(row["premise"].split()) for row in rows} == set(range(8, 23))
    assert {len(row["hypothesis"].split()) for row in rows} == set(range(4, 12))
    assert len({row["premise"] for row in rows}) == 500


def test_the_largest_of_the_ranks_is_told_and_cpu_time_of_all() -> None:
    few = [{"peak_mb": 100.0, "cpu_seconds": 1.0}, {"peak_mb": 90.0, "cpu_seconds": 2.0}]
    found = [{"peak_mb": 130.0, "cpu_seconds": 5.0}, {"peak_mb": 140.0, "cpu_seconds": 2.5}]
    assert _beyond(found, few) == {"peak_mb": 50.0, "cpu_seconds": 4.5}


def test_fewer_rows_than_it_is_held_against_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        DataSetting(rows=FEW - 1)


@pytest.mark.slow
def test_the_verb_measures_a_run(tmp_path: Path) -> None:
    model = tiny_runs.save_bert(tmp_path / "bert")
    result = bench_data(DataSetting(model=str(model), rows=3000, max_length=32))
    assert result["rows_mb"] > 0.4
    assert result["kept_mb"] > result["rows_mb"]
    assert result["few"][0]["peak_mb"] > 100
    assert result["cold"]["cpu_seconds"] > result["warm"]["cpu_seconds"]
    assert table_of(result).row_count == 2
