"""A benchmark of one step runs every way that it names, in 32 and 16 bits, and its errors are those of rounding."""

import pytest
from tiny_runs import save_bert

from debias.bench.step import Setting, bench_step


@pytest.mark.parametrize("bf16", [False, True])
def test_every_way_takes_its_step(tmp_path, bf16):
    ways = ("single_pass", "two_pass", "logit_correction", "balanced_edge", "sam", "smart")
    setting = Setting(
        model=str(save_bert(tmp_path)),
        batch=4,
        length=8,
        rounds=1,
        bf16=bf16,
        ways=ways[:-1] if bf16 else ways,
    )
    found = bench_step(setting, memory=False)
    assert set(setting.ways) <= set(found["ways"])
    errors = {way: one["error_to_two_pass"] for way, one in found["ways"].items() if "error_to_two_pass" in one}
    assert errors["single_pass"] < (0.2 if bf16 else 1e-4)
