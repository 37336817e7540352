"""The benchmarks of the ZeRO engine: formulas against counted runs, known sizes, and what a user gets wrong."""

import dataclasses
import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from debias.bench import combine as bench_combination
from debias.bench import zero as bench_zero
from debias.bench.combine import bench_combine, combine_setting
from debias.bench.cost import bench_cost
from debias.bench.cost import table_of as cost_table
from debias.bench.quarter import combination as quarter_combination
from debias.bench.quarter.page import page_of
from debias.bench.quarter.session import Session
from debias.bench.traffic import WHOLE, Traffic
from debias.bench.zero import ZeroSetting, zero_setting
from debias.cli import bench as bench_commands
from debias.errors import InputError
from debias.methods import fused
from debias.plan.payload import MODELS, WAYS, Shape, ring_bytes, sent_bytes, step_payload

SCALARS = 64  # bytes of a step's norms, flags and counts

# Sizes that no number of ranks divides: padding counts.
ODD = {"rounds": 0, "layers": 2, "hidden": 128, "mlp": 161, "vocab": 201, "length": 8, "batch": 1, "lora_r": 3}
COUNTED = [
    {"stage": 3},
    {"stage": 3, "bf16": True, "tied": True, "family": "llama"},
    {"stage": 2},
    {"stage": 2, "bf16": True},
]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_the_formulas_are_what_real_runs_send():
    world = 2
    settings = [ZeroSetting(world=world, **{**ODD, **one}) for one in COUNTED]
    for setting, found in zip(settings, bench_zero.run_ranks(settings), strict=True):
        width = 2 if setting.bf16 else 4
        for way in WAYS:
            counted = found["traffic"][way]["payload"]
            expected = step_payload(
                way, setting.shape, stage=setting.stage, world=world, rank=setting.lora_r, width=width
            )
            scalars = counted.pop("all_reduce") - expected.pop("all_reduce", 0)
            assert 0 <= scalars <= SCALARS, (setting, way)
            assert counted == expected, (setting, way)


def test_known_models_have_their_published_sizes():
    sizes = {name: shape.parameters() for name, shape in MODELS.items()}
    assert sizes == {
        "Qwen3-0.6B": 596_049_920,
        "Qwen3-8B": 8_190_735_360,
        "Qwen3-32B": 32_762_123_264,
        "Llama-3.1-70B": 70_553_706_496,
        "Llama-3.1-405B": 405_853_388_800,
    }
    assert MODELS["Qwen3-8B"].adapter_elements(16) == 43_646_976
    assert MODELS["Qwen3-8B"].adapter_rows(16) == 1_404_864


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_shape_has_the_tensors_of_the_model_that_is_built(family, tied):
    from debias.bench.zero_rank import build_model

    setting = ZeroSetting(**{**ODD, "family": family, "tied": tied})
    with torch.device("meta"):
        model = build_model(setting)
    trained = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == setting.shape.parameters()
    assert sorted(trained) == sorted(setting.shape.adapters(setting.lora_r) * setting.layers)


def test_ring_bytes_and_their_sum():
    assert ring_bytes("all_reduce", 100, 4) == 150
    assert ring_bytes("all_gather", 100, 4) == ring_bytes("reduce_scatter", 100, 4) == 75
    assert ring_bytes("broadcast", 100, 4) == 100
    assert all(ring_bytes(kind, 100, 1) == 0 for kind in ("all_reduce", "all_gather", "broadcast"))
    assert sent_bytes({"all_reduce": 100, "all_gather": 100}, 2) == 150


def test_what_a_way_adds_does_not_grow_with_the_frozen_weights():
    small = MODELS["Qwen3-8B"]
    large = dataclasses.replace(small, vocab=10 * small.vocab)

    def added(shape: Shape, way: str) -> dict[str, int]:
        plain, own = (step_payload(one, shape, stage=3, world=8) for one in ("plain", way))
        return {kind: own[kind] - plain.get(kind, 0) for kind in own}

    assert added(small, "single_pass") == added(large, "single_pass")
    assert added(large, "two_pass")["all_gather"] > added(small, "two_pass")["all_gather"]


def test_the_table_of_costs():
    result = bench_cost(["Qwen3-8B"], [1, 8])
    assert [(row["stage"], row["world"]) for row in result["rows"]] == [(2, 1), (2, 8), (3, 1), (3, 8)]
    alone, many = result["rows"][2:]
    assert alone["plain_bytes"] == 0
    assert alone["single_pass_ratio"] is None
    assert 1 < many["single_pass_ratio"] < 1.01 < 2 <= many["two_pass_ratio"]
    assert cost_table(result).row_count == 4


def test_traffic_counts_the_whole_of_a_collective(monkeypatch):
    for name in WHOLE:
        monkeypatch.setattr(dist, name, getattr(dist, name))  # put back after the test
    traffic = Traffic()
    traffic.install()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        four = torch.ones(4)
        dist.all_reduce(four)
        dist.all_reduce(tensor=four)
        dist.all_gather([torch.empty(4)], four)
        dist.all_gather_into_tensor(torch.empty(4), four)
        dist.reduce_scatter_tensor(torch.empty(4), four)
    finally:
        dist.destroy_process_group()
    expected = {"all_gather": 32, "all_reduce": 32, "reduce_scatter": 16}
    assert traffic.take() == {"payload": expected, "calls": {"all_gather": 2, "all_reduce": 2, "reduce_scatter": 1}}
    assert traffic.take() == {"payload": {}, "calls": {}}


def test_combine_is_measured_against_its_floor():
    result = bench_combine(combine_setting(model="Qwen3-0.6B", lora_r=1, ranks=8, rounds=1))
    row = result["devices"]["cpu"]
    assert result["elements"] == MODELS["Qwen3-0.6B"].adapter_elements(1)
    assert row["seconds"] == pytest.approx(row["gram_seconds"] + row["write_seconds"])
    assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    assert result["left_out"] == {}


@pytest.mark.parametrize(
    ("most", "why"),
    [
        (3, "the Triton kernels do not run here: Failed to find C compiler."),
        (1, "the Triton kernels were not taken: they wrote no Gram and no update"),
    ],
)
def test_kernels_that_do_not_run_cost_no_other_row(monkeypatch, most, why):
    """They are asked on a CPU here; what was measured before them is said, and in one line why they are not."""

    def fails(*given):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    cpu = torch.device("cpu")
    monkeypatch.setattr(fused, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(fused, "_given_up", set())
    monkeypatch.setattr(fused, "MOST_VECTORS", most)
    monkeypatch.setattr(fused, "loaded", lambda: SimpleNamespace(write_gram=fails, write_update=fails))
    monkeypatch.delenv(fused.SWITCH, raising=False)
    monkeypatch.setattr(bench_combination, "ways", lambda device: {"cpu": (cpu, False), "cuda, Triton": (cpu, True)})
    words = ["combine", "--model", "Qwen3-0.6B", "--lora-r", "1", "--ranks", "8", "--rounds", "1"]
    done = CliRunner().invoke(bench_commands.app, words)
    assert done.exit_code == 0, done.exception
    assert f"cuda, Triton is left out: {why}" in done.stderr.splitlines()
    assert [line.split()[1] for line in done.stdout.splitlines() if "│" in line] == ["cpu"]
    fused._given_up.clear()
    item = quarter_combination.timed("Qwen3-0.6B", 8, Session(out="", rehearse=True))
    assert item["left_out"] == f"cuda, Triton: {why}"
    assert item["cpu"]["seconds"] > 0
    page = page_of({"combination": {"items": {"time": {**item, "cuda": item["cpu"]}}}})
    assert f"see below; left out: cuda, Triton: {why} |" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 200}, "--hidden: expected a multiple of 128"),
        ({"family": "gpt2"}, "--family: Input should be 'qwen3' or 'llama', got gpt2"),
        ({"vocab": 5}, "--vocab: Input should be greater than or equal to 64, got 5"),
        ({"lora_r": 0}, "--lora-r: "),
    ],
)
def test_what_a_setting_may_not_be(changes, message):
    with pytest.raises(InputError, match="^" + message.replace("(", r"\(")) as caught:
        zero_setting(**changes)
    assert "\n" not in str(caught.value)


def test_more_ranks_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(InputError, match=r"--world: 3 ranks on 2 cores .* --rounds 0"):
        zero_setting(world=3)
    assert zero_setting(world=3, rounds=0).world == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--world: expected at most the 2 GPUs"):
        zero_setting(world=3, rounds=0)


def test_deepspeed_is_named_where_it_is_missing(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "deepspeed" else found(name, *a))
    with pytest.raises(InputError, match=r"pip install 'debias\[deepspeed\]'"):
        bench_zero.run_ranks([ZeroSetting()])


@pytest.mark.parametrize("make", [lambda name: combine_setting(model=name), lambda name: bench_cost([name])])
def test_a_model_that_is_not_in_the_table(make):
    with pytest.raises(InputError, match=r"--model: 'Qwen9' is not in the table; there are Qwen3-0.6B"):
        make("Qwen9")
