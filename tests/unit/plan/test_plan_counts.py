"""Sizes of the carried shapes against published ones, and of tiny models against the model that is really built."""

import json

import pytest
import torch
from planned_runs import run_of
from tiny_models import family_config

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.plan.count import count
from debias.plan.shapes import carried, find_config
from debias.plan.skeleton import FourBitLinear, base_skeleton, period_of, shallow, skeleton

# Of the models' cards and safetensors indices: all parameters, and in billions those that a token uses.
PUBLISHED = {
    "Qwen3-0.6B": (596_049_920, 0.596),
    "Qwen3-8B": (8_190_735_360, 8.19),
    "Qwen3-14B": (14_768_307_200, 14.77),
    "Qwen3-32B": (32_762_123_264, 32.76),
    "Qwen3-30B-A3B": (30_532_122_624, 3.35),
    "Qwen3-235B-A22B": (235_093_634_560, 22.19),
    "Gemma-3-4B": (3_880_263_168, 3.88),
    "Llama-3.1-8B": (8_030_261_248, 8.03),
    "Llama-4-Scout-17B-16E": (107_769_861_120, 17.17),
    "Llama-4-Maverick-17B-128E": (400_711_848_960, 17.18),
    "Llama-3.3-70B": (70_553_706_496, 70.55),
    "Mistral-7B-v0.3": (7_248_023_552, 7.25),
    "Mixtral-8x7B-v0.1": (46_702_792_704, 12.88),
    "Gemma-2-27B": (27_227_128_320, 27.23),
    # Without its vision tower and projector: 27,432,406,640 less 416,866,032 and 6,194,304.
    "Gemma-3-27B": (27_009_346_304, 27.01),
    # Without the layer that predicts a second token: 81,324,862,720 less 1,650,471,424.
    "Qwen3-Next-80B-A3B": (79_674_391_296, 3.87),
    "OLMo-2-0325-32B": (32_234_279_936, 32.23),
    "GPT-OSS-20B": (20_914_757_184, 4.19),  # its card says 3.6, without the embeddings
    "GPT-OSS-120B": (116_829_156_672, 5.75),  # 5.1 without them
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_carried_shapes_have_their_published_sizes(name):
    counts = count(run_of(name, lora_r=16, adapter={"type": "lora", "targets": ["q_proj"]}), find_config(name))
    whole, active = PUBLISHED[name]
    assert counts.base == whole
    assert counts.active / 1e9 == pytest.approx(active, abs=0.01)


@pytest.mark.parametrize("name", ["Gemma-3-4B", "Qwen3-0.6B", "Qwen3-8B"])
def test_embeddings_are_embeddings_where_the_head_is_tied_to_them(name):
    config = find_config(name)
    base = [size for size in count(run_of(name, lora_r=16), config).sizes if not size.trainable]
    kinds = {kind: sum(size.elements for size in base if size.kind == kind) for kind in ("embeddings", "head")}
    words = config.vocab_size * config.hidden_size
    assert kinds == {"embeddings": words, "head": 0 if config.tie_word_embeddings else words}


def test_an_absurd_rank_takes_no_memory():
    run = run_of(lora_r=2**31 - 1)  # half a petabyte
    assert count(run, find_config("Qwen3-0.6B")).elements(trainable=True) > 2**31 * 28 * 1024 * 7


def test_every_carried_shape_is_checked():
    assert set(carried()) == set(PUBLISHED)


def test_adapters_of_qwen3_8b_by_hand():
    counts = count(run_of("Qwen/Qwen3-8B", lora_r=16), find_config("Qwen/Qwen3-8B"))
    linears = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 12288), (4096, 12288), (12288, 4096)]
    assert (
        counts.elements(trainable=True) == counts.elements(selected=True) == 36 * sum(16 * (i + o) for i, o in linears)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text"])
@pytest.mark.parametrize("settings", [
    {}, {"load_in_4bit": True, "bf16": True}, {"adapter": "full"}, {"adapter": "dora"}, {"adapter": "beft"},
    {"adapter": "dora", "load_in_4bit": True, "bf16": True},
])  # fmt: skip
def test_layers_that_repeat_are_counted_like_the_whole_model(name, settings):
    config = family_config(name, num_hidden_layers=8)
    if name == "gemma3_text":
        config.layer_types = ["sliding_attention", "full_attention"] * 4
    run = run_of(**settings)
    whole = skeleton(run, config)
    counts = count(run, config)
    held = [
        *whole.parameters(),
        *(b for m in whole.modules() if isinstance(m, FourBitLinear) for b in m.buffers(recurse=False)),
    ]
    assert sum(size.bytes for size in counts.sizes) == sum(t.numel() * t.element_size() for t in held)
    assert counts.elements(trainable=True) == sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert counts.base == sum(p.numel() for p in base_skeleton(run, config).parameters())


def test_four_bit_weights_take_what_bitsandbytes_takes():
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(96, 200)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    planned = FourBitLinear(200, 96, None, torch.bfloat16)
    assert planned.weight.numel() == packed.numel() * packed.element_size()
    assert planned.absmax.numel() == state.absmax.numel()
    assert state.absmax.dtype == torch.uint8
    assert planned.absmax2.numel() == state.state2.absmax.numel()
    assert state.state2.blocksize == 256
    assert state.blocksize == 64


def test_layers_of_different_kinds():
    config = family_config("llama4_text", num_hidden_layers=8)
    assert period_of(base_skeleton(run_of(), config), config) == 2
    config = family_config("qwen3", num_hidden_layers=8)
    assert period_of(base_skeleton(run_of(), config), config) == 1
    assert shallow(config, 3).num_hidden_layers == len(shallow(config, 3).layer_types) == 3


def test_a_local_folder(tmp_path):
    config = family_config("qwen3")
    config.save_pretrained(tmp_path)
    assert find_config(str(tmp_path)).hidden_size == config.hidden_size
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}), encoding="utf-8")
    with pytest.raises(InputError, match="has no configuration here"):
        find_config(str(tmp_path))


def test_a_file_of_a_configuration(tmp_path):
    config = family_config("qwen3")
    path = tmp_path / "its config.json"
    path.write_text(config.to_json_string(), encoding="utf-8")
    assert find_config(str(path)).hidden_size == config.hidden_size
    for text in ("{", "[]", json.dumps({"hidden_size": 8}), json.dumps({"model_type": "no such"})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="has no configuration here") as caught:
            find_config(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.3"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x7B-v0.1"),
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama-3.3-70B"),
        ("google/gemma-2-27b-it", "Gemma-2-27B"),
        ("Qwen/Qwen3-Next-80B-A3B-Thinking", "Qwen3-Next-80B-A3B"),
        ("openai/gpt-oss-120b", "GPT-OSS-120B"),
        ("allenai/OLMo-2-0325-32B-Instruct", "OLMo-2-0325-32B"),
    ],
)
def test_ids_of_the_hub_have_shapes(name, shape):
    assert find_config(name).to_dict() == find_config(shape).to_dict()


def test_the_trace_of_a_model_without_sdpa_is_eager():
    config = shallow(find_config("Gemma-2-27B"), 2)
    assert base_skeleton(run_of(), config).config._attn_implementation == "eager"
    assert base_skeleton(run_of(), family_config("qwen3")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Qwen/Qwen3-9B", "one of GPT-OSS-120B.*Gemma-3-4B, Llama-3.1-8B.*did you mean Qwen3-8B"),
        (
            "somebody/never-heard-of",
            r"has no configuration here \(.*\); give a folder with its config\.json, or one of",
        ),
        ("./nowhere", "is no folder"),
        ("vision:mlp", "reads pictures"),
    ],
)
def test_a_model_that_is_not_known(name, says, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=says) as caught:
        find_config(name)
    assert "\n" not in str(caught.value)


def test_a_head_that_the_architecture_lacks():
    run = RunConfig.model_validate({"model": "x", "output_dir": "x", "data": {"train": "generated"}})
    with pytest.raises(InputError, match="has no classification model in transformers"):
        count(run, family_config("llama4_text"))


@pytest.mark.parametrize("debias_head", [False, True])
def test_the_rule_acts_on_a_head_where_the_run_says_so(debias_head):
    run = run_of("Qwen/Qwen3-8B", head="classification", prompt=None, debias_head=debias_head)
    sizes = count(run, find_config("Qwen/Qwen3-8B")).sizes
    head = [size for size in sizes if "modules_to_save" in size.name and size.trainable]
    assert head
    assert {size.selected for size in head} == {debias_head}
    others = {size.selected for size in sizes if size.trainable and size not in head}
    assert others == {True}
