"""Traced bytes against sums by hand, parts under sharding, the largest micro-batch, and what a user sees."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import command_line
from planned_runs import run_of
from tiny_models import family_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from debias.cli.plan import parse_bytes
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.methods import DiGraP, MainOnly
from debias.plan import planner as planning
from debias.plan.checks import check_adapted
from debias.plan.count import count
from debias.plan.live import Live
from debias.plan.memory import Masked, Sharding, memory_of, sharding_of
from debias.plan.planner import Planner, make_plan
from debias.plan.search import LARGEST_MICRO_BATCH, largest_that_fits
from debias.plan.shapes import find_config
from debias.plan.sheet import Machine
from debias.plan.trace import WHOLE, Load, Traced, trace


@pytest.fixture
def folder(tmp_path):
    family_config("qwen3", num_hidden_layers=2).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def few(monkeypatch):
    """How many samples would fit is not what is asked: each size that is looked at is a trace."""
    monkeypatch.setattr("debias.plan.search.LARGEST_MICRO_BATCH", 2)


def test_live_bytes_of_a_chain_of_linears_by_hand():
    with FakeTensorMode():
        layers = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
        x = torch.zeros(8, 64)
        with Live() as live:
            loss = layers(x).sum()
            after = live.curve()[-1]
            loss.backward()
            kept = live.serials([layer.weight.grad for layer in layers])
    wide = 8 * 64 * 4
    assert after == 2 * wide + 4  # two inner activations; the last output is not needed for the sum's gradient
    assert live.curve()[-1] - after <= 3 * 64 * 64 * 4 + 512  # gradients, and the scalar one
    assert live.curve()[-1] - live.curve(kept)[-1] == 3 * 64 * 64 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter", "checkpointing"),
    [("qwen3", "full", False), ("llama4_text", "lora", True)],
)
def test_a_deep_model_is_what_a_few_of_its_layers_say(name, adapter, checkpointing, monkeypatch):
    config = family_config(name, num_hidden_layers=10, vocab_size=40)
    run = run_of(adapter=adapter, gradient_checkpointing=checkpointing)
    load = Load(micro_batch=2, length=32, answer_tokens=2)
    short = trace(run, config, load, "two_pass")
    monkeypatch.setattr("debias.plan.trace.WHOLE", 100)
    whole = trace(run, config, load, "two_pass")
    assert WHOLE < 10
    assert short.peak == pytest.approx(whole.peak, rel=0.02)
    assert short.others == pytest.approx(whole.others, rel=0.02)


@pytest.mark.slow
def test_what_is_traced_follows_the_run():
    config = family_config("qwen3", num_hidden_layers=2)
    load = Load(micro_batch=4, length=64)

    def peak(load=load, source="single_pass", **settings):
        return trace(run_of(**settings), config, load, source).peak

    plain = peak()
    assert peak(gradient_checkpointing=True) < plain
    assert peak(load=Load(micro_batch=8, length=64)) == pytest.approx(2 * plain, rel=0.1)
    assert peak(load=Load(micro_batch=4, length=64, padded=False)) < plain
    assert peak(load=Load(micro_batch=4, length=64, accumulated=True)) > plain
    assert peak(source="two_pass") > 0
    assert peak(bf16=True) < plain


@pytest.mark.slow
# Fused experts stay as they are beside 4-bit layers, so both mixtures are traced both ways; the others by turns.
@pytest.mark.parametrize(
    ("name", "four_bit"),
    [*itertools.product(["qwen3_moe", "llama4_text"], [False, True]), ("gemma3_text", False), ("llama", True)],
)
def test_every_family_can_be_traced(name, four_bit):
    run = run_of(load_in_4bit=four_bit, bf16=four_bit)
    traced = trace(run, family_config(name), Load(micro_batch=2, length=16), "single_pass")
    assert traced.gradients + traced.others > 0
    assert traced.others <= traced.peak <= traced.others + 10**6


@pytest.mark.slow
@pytest.mark.parametrize("four_bit", [False, True])
def test_dora_takes_what_lora_takes_and_its_whole_deltas(four_bit):
    """It makes each layer's `W + B A` in the forward pass: more than LoRA, by two matrices of a layer and not less."""
    config, load = family_config("qwen3"), Load(micro_batch=2, length=16)
    runs = [run_of(adapter=kind, load_in_4bit=four_bit, bf16=four_bit) for kind in ("lora", "dora")]
    lora, dora = (trace(run, config, load, "shared_forward").others for run in runs)
    assert dora > lora + 2 * 32 * 48 * (2 if four_bit else 4)


@pytest.mark.slow
def test_packed_rows_are_one_row(folder):
    def peak(size, **settings):
        return Planner(run_of(folder, **settings), Machine()).traced(size).others

    packed, flash = {"packing": True}, {"packing": True, "attn_implementation": "flash_attention_2"}
    assert peak(1, **packed) == peak(1)
    assert peak(8, **packed) > peak(8)  # the mask of all tokens against all
    assert peak(8, **flash) < peak(8)
    assert peak(8, **flash) == pytest.approx(8 * peak(1, **flash), rel=0.1)


@pytest.mark.slow
def test_an_encoder(tmp_path):
    from transformers import BertConfig

    from debias.config.run import RunConfig

    BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48).save_pretrained(
        tmp_path
    )
    run = RunConfig.model_validate({"model": str(tmp_path), "output_dir": "x", "data": {"train": "generated"}})
    found = make_plan(run, Machine(gpu_memory=2 * 10**9))
    assert found.gradients == "single_pass"
    with pytest.raises(InputError, match=r"max_length is 5000, but .* reads at most 512 tokens"):
        make_plan(run, Machine(), length=5000)
    assert found.fits
    assert found.largest_micro_batch > 100


TRACED = Traced(peak=1_000_000, gradients=0, others=900_000)


def test_parts_of_full_fine_tuning_by_hand():
    run = run_of(adapter="full")
    counts = count(run, family_config("qwen3"))
    n = counts.elements(trainable=True)
    memory = memory_of(counts, TRACED, Sharding(), "two_pass", "adamw_torch", cuda=False)
    assert memory.parts["trained weights"] == 4 * n
    assert memory.parts["optimizer state"] == 8 * n
    assert memory.total == 12 * n + 1_000_000
    assert memory.moment == "backward"
    eight_bit = memory_of(counts, TRACED, Sharding(), "two_pass", "adamw_bnb_8bit", cuda=False)
    assert eight_bit.parts["optimizer state"] < memory.parts["optimizer state"] / 3
    paged = memory_of(counts, TRACED, Sharding(), "two_pass", "paged_adamw_8bit", cuda=False)
    assert "optimizer state" not in paged.parts
    assert paged.host > 2 * n


def test_what_each_stage_shards():
    run = run_of(adapter="full", bf16=True, deepspeed="zero2")
    counts = count(run, family_config("qwen3", vocab_size=20_000))
    n = counts.elements(trainable=True)

    def parts(stage, **more):
        return memory_of(counts, TRACED, Sharding(4, stage, bucket=1000, **more), "two_pass", "adamw_torch", cuda=False)

    state = {stage: parts(stage).parts["optimizer state"] for stage in (0, 1, 2, 3)}
    assert state[0] == 12 * n  # with float32 copies of what trains in bf16
    assert all(state[stage] == pytest.approx(12 * n / 4, abs=8) for stage in (1, 2, 3))
    weights = {stage: parts(stage).parts["trained weights"] for stage in (0, 1, 2, 3)}
    assert weights[0] == weights[1] == weights[2] == 2 * n
    assert weights[3] == pytest.approx(2 * n / 4, rel=0.01)
    assert parts(2).total < parts(1).total < parts(0).total
    offloaded = parts(3, offload_optimizer=True, offload_parameters=True, max_live=100)
    assert offloaded.host == pytest.approx((12 + 2) * n / 4, rel=0.01)
    assert offloaded.total < parts(3, max_live=100).total
    kept_whole = parts(3, persistence=10**9)
    assert kept_whole.parts["trained weights"] == 2 * n
    assert "gathered weights" not in kept_whole.parts


def test_a_rule_that_looks_at_how_far_weights_moved_keeps_copies():
    """Two float32 copies of what it acts on, sharded; on the host where the optimizer's state is."""
    run = run_of(method="digrap")
    counts = count(run, family_config("qwen3"))
    n = counts.elements(selected=True)

    def of(spread, looks_at=DiGraP.looks_at):
        return memory_of(counts, TRACED, spread, "plain", "adamw_torch", cuda=False, looks_at=looks_at)

    assert of(Sharding()).parts["rule's state"] == 8 * n
    assert of(Sharding(4, 2, bucket=1)).parts["rule's state"] == pytest.approx(2 * n, abs=8)
    assert of(Sharding(4, 0)).parts["rule's state"] == 8 * n
    assert "rule's state" not in of(Sharding(), MainOnly().combines).parts
    offloaded = Sharding(4, 3, offload_optimizer=True)
    assert "rule's state" not in of(offloaded).parts
    assert of(offloaded).host - of(offloaded, MainOnly().combines).host == pytest.approx(2 * n, abs=8)
    # Three stacks, the update, and the way moved; where nothing else is large that is the worst moment.
    small = Traced(peak=4 * n, gradients=4 * n, others=0)
    memory = memory_of(counts, small, Sharding(), "plain", "sgd", cuda=False, looks_at=DiGraP.looks_at)
    assert memory.moment == "combine"
    assert memory.parts["combining"] == 4 * 5 * n
    assert "combining" not in memory_of(counts, small, Sharding(), "plain", "sgd", cuda=False).parts


def test_weights_that_are_put_back_take_a_copy():
    """Beside the activations of the second pass; where these are small, the move itself is the worst moment."""
    counts = count(run_of(adapter="full"), family_config("qwen3"))
    n, largest = counts.elements(trainable=True), max(size.elements for size in counts.sizes)

    def of(peak, **more):
        traced = Traced(peak=peak, gradients=4 * n, others=peak - 4 * n)
        return memory_of(counts, traced, Sharding(), "plain", "adamw_bnb_8bit", cuda=False, **more)

    large = 40 * n
    assert "weights to put back" not in of(large).parts
    assert of(large, moves=True).parts["weights to put back"] == 4 * n
    assert of(large, moves=True).total == of(large).total + 4 * n
    small = of(4 * n, moves=True, accumulated=True)
    assert small.moment == "move"
    assert small.parts["moves of weights"] == 4 * n + 8 * largest
    assert small.parts["gradients"] == 4 * n
    assert small.parts["weights to put back"] == 4 * n


def test_a_mask_of_elements_takes_a_byte_each_and_what_is_held_a_copy():
    counts = count(run_of(adapter="full"), family_config("qwen3"))
    n = counts.elements(trainable=True)

    def of(block, optim="adamw_torch", peak=8 * n):
        traced = Traced(peak=peak, gradients=4 * n, others=peak - 4 * n)
        masked = Masked.of(run_of(gradient_mask=block))
        return memory_of(counts, traced, Sharding(), "plain", optim, cuda=False, masked=masked)

    plain, parts = of(None), {name: of(name).parts for name in ("saft", "gmt")}
    assert parts["gmt"] == plain.parts
    for block in ("saft", {"name": "gmt", "hold": True}):
        found = of(block)
        assert (found.moment, found.parts["gradient mask"], found.parts["weights to put back"]) == (
            "optimizer",
            n,
            4 * n,
        )
    large = of("saft", peak=80 * n)
    assert large.total == of(None, peak=80 * n).total + n
    # Sums of the first steps lie where a mask, and the optimizer's state, will lie.
    summed = {"name": "saft", "steps": 2}
    assert of(summed, "sgd", peak=80 * n).parts["sums of gradients"] == 3 * n
    assert "sums of gradients" not in of(summed, peak=80 * n).parts
    assert "sums of gradients" not in of("saft", "sgd", peak=80 * n).parts


def test_the_plan_has_a_mask_of_elements(folder, few):
    plain, masked = (make_plan(run_of(folder, gradient_mask=one), Machine(cuda=False)) for one in (None, "saft"))
    assert masked.parts["gradient mask"] == masked.parameters.trainable
    assert "gradient mask" not in plain.parts


def test_the_plan_says_that_each_micro_batch_is_passed_twice(folder, few):
    plain, sharp = (make_plan(run_of(folder, **more), Machine(cuda=False)) for more in ({}, {"sharpness": "asam"}))
    assert sharp.parts["weights to put back"] == 4 * sharp.parameters.trainable
    assert "sharpness asam passes each micro-batch twice: twice a step's time" in sharp.assumptions
    assert len(sharp.assumptions) == len(plain.assumptions) + 1


def test_a_projection_towards_the_start_holds_a_copy_of_what_trains(folder, few):
    made = [
        make_plan(run_of(folder, weight_projection=one), Machine(cuda=False))
        for one in (None, "spd", {"name": "spd", "towards": "zero"})
    ]
    copies = [plan.parts.get("weights at the start", 0) for plan in made]
    assert copies == [0, 4 * made[0].parameters.trainable, 0]
    assert [plan.total - made[0].total for plan in made] == copies


def test_what_follows_a_rule_is_sharded_as_the_optimizer_s_state_is():
    """Of 16 bits too: what DeepSpeed's optimizer steps on are float32 pieces, on the host where it is offloaded."""
    counts = count(run_of("Qwen3-0.6B", adapter="full", bf16=True), find_config("Qwen3-0.6B"))
    n = counts.elements(trainable=True)

    def of(masked=Masked(), held=None, **spread):  # noqa: B008 (frozen)
        spread = Sharding(4, **spread)
        return memory_of(counts, Traced(0, 0, 0), spread, "plain", "adamw_torch", cuda=False, masked=masked, held=held)

    saft = Masked(chosen=True, held=True)
    for stage, shards in ((0, 1), (1, 4), (2, 4), (3, 4)):
        plain, found = of(stage=stage), of(saft, True, stage=stage)
        assert found.parts["weights at the start"] == 4 * (n // shards)
        assert found.parts["gradient mask"] == n // shards
        assert of(saft, False, stage=stage).parts.get("weights at the start", 0) == 0
        moved = [one for one in (found,) if one.moment in ("optimizer", "projection")]
        assert all(one.parts["weights to put back"] == 4 * (n // shards) for one in moved)
        assert found.total >= plain.total + 5 * (n // shards)
    away = {"stage": 3, "offload_optimizer": True}
    plain, found = of(**away), of(saft, True, **away)
    assert found.total == plain.total
    assert found.host == plain.host + 9 * (n // 4)


def test_what_a_projection_holds_for_a_moment_counts_where_nothing_else_is_larger():
    counts = count(run_of("Qwen3-0.6B", adapter="full"), find_config("Qwen3-0.6B"))
    plain = memory_of(counts, Traced(0, 0, 0), Sharding(1), "plain", "lion_32bit", cuda=False)
    made = memory_of(counts, Traced(0, 0, 0), Sharding(1), "plain", "lion_32bit", cuda=False, held=False)
    largest = max(size.elements for size in counts.sizes if size.trainable)
    assert made.moment == "projection"
    assert made.total - plain.total <= made.parts["moves of weights"]
    assert made.parts["moves of weights"] == 4 * largest


def test_the_plan_says_that_a_step_is_seen_ahead(folder, few):
    runs = (run_of(folder, loss="coral", gradient_accumulation_steps=n) for n in (1, 2))
    once, cut = (make_plan(run, Machine(cuda=False)) for run in runs)
    assert set(cut.assumptions) - set(once.assumptions) == {
        "loss coral sees each step ahead, without gradients: a third of its time more"
    }


def test_a_smoothness_term_holds_the_activations_of_two_answers(folder, few):
    plain, smooth = (make_plan(run_of(folder, **more), Machine(cuda=False)) for more in ({}, {"smoothness": "smart"}))
    kept = [plan.parts["activations"] for plan in (plain, smooth)]
    assert 1.5 < kept[1] / kept[0] < 2.1
    (told,) = set(smooth.assumptions) - set(plain.assumptions)
    assert told.startswith("smoothness smart passes each micro-batch 3 times: 3 times a step's time")


@pytest.mark.slow
def test_the_plan_knows_the_methods_vectors(folder, few):
    plans = {name: make_plan(run_of(folder, method=name), Machine(), length=16) for name in ("erm", "digrap")}
    assert {plan.gradients for plan in plans.values()} == {"plain"}
    assert plans["digrap"].parts["rule's state"] == 8 * plans["digrap"].parameters.trainable
    assert "rule's state" not in plans["erm"].parts


def test_sizes_of_a_deepspeed_file():
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"}
    spread = sharding_of({"zero_optimization": zero}, 8)
    assert (spread.stage, spread.offload_optimizer, spread.offload_parameters) == (3, True, False)
    assert spread.bucket == 5 * 10**8
    assert sharding_of({}, 2).stage == 0
    assert sharding_of(None, 2).stage is None


@pytest.mark.parametrize("limit", [0, 9, 10, 19, 20, 21, 999, 10**4, 10**9])
def test_the_largest_micro_batch(limit):
    seen = []

    def total(size):
        seen.append(size)
        return max(10 * size, 3 * size + 100 if size > 3 else 0)

    expected = max((size for size in range(1, LARGEST_MICRO_BATCH + 1) if total(size) <= limit), default=0)
    seen.clear()
    assert largest_that_fits(total, limit) == expected
    assert len(set(seen)) < 30


@pytest.mark.parametrize("first", [1, 2, 32, LARGEST_MICRO_BATCH, 2 * LARGEST_MICRO_BATCH])
@pytest.mark.parametrize(
    ("curve", "most"),
    [
        (lambda size: 1000 + 37 * size, 6),
        (lambda size: 10**6 + 37 * size + 3 * size**2, 9),  # a mask over packed rows
        (lambda size: max(10**6 + 5 * size, 900 * size + size**2), 22),
        (lambda size: 1000 + 1000 * (size // 16), 28),
        (lambda size: 2 ** min(size, 60), 28),
        (lambda size: 5, 4),
    ],
    ids=["line", "square", "bent", "steps", "power", "flat"],
)
def test_few_looks_find_it_on_every_curve(curve, most, first):
    for end in (1, 2, 31, 107, 2000, LARGEST_MICRO_BATCH):
        for limit in (curve(end), curve(end) + 1, curve(end + 1) - 1):
            seen = []
            found = largest_that_fits(lambda size: seen.append(size) or curve(size), limit, first)  # noqa: B023
            assert found == max((size for size in range(1, LARGEST_MICRO_BATCH + 1) if curve(size) <= limit), default=0)
            assert len(seen) == len(set(seen)) <= most


@pytest.mark.slow
def test_the_plan_as_json_and_as_a_table(folder, few, tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run_of(folder).model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    debias = command_line(monkeypatch, capsys)
    said = debias("plan", file, "lora_r=4", "--gpu-memory", "1GB", "--seq-length", "16", "--json")
    found = json.loads(said.out)
    assert said.code == 0
    assert found["total"] == sum(found["parts"].values())
    assert (found["length"], found["fits"]) == (16, True)
    assert found["parameters"]["base"] == sum(p.numel() for p in _built(folder).parameters())
    said = debias("plan", file, "--gpu-memory", "640MB", "per_device_train_batch_size=4096")
    assert "DOES NOT FIT" in said.out
    assert "advice: " in said.out
    assert "give --gpu-memory" in debias("plan", file).out
    assert "sent by a rank in a step" in debias("plan", file, "--gpus", "2").out


def _built(folder):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(find_config(folder))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu-memory", "lots"], "--gpu-memory: 'lots' is no size"),
        (["--gpu-memory", "24"], "--gpu-memory: '24' is no size; write it with its unit"),
        (["deepspeed=nowhere.json"], "deepspeed: 'nowhere.json' is no file"),
        (["model=Qwen/Qwen4-8B"], "model: 'Qwen/Qwen4-8B' has no configuration here"),
        (["adapter.targets=[nothing]"], "adapter.targets: 'nothing' matches no linear layer"),
        (["adapter=full", "gradients=single_pass"], "gradients 'single_pass' is not exact here"),
        (["adapter=full", "load_in_4bit=true"], "load_in_4bit: a 4-bit base cannot be trained"),
        (["optim=foo"], "optim is 'foo', not one of adamw_torch"),
        (["lr_scheduler_type=foo"], "lr_scheduler_type is 'foo', not one of linear"),
        (
            ["prompt.template='{premise} {hypothesis} {nope}'"],
            "prompt.template uses {nope}, not one of data.text_fields",
        ),
        (["deepspeed=zero3", "gradients=shared_forward"], "gradients 'shared_forward' is not safe at stage 3"),
        (["max_length=2147483647"], "per_device_train_batch_size 32 x max_length 2147483647 with lora_r 8: no machine"),
        (["--seq-length", 10**12], "per_device_train_batch_size 32 x max_length 1000000000000"),
    ],
)
def test_what_a_user_gets_wrong(arguments, says, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run_of(folder).model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    assert command_line(monkeypatch, capsys)("plan", file, *arguments).error.startswith(f"error: {says}")


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("0.5g", 5 * 10**8), ("7B", 7)]
)
def test_sizes_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "24XB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="is no size"):
        parse_bytes(text)


@pytest.mark.slow
def test_advice(folder, few):
    run = run_of(folder, deepspeed="zero3")
    found = make_plan(run, Machine(gpu_memory=10**10, gpus=8))
    assert any("deepspeed=null (data parallelism" in sentence for sentence in found.advice)
    sparse = Planner(run_of("Qwen3-30B-A3B", load_in_4bit=True, bf16=True), Machine(gpu_memory=24 * 10**9))
    sparse.traced = lambda size: Traced(10**9 * size, 0, 10**9 * size)
    said = " ".join(sparse.plan().advice)
    assert "experts are not 4-bit: 29.0B elements" in said
    assert "gradient_checkpointing=true" in said


def said_of(run, gpu_memory, bytes_of_size):
    """Advice where a micro-batch of `size` takes `bytes_of_size(size)` beside the weights."""
    planner = Planner(run, Machine(gpu_memory=gpu_memory))
    planner.traced = lambda size: Traced(bytes_of_size(size), 0, bytes_of_size(size))
    return planner.plan()


def test_four_bits_are_advised_where_they_save(folder):
    def said(model, **settings):
        run = run_of(model, bf16=True, gradient_checkpointing=True, **settings)
        return said_of(run, 24 * 10**9, lambda size: 10**9 * size).advice[0]

    assert said("Qwen3-30B-A3B", adapter={"targets": ["q_proj"], "experts": False}).startswith(
        "deepspeed=zero3"
    )  # experts stay in 16 bits
    # 31.2 billion elements in linear layers: 2 bytes of each become 0.516.
    assert said("Qwen3-32B").startswith("load_in_4bit=true (QLoRA): the frozen weights take 46.")


# What none of the settings beside it goes with, as the run says, and the first words of the advice that is left.
@pytest.mark.parametrize(
    ("settings", "begins"),
    [
        ({"weight_penalty": "pego", "bf16": True}, "a shorter --seq-length, a smaller model or a larger GPU"),
        ({"weight_penalty": "pego"}, "a shorter --seq-length"),
        ({"sharpness": "sam", "bf16": True, "load_in_4bit": True}, "a shorter --seq-length"),
        ({"sharpness": "sam", "adapter": "full"}, "adapter=lora"),
        ({"smoothness": "smart", "load_in_4bit": True}, "a shorter --seq-length"),
        ({"smoothness": "smart"}, "load_in_4bit=true"),
        ({"bf16": True, "load_in_4bit": True}, "deepspeed=zero3"),
    ],
    ids=str,
)
def test_nothing_is_advised_that_the_run_refuses(settings, begins):
    run = run_of("Qwen3-32B", gradient_checkpointing=True, **settings)
    advised = said_of(run, 8 * 10**9, lambda size: 10**9 * size).advice
    assert advised[0].startswith(begins)
    for key, value in re.findall(r"(\w+)=(\w+)", " ".join(advised)):
        RunConfig.model_validate({**run.model_dump(), key: yaml.safe_load(value)})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_r": 6}, r"weight_penalty\.adapters is 4, expected a divisor of the rank 6 \(lora_r\)"),
        ({"adapter": "dora"}, r"weight_penalty pego: .*q_proj has LoRA of another form"),
        ({"adapter": "full"}, r"weight_penalty pego needs linear layers with LoRA"),
        ({"adapter": "ia3"}, r"weight_penalty pego needs linear layers with LoRA"),
    ],
    ids=str,
)
def test_what_a_weight_penalty_cannot_take_is_said_as_train_says_it(settings, says, folder):
    with pytest.raises(InputError, match=says):
        make_plan(run_of(folder, weight_penalty="pego", **settings), Machine(gpu_memory=24 * 10**9))


def test_a_weight_penalty_is_looked_at_in_layers_of_every_kind(tmp_path):
    """The first layer of this mixture is dense; LoRA on the experts of the others is what it cannot take."""
    family_config("qwen3_moe", num_hidden_layers=2, mlp_only_layers=[0]).save_pretrained(tmp_path)
    config = find_config(str(tmp_path))
    check_adapted(run_of(str(tmp_path), weight_penalty="pego", adapter={"experts": False}), config)
    check_adapted(run_of(str(tmp_path), adapter={"experts": True}), config)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts.* is no linear layer; .*adapter\.experts false"):
        check_adapted(run_of(str(tmp_path), weight_penalty="pego", adapter={"experts": True}), config)


@pytest.mark.parametrize(
    ("micro", "accumulation", "largest", "says"),
    [
        (8, 4, 5, "per_device_train_batch_size=4 fits; gradient_accumulation_steps=8 keeps the batch of 32"),
        (8, 3, 7, "per_device_train_batch_size=6 fits; gradient_accumulation_steps=4 keeps the batch of 24"),
        (31, 2, 30, "per_device_train_batch_size=2 fits; gradient_accumulation_steps=31 keeps the batch of 62"),
    ],
)
def test_the_advised_sizes_keep_the_batch(micro, accumulation, largest, says, folder):
    run = run_of(folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    plan = said_of(run, round(1.05e12 * (largest + 0.9)), lambda size: 10**12 * size)
    assert plan.largest_micro_batch == largest
    assert plan.advice[0] == says


def test_what_is_advised_fits_beside_the_gradients_of_earlier_micro_batches(folder, monkeypatch):
    """One micro-batch a step becomes several, which keep their gradients meanwhile."""

    def traced(run, config, load, gradients, *, uses_bias, stage):
        live = 10**9 * (load.micro_batch + (1 if load.accumulated else 0))
        return Traced(live, 0, live)

    monkeypatch.setattr(planning, "trace", traced)
    run = run_of(folder, per_device_train_batch_size=8)
    plan = make_plan(run, Machine(gpu_memory=Planner(run, Machine()).memory(4).total))
    assert plan.largest_micro_batch == 4
    assert plan.advice[0].startswith("per_device_train_batch_size=2 fits; gradient_accumulation_steps=4 keeps")


@pytest.mark.slow
def test_the_load_balancing_loss_is_planned(tmp_path):
    """It is of the batch: single_pass cannot take it, and its own tensors are there at the peak."""
    family_config("qwen3_moe", num_hidden_layers=3).save_pretrained(tmp_path / "model")
    found = {
        coefficient: Planner(
            run_of(model=str(tmp_path / "model"), router_aux_loss_coef=coefficient), Machine(cuda=False), length=32
        )
        for coefficient in (0.0, 0.01)
    }
    assert found[0.0].source == "single_pass"
    assert found[0.01].source == "shared_forward"
    one, other = (trace(found[c].run, found[c].config, Load(2, 32, 2), "shared_forward") for c in found)
    assert one.others < other.others < 1.1 * one.others


def test_a_load_balancing_loss_that_the_model_has_not(tmp_path):
    family_config("llama4_text", num_hidden_layers=3).save_pretrained(tmp_path / "model")
    run = run_of(model=str(tmp_path / "model"), router_aux_loss_coef=0.01)
    with pytest.raises(InputError, match="computes no load balancing loss"):
        make_plan(run, Machine(cuda=False), length=32)


@pytest.mark.slow
def test_the_run_before_a_run_is_planned_too(folder, few, monkeypatch, capsys):
    """JTT's first stage with another micro-batch: where it does not fit, the run does not."""
    stage = {"keep": "errors", "settings": {"per_device_train_batch_size": 64}}
    run = run_of(model=folder, order="upsampled", first_stage=stage)
    alone = make_plan(run_of(model=folder, per_device_train_batch_size=64, method="erm"), Machine(), length=32)
    found = make_plan(run, Machine(), length=32)
    assert found.before is not None
    assert (found.before.total, found.before.gradients) == (alone.total, "plain")
    between = Machine(gpu_memory=(found.total + found.before.total) // 2)
    assert make_plan(run, between, length=32).fits is False
    file = Path(folder, "run.yaml")
    file.write_text(dump_config(run))
    limit = f"{between.gpu_memory}B"
    shown = command_line(monkeypatch, capsys)("plan", file, "--seq-length", "32", "--gpu-memory", limit)
    assert shown.code == 0
    assert "first stage: DOES NOT FIT" in shown.out


@pytest.mark.slow
def test_the_runs_of_a_bias_model_are_planned_too(folder, few):
    """All of one size: that of the base with the bias model's own adapter, trained plainly, whatever the run trains."""
    first = {"name": "first_learned", "lora_r": 32}
    run = run_of(model=folder, adapter="dora", lora_r=2, loss="logit_correction", method="erm", bias_model=first)
    found = make_plan(run, Machine(), length=32)
    alone = make_plan(run_of(model=folder, lora_r=32, method="erm"), Machine(), length=32)
    assert found.before is not None
    assert (found.before.total, found.before.parameters) == (alone.total, alone.parameters)
    assert found.parameters.trainable < alone.parameters.trainable
    told = [line for line in found.assumptions if "bias model first_learned" in line]
    assert len(told) == 2
    assert "one forward pass over the training set" in told[0]
    assert "trains 2 runs before it" in told[1]
    other = make_plan(run_of(model=folder, loss="logit_correction", bias_model={"name": "embedding"}), Machine())
    assert other.before is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        {"name": "group_dro"},
        {"name": "irm", "warmup": 0.5},
        {"name": "irm", "memory": 0.9},
        {"name": "pgi", "warmup": 0.5},
        {"name": "pgi", "memory": 0.9},
        {"name": "mmd"},
        {"name": "mmd", "features": 1, "memory": 0.9},  # whose directions are as large as so small a model
        {"name": "coral"},
        {"name": "coral", "memory": 0.9},
        {"name": "bias_covariance"},
        {"name": "logit_correction", "tau": 0.5, "weights": True},
        {"name": "cross_entropy", "class_weights": "balanced"},
        {"name": "cross_entropy", "class_weights": {"entailment": 1, "neutral": 2, "contradiction": 3}},
    ],
)
def test_losses_that_look_at_the_whole_training_set_are_planned(loss):
    """Their memory is made of facts, of which a plan has none."""
    bias = {"bias_model": {"name": "embedding"}} if loss["name"] in ("logit_correction", "bias_covariance") else {}
    found, plain = _peak_of(run_of(loss=loss, **bias)), _plain_peak()
    # Covariances of the step, in float64, are large beside so small a model.
    own = 6 * 8 * family_config("qwen3").hidden_size ** 2 if loss == {"name": "coral"} else 0
    assert 0.9 * plain < found < 1.1 * plain + own


def _peak_of(run):
    return trace(run, family_config("qwen3", num_hidden_layers=1), Load(2, 16), "two_pass", uses_bias=False).peak


@functools.cache
def _plain_peak():
    return _peak_of(run_of())
