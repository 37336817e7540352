"""Each row of ADAPTERS through the verbs of a run: plan, train, resume, eval, merge; frozen bases in 4 bits too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Command
from tiny_runs import PROMPT, largest_difference, settings_for

from debias.adapters import ADAPTERS
from debias.inference.loading import load_run
from debias.runs.digests import weights_of_run

WAYS = dict.fromkeys(("lora", "rslora", "lora_fa"), "single_pass")


def trained(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = [*run.glob("adapter/adapter_model.safetensors"), *run.glob("model/model.safetensors")]
    return load_file(file)


def recipe(model: Path, folder: Path, **changes: Any) -> Path:
    constant = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings_for(model, folder / "run", **{**constant, **changes})))
    return path


@pytest.mark.parametrize("row", ADAPTERS)
def test_plan_train_resume_eval_merge(row: str, bert_dropout: Path, debias: Command, tmp_path: Path) -> None:
    frozen, way = ADAPTERS[row].frozen_base, WAYS.get(row, "shared_forward")
    file = recipe(bert_dropout, tmp_path, adapter=row, max_steps=4)
    plan = json.loads(debias("plan", file, "--json").out)
    assert plan["gradients"] == way

    whole = tmp_path / "run"
    assert debias("train", file).code == 0
    told = json.loads((whole / "run.json").read_text())
    assert (told["status"], told["gradients"]) == ("finished", way)
    assert told["parameters"]["trainable"] == plan["parameters"]["trainable"]
    assert (whole / "adapter").is_dir() == frozen
    assert (whole / "model").is_dir() != frozen
    written = yaml.safe_load((whole / "config.yaml").read_text())["adapter"]
    assert written["type"] == row

    parts = f"output_dir={tmp_path / 'parts'}"
    assert debias("train", file, parts, "max_steps=2").code == 0
    assert debias("train", file, parts, "resume=true").code == 0
    assert largest_difference(trained(whole), trained(tmp_path / "parts")) == 0

    judged = debias("eval", whole, "--suite", "generated", "--limit", 20, "--json")
    assert judged.code == 0, judged.err
    (result,) = json.loads(judged.out)
    assert result["n"] == 20
    assert result["weights_sha256"] == weights_of_run(whole)
    assert result["judge"].get("adapter_changes_logits") is (True if frozen else None)

    merged = debias("merge", whole, "-o", tmp_path / "dense")
    if not ADAPTERS[row].folds:
        assert f"adapter.type is {row!r}" in merged.error
        return
    assert merged.code == 0, merged.err
    from transformers import AutoModelForSequenceClassification

    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense").eval()
    ids = torch.randint(6, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    adapted = load_run(whole).model.eval()
    with torch.no_grad():
        assert torch.allclose(dense(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("row", [name for name, row in ADAPTERS.items() if row.frozen_base])
def test_a_4_bit_base_without_biases(row: str, llama: Path, debias: Command, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    answers = {"head": "causal_lm", "prompt": PROMPT, "load_in_4bit": True}
    file = recipe(llama, tmp_path, adapter=row, max_steps=2, **answers)
    plan = json.loads(debias("plan", file, "--json").out)
    assert debias("train", file).code == 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["gradients"] == plan["gradients"] == WAYS.get(row, "shared_forward")
    assert told["parameters"]["trainable"] == plan["parameters"]["trainable"]
    assert told["parameters"]["four_bit"] == plan["parameters"]["four_bit"] > 0
    assert {tensor.dtype for tensor in trained(tmp_path / "run").values()} == {torch.float32}
    judged = debias("eval", tmp_path / "run", "--suite", "generated", "--limit", 8, "--json")
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)[0]["judge"]["adapter_changes_logits"] is True


def test_single_pass_is_refused_for_dora(bert: Path, debias: Command, tmp_path: Path) -> None:
    error = debias("train", recipe(bert, tmp_path, adapter="dora", gradients="single_pass")).error
    assert "gradients 'single_pass' is not exact here" in error
    assert "is a LoRA variant (DoraLinearVariant)" in error
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "adapter=dorra",
            "adapter.type is 'dorra', not one of lora, dora, beft, bitfit, full, rslora, lora_fa, vera, ia3; did you"
            " mean dora?",
        ),
        ("adapter={type: dora, experts: true}", "adapter.experts: dora has no such setting"),
        ("adapter={type: beft, target: [query]}", "adapter.target: beft has no such setting; did you mean targets?"),
        ("adapter={type: beft, targets: [v_proj]}", "adapter.targets: 'v_proj' matches no linear layer"),
    ],
)
def test_what_is_wrong_in_the_block(override: str, message: str, bert: Path, debias: Command, tmp_path: Path) -> None:
    assert message in debias("train", recipe(bert, tmp_path), override).error
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_the_table_is_judged_and_gone_on_with(bert: Path, debias: Command, tmp_path: Path) -> None:
    """Its config.yaml has LoRA's settings beside every type."""
    old = {"type": "bitfit", "targets": "auto", "target_parameters": [], "experts": "auto", "experts_r": None}
    file = recipe(bert, tmp_path, adapter="bitfit", max_steps=2)
    assert debias("train", file).code == 0
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    assert settings["adapter"] == {"type": "bitfit"}
    config.write_text(yaml.safe_dump({**settings, "adapter": old}))
    assert debias("eval", tmp_path / "run", "--suite", "generated", "--limit", 8).code == 0
    shutil.rmtree(tmp_path / "run" / "model")
    assert debias("train", file, "resume=true").code == 0
    assert (tmp_path / "run" / "model").is_dir()
