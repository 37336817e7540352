"""Plans of PEFT adapters of any kind, by their settings: counts are PEFT's own, and nothing unknown is promised."""

import json

import pytest
import tiny_runs
from command_line import command_line
from peft import PeftConfig, get_peft_model
from planned_runs import run_of
from transformers import AutoModelForCausalLM

LINEAR = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
# Of each kind: its settings, and whether both gradients may come of one pass.
KINDS = {
    "lora": ({**LINEAR, "peft_type": "LORA", "r": 4}, True),
    "dora": ({**LINEAR, "peft_type": "LORA", "r": 4, "use_dora": True}, False),
    "vera": ({**LINEAR, "peft_type": "VERA", "r": 8, "inference_mode": True}, False),
    "ia3": ({**LINEAR, "peft_type": "IA3", "feedforward_modules": []}, False),
    "loha": ({**LINEAR, "peft_type": "LOHA", "r": 2}, False),
    "prompt": ({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 8}, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_runs.save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def planned(folder, tmp_path, monkeypatch, capsys):
    """What `debias plan --adapter` says of these settings."""
    (tmp_path / "run.yaml").write_text(json.dumps(run_of(str(folder)).model_dump(mode="json", exclude_unset=True)))

    def plan(settings, *words):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        told = ("plan", tmp_path / "run.yaml", "--adapter", tmp_path, *words)
        return command_line(monkeypatch, capsys)(*told)

    return plan


@pytest.mark.parametrize(("settings", "single_pass"), KINDS.values(), ids=KINDS)
def test_counts_are_those_of_the_adapter_that_peft_makes(settings, single_pass, planned, folder):
    said = planned(settings, "--gpu-memory", "24GB", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    base = AutoModelForCausalLM.from_pretrained(folder)
    elements = sum(parameter.numel() for parameter in base.parameters())
    real = get_peft_model(base, PeftConfig.from_peft_type(**{**settings, "inference_mode": False}))
    trained = sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert (found["parameters"]["base"], found["parameters"]["trainable"]) == (elements, trained)
    assert found["parts"]["trained weights"] == 4 * trained
    assert found["gradients"] == ("single_pass" if single_pass else "shared_forward")
    assert (found["fits"], found["largest_micro_batch"]) == (None, None)  # activations are not known
    assert "activations" not in found["parts"]


def test_a_weight_penalty_is_held_to_the_adapter_that_is_planned(planned):
    """Not to the run's own, which the adapter takes the place of."""
    told = ("weight_penalty=pego", "lora_r=6", "method=erm")
    assert planned(KINDS["lora"][0], *told).code == 0
    assert planned({**KINDS["lora"][0], "r": 6}, *told).error.startswith(
        "error: weight_penalty.adapters is 4, expected"
    )
    assert "has LoRA of another form" in planned(KINDS["dora"][0], *told).error


def test_plain_training_combines_nothing(planned):
    plain = json.loads(planned(KINDS["loha"][0], "method=erm", "--json").out)
    assert not [part for part in plain["parts"] if "combin" in part]


def test_a_person_is_told_what_is_not_known(planned):
    settings = KINDS["vera"][0]
    lines = planned(settings, "--gpu-memory", "24GB").out.splitlines()
    assert [line for line in lines if line.startswith("not known of VERA adapters: activations, and what ranks send; ")]
    assert [line for line in lines if line.startswith("at least 0.6") and line.endswith("and what is not known")]
    assert [line for line in lines if "an adapter of a kind that is not known (vera: Linear)" in line]
    assert not [line for line in lines if line.startswith("fits")]
    assert "DOES NOT FIT: at least" in planned(settings, "--gpu-memory", "1MB").out
    assert "two_pass" in planned(settings, "deepspeed=zero3").out
    assert "'single_pass' is not exact here" in planned(settings, "gradients=single_pass").error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "NOPE"}, "is nothing that PEFT here reads"),
        ({"r": 8}, "names no peft_type"),
        ([], "names no peft_type"),
        ({**LINEAR, "peft_type": "VERA", "target_modules": ["nowhere"]}, "VERA does not fit"),
    ],
)
def test_settings_that_are_none(settings, says, planned):
    assert says in planned(settings).error
