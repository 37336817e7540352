"""`debias bench growth`: the fit of an exponent, and a small measurement."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from debias.bench.growth import AXES, WAYS, bench_growth, fit, growth_setting, table_of
from debias.bench.growth_picture import picture_of
from debias.errors import InputError

SIZES = (2, 4, 8, 16, 32)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("a", [0.0, 3.0])
def test_the_exponent_is_found_beside_what_does_not_grow(a, p):
    found = fit(SIZES, [a + 0.25 * n**p for n in SIZES])
    assert found["p"] == pytest.approx(p, abs=0.02)
    assert found["a"] == pytest.approx(a, abs=0.1)
    assert found["error"] < 0.01


def test_noise_moves_it_little():
    noise = np.random.default_rng(0).uniform(0.98, 1.02, len(SIZES))
    assert fit(SIZES, [(1 + n) * e for n, e in zip(SIZES, noise, strict=True)])["p"] == pytest.approx(1, abs=0.15)


def test_what_does_not_grow_has_no_exponent():
    assert fit(SIZES, [10.0, 10.2, 9.9, 10.1, 10.0])["p"] == 0


def test_an_axis_that_there_is_not():
    with pytest.raises(InputError, match="--axis: 'depth' is not one of batch"):
        growth_setting(axes=("depth",))


@pytest.mark.slow
def test_a_small_measurement():
    found = bench_growth(growth_setting(axes=("batch",), sizes=3, hidden=64, depth=2, rounds=1))
    batch = found["axes"]["batch"]
    assert batch["sizes"] == list(AXES["batch"][:3])
    for way in WAYS:
        assert min(batch[way]["seconds"]) > 0
        assert batch[way]["fits"]["bytes"]["p"] == pytest.approx(1, abs=0.1)  # of tensors: no noise
    assert table_of(found).row_count == 2
    assert len(ET.fromstring(picture_of(found)).findall("{*}circle")) == 6
