"""Bytes that a rank sends, against the formulas that are held against counted runs, and against counted runs."""

import pytest
from planned_runs import run_of

from debias.bench.cost import bench_cost
from debias.bench.zero import ZeroSetting
from debias.bench.zero_rank import config_of
from debias.methods import ComponentClip, DiGraP, MainOnly
from debias.plan.communication import bytes_sent
from debias.plan.count import count
from debias.plan.gathers import gathers_of
from debias.plan.memory import Sharding
from debias.plan.payload import step_payload
from debias.plan.shapes import find_config


@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-8B", "Qwen3-32B"])  # a tied head, and two of their own
def test_communication_is_that_of_the_counted_formulas(model):
    run, config = run_of(model, bf16=True, deepspeed="zero3", lora_r=16), find_config(model)
    counts, gathers = count(run, config), gathers_of(run, config)
    for row in bench_cost([model], [8, 63, 64])["rows"]:
        spread = Sharding(row["world"], row["stage"])  # the formulas are for nothing kept whole
        for way in ("plain", "single_pass", "two_pass"):
            expected = row["plain_bytes"] + row.get(f"{way}_added_bytes", 0)
            assert bytes_sent(counts, spread, way, gathers) == pytest.approx(expected, abs=1), (row, way)


# What two ranks of the setting below gathered in a step with activation checkpointing, counted, tied or not.
COUNTED = {"plain": 4_645_376, "single_pass": 4_399_616, "two_pass": 9_290_752}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_gathers_of_a_real_step(tied):
    setting = ZeroSetting(layers=3, hidden=128, mlp=160, vocab=200, lora_r=4, tied=tied)
    config = config_of(setting)

    def gathered(**settings):
        run = run_of(deepspeed="zero3", lora_r=4, adapter={"targets": "all-linear"}, **settings)
        gathers = gathers_of(run, config)
        return sum(gathers(size.name) * size.bytes for size in count(run, config).sizes)

    assert gathered() == step_payload("plain", setting.shape, stage=3, world=2, rank=4, width=4)["all_gather"]
    for way, counted in COUNTED.items():  # at most: what a layer ends with is still there when it is computed again
        assert 1 <= (2 if way == "two_pass" else 1) * gathered(gradient_checkpointing=True) / counted < 1.06


def test_where_all_trains_the_backward_pass_comes_through_all():
    gathers = gathers_of(run_of(adapter="full", deepspeed="zero3"), find_config("Qwen3-8B"))
    layer = "model.layers.{}.self_attn.q_proj.weight"
    assert [gathers(name) for name in ("model.embed_tokens.weight", layer.format(0), layer.format(35))] == [2, 2, 2]
    frozen = gathers_of(run_of(deepspeed="zero3", adapter={"targets": ["up_proj"]}), find_config("Qwen3-8B"))
    layer, embedding = (f"base_model.model.{name}" for name in (layer, "model.embed_tokens.weight"))
    assert [frozen(name) for name in (embedding, layer.format(0), layer.format(35))] == [1, 1, 2]


def test_each_micro_batch_gathers_and_reduces_for_itself():
    counts = count(run_of(deepspeed="zero3"), find_config("Qwen3-0.6B"))

    def sent(stage, accumulation):
        return bytes_sent(counts, Sharding(8, stage), "single_pass", lambda name: 2, accumulation=accumulation)

    assert sent(1, 4) == sent(1, 1)
    assert sent(2, 1) < sent(2, 4) < 4 * sent(2, 1)
    assert sent(3, 4) == pytest.approx(4 * sent(3, 1), rel=0.01)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_rule_sends_the_inner_products_of_what_it_looks_at(stage):
    """Of three vectors six sums, of one one, and two flags and two lengths a tensor, beside what plain training sends.

    Rows that lie on both ranks have their sums too: none at stage 0, at most one where all tensors lie end to end.
    """
    counts = count(run_of(deepspeed="zero3"), find_config("Qwen3-0.6B"))
    plain, clipped, digrap = (
        bytes_sent(counts, Sharding(2, stage), "plain", lambda name: 2, looks_at=rule.combines)
        for rule in (MainOnly(), ComponentClip(), DiGraP())
    )
    selected = [size for size in counts.sizes if size.selected]
    # Between two ranks an all-reduce sends its payload once.
    for sent, sums in ((digrap, 6), (clipped, 1)):
        shared = sum(size.rows % 2 for size in selected) if stage == 3 else int(stage == 2)
        each = sums * 8 * (len(selected) + shared) + 4 * 8 * len(selected)
        assert sent - plain == pytest.approx(each, abs=1)
