"""Which way to two gradients, as a table: asked, exact or not, stage, sizes."""

import pytest

from debias.gradients import SOURCES
from debias.gradients.choice import LARGEST_LOCAL_BYTES, WAYS, Choice, choose

LARGE = LARGEST_LOCAL_BYTES // 4 + 1


def exact() -> None:
    return None


def not_exact() -> str:
    return "a layer mixes samples"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("refusal", [exact, not_exact])
def test_auto_takes_what_is_exact_and_fits(stage: int, large: bool, refusal: object) -> None:
    sizes = {"selected": LARGE, "whole": LARGE * (5 if large else 50)}
    found = choose("auto", refusal, stage=stage, **sizes)  # type: ignore[arg-type]
    if stage >= 2 and large:
        assert found.name == "two_pass"
        assert "20 % of the model" in str(found.why)
    elif refusal is not_exact:
        assert found == Choice(
            "two_pass" if stage == 3 else "shared_forward", "single_pass is not exact here: a layer mixes samples"
        )
    else:
        assert found == Choice("single_pass")


def test_a_large_share_of_a_small_model_is_no_reason() -> None:
    assert choose("auto", exact, stage=3, selected=1000, whole=1000).name == "single_pass"


@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_a_rule_of_one_gradient_takes_the_plain_pass(way: str) -> None:
    assert choose(way, not_exact, uses_bias=False) == Choice("plain")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_asked_for_is_taken_where_it_is_right(way: str) -> None:
    assert choose(way, exact) == Choice(way)
    assert choose(way, exact).name in SOURCES


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ("one_pass", {}, "gradients is 'one_pass', not one of auto, single_pass, shared_forward, two_pass"),
        ("single_pass", {"refusal": not_exact}, "not exact here: a layer mixes samples"),
        ("single_pass", {"compiled": True}, "torch_compile goes with gradients auto"),
        ("shared_forward", {"stage": 3}, "not safe at stage 3"),
        ("shared_forward", {"stage": 3, "uses_bias": False}, "not safe at stage 3"),
    ],
)
def test_what_would_be_wrong_is_refused(asked: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(asked, **options)  # type: ignore[arg-type]


def test_exactness_is_looked_at_only_where_it_matters() -> None:
    def dear() -> str:
        raise AssertionError("asked")

    for way in ("shared_forward", "two_pass"):
        choose(way, dear)
    choose("auto", dear, uses_bias=False)
    choose("auto", dear, stage=3, selected=LARGE, whole=LARGE)
