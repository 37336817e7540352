"""`debias bench pass`: a small measurement."""

from pathlib import Path

import pytest
from tiny_runs import save_bert

from debias.bench.asked import AskedSetting, bench_asked, table_of


@pytest.mark.slow
def test_a_small_measurement(tmp_path: Path) -> None:
    found = bench_asked(AskedSetting(model=str(save_bert(tmp_path)), rows=12, batch=4, rounds=2))
    assert min(found["epoch_seconds"], found["pass_seconds"]) >= 0
    assert 0 < found["ratio_min"] <= found["ratio"] <= found["ratio_max"]
    assert table_of(found).row_count == 1
