"""The GPU benchmarks on a CPU: interleaving, bounds, bisection with a memory that runs out, tables and JSON."""

import json

import pytest
import torch
from command_line import command_line

from debias.bench import gpu
from debias.bench.gpu_measure import PASSES, WAYS, Timed, fits, floors, interleave, largest_batch
from debias.bench.gpu_model import bench_run, build, shape_config
from debias.errors import InputError
from debias.plan.count import count

TINY = {"shape": "tiny", "device": "cpu", "batch": 2, "length": 16, "rounds": 1, "steps": 1}
needs_bitsandbytes = pytest.mark.usefixtures("_bitsandbytes")


@pytest.fixture
def _bitsandbytes():
    pytest.importorskip("bitsandbytes")


def test_without_a_gpu_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = command_line(monkeypatch, capsys)("bench", "gpu").error
    assert "needs one CUDA GPU" in said
    assert "--device cpu --shape tiny" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"device": "tpu"}, "--device: expected"), ({"device": "cpu", "shape": "Qwen3-8B"}, "--device cpu goes with")],
)
def test_what_does_not_go_together(changes, says):
    with pytest.raises(InputError, match=says):
        gpu.gpu_setting(**changes)


def test_a_part_that_there_is_not():
    with pytest.raises(InputError, match="--what: 'speed' is not one of qlora"):
        gpu.bench_gpu(gpu.gpu_setting(**TINY), ("speed",))


def test_trl_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu._all() == [part for part in gpu.PARTS if part != "trl"]


def test_each_way_is_timed_beside_plain():
    asked = []

    def time_one(way):
        asked.append(way)
        slow = {"plain": 1.0, "single_pass": 1.25, "two_pass": 2.0}[way]
        return Timed(slow * (1 + len(asked)), 1000 if way == "plain" else 1030)  # a machine that gets slower

    rows = interleave(time_one, 2, ("plain", "single_pass", "two_pass"))
    # Before plain and after it in turn, and plain once where it is compared with itself.
    assert asked[:5] == ["plain", "plain", "single_pass", "plain", "two_pass"]
    assert asked[5:] == ["plain", "single_pass", "plain", "two_pass", "plain"]
    assert rows["plain"]["speed_ratio"] == 1.0
    assert rows["two_pass"]["speed_ratio"] < rows["single_pass"]["speed_ratio"] < 1.0
    assert rows["single_pass"]["peak_ratio"] == 1.03
    assert rows["single_pass"]["speed_min"] <= rows["single_pass"]["speed_ratio"] <= rows["single_pass"]["speed_max"]


def test_bounds_by_hand():
    run = bench_run("tiny", checkpointing=False, lora_r=4, length=16)
    config = shape_config("tiny")
    counts = count(run, config)
    linears = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    lora = 2 * 4 * (128 + 2 * 96 + 128 + 3 * 192)
    assert counts.elements(precision="4-bit") == linears
    assert counts.elements(trainable=True) == lora
    ceiling = {"matmul": 1e9, "memory": 1e8}
    bound = floors("plain", counts, config, tokens=32, length=16, checkpointing=False, ceiling=ceiling)
    norms = counts.base - linears - 2 * 512 * 64
    attention = 2 * 16 * 2 * 4 * 16
    expected = 32 * (2 * (linears + norms + lora) + attention + 2 * (linears + norms) + 4 * lora + 2 * attention)
    assert bound["flop"] == expected
    assert bound["matmul_seconds"] == pytest.approx(expected / 1e9)
    assert bound["unpack_seconds"] == pytest.approx(2 * 4.5 * linears / 1e8)
    again = floors("plain", counts, config, tokens=32, length=16, checkpointing=True, ceiling=ceiling)
    assert again["unpack_seconds"] == pytest.approx(1.5 * bound["unpack_seconds"])
    flop = {way: floors(way, counts, config, 32, 16, False, ceiling)["flop"] for way in WAYS}
    assert flop["plain"] == flop["single_pass"] < flop["shared_forward"] < flop["two_pass"] < flop["published"]
    assert set(PASSES) == set(WAYS)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 128])
def test_bisection_finds_where_memory_ends(most, monkeypatch):
    monkeypatch.setattr("debias.bench.gpu_measure.gc.collect", lambda: 0)  # a second each, beside all these tests
    tried = []

    def step(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("out of memory")

    assert largest_batch(lambda size: fits(lambda: step(size)), limit=128) == most
    assert len(tried) == len(set(tried)) <= 16
    assert max(tried) <= 128


def test_other_errors_are_not_taken_for_a_full_memory():
    def broken():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        fits(broken)


@needs_bitsandbytes
def test_the_model_is_four_bit_and_gives_what_its_weights_say():
    from bitsandbytes.functional import dequantize_4bit

    model = build(bench_run("tiny", checkpointing=False, lora_r=4, length=16), torch.device("cpu"))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    assert torch.allclose(layer(x).float(), (x @ weight.T).float(), atol=0.02)
    assert 0.015 < weight.float().std() < 0.025
    assert not any(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.slow
@needs_bitsandbytes
def test_the_parts_on_a_cpu(monkeypatch, capsys):
    sizes = [part for key, value in TINY.items() for part in (f"--{key}", str(value))]
    parts = [part for name in ("qlora", "cap", "large", "combine") for part in ("--what", name)]
    said = command_line(monkeypatch, capsys)("bench", "gpu", *sizes, *parts, "--json")
    found = json.loads(said.out)
    assert said.code == 0
    ways = found["parts"]["qlora"]["checkpointing on"]["rows"]
    assert set(ways) == set(WAYS)
    for row in ways.values():
        assert row["tokens_per_second"] == pytest.approx(2 * 16 / row["seconds"])
        assert row["share_of_matmul"] > 0
    assert found["parts"]["cap"] == {"16": 3, "32": 3}  # its limit on a CPU
    assert found["parts"]["large"]["tiny"]["fits"]
    assert found["parts"]["combine"]["elements"] > 0
    assert len(gpu.tables_of(found)) == 6


@needs_bitsandbytes
@pytest.mark.slow
def test_trl_beside_ours():
    pytest.importorskip("trl")
    speeds = gpu.trl(gpu.gpu_setting(**TINY))["tokens_per_second"]
    assert set(speeds) == {"plain", "single_pass", "trl"}
    assert min(speeds.values()) > 0


def test_whole_runs_are_timed(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "debias.train.train", lambda config, base: seen.append((config.method["name"], config.max_steps))
    )
    result = gpu.full(gpu.gpu_setting(**TINY, max_steps=2))
    assert seen == [("erm", 2), ("edge", 2)]
    assert set(result["minutes"]) == {"erm", "edge"}
    assert result["recipe"] == "minilm_generated_edge"
