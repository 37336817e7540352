"""One measured case against its prediction, in a process of its own, and the table."""

import pytest
from tiny_models import family_config

from debias.bench.plan import BOUND, SIZES, VARIANTS, Case, cases, table_of, validate
from debias.errors import InputError


@pytest.mark.slow
def test_a_prediction_is_measured(tmp_path):
    family_config("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=4).save_pretrained(tmp_path)
    result = validate([Case(model=str(tmp_path), batch=8, length=128)])
    (row,) = result["rows"]
    assert row["measured"] > 30e6
    assert abs(row["error"]) < BOUND
    assert row["within"]
    assert table_of(result).row_count == 1


def test_the_cases_of_each_model():
    found = cases(SIZES)
    assert len(found) == len(SIZES) * len(VARIANTS)
    assert len({case.model_dump_json() for case in found}) == len(found)
    with pytest.raises(InputError, match="--model: 'gpt9' is not validated here"):
        cases(["gpt9"])
