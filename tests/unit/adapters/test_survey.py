"""debias.adapters.survey: counts by kind of layer against counts by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch

from debias.adapters.lora import add_lora
from debias.adapters.survey import KindRow, as_records, describe, kind_of, left_over, render, survey
from debias.models.load import load_model
from debias.models.quantized import prepare_quantized


def rows_of(model: Any, **settings: Any) -> dict[str, KindRow]:
    given = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": "auto", "classification": False, **settings}
    return {row.kind: row for row in survey(add_lora(model, **given))}


def test_llama4_by_hand() -> None:
    rows = rows_of(tiny_models.llama4(), experts_r=3)
    # Hidden 32; 4 + 4 attention matrices, one dense MLP of 48, one shared expert of 24, 4 experts of 24, 4 routes.
    assert rows["attention"] == KindRow("attention", 8, 8, 2 * 2 * (64 + 48 + 48 + 64), full=2 * 3072, bytes=8 * 3072)
    assert rows["MLP"] == KindRow("MLP", 3, 3, 2 * 3 * 80, full=3 * 32 * 48, bytes=4 * 3 * 32 * 48)
    assert rows["shared expert"] == KindRow("shared expert", 3, 3, 2 * 3 * 56, full=2304, bytes=4 * 2304)
    fused = 4 * 32 * 48 + 4 * 24 * 32
    trains = 3 * 4 * (32 + 48) + 3 * 4 * (24 + 32)
    assert rows["experts"] == KindRow("experts", 2, 2, trains, full=fused, bytes=4 * fused)
    assert rows["router"] == KindRow("router", 1, full=4 * 32, bytes=4 * 4 * 32)
    assert rows["head"] == KindRow("head", 1, full=200 * 32, bytes=4 * 200 * 32)
    assert rows["embeddings"] == KindRow("embeddings", 1, full=200 * 32, bytes=4 * 200 * 32)
    assert rows["other"] == KindRow("other", full=5 * 32, bytes=4 * 5 * 32)  # norms


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_nothing_is_counted_twice_or_lost(name: str) -> None:
    model = add_lora(tiny_models.family(name), r=2, alpha=4, dropout=0.0, targets="auto", classification=False)
    rows, sizes = survey(model), describe(model)
    assert sum(row.trainable for row in rows) == sizes["trainable"]
    assert sum(row.trainable + row.half + row.full for row in rows) == sizes["all"]
    assert sum(row.bytes for row in rows) == sum(p.nbytes for p in model.parameters() if not p.requires_grad)


def test_a_head_that_trains_whole() -> None:
    row = rows_of(tiny_models.qwen3(classify=True), classification=True)["head"]
    assert (row.modules, row.adapted, row.trainable, row.full) == (1, 1, 3 * 32, 3 * 32)


def test_full_fine_tuning_adapts_all() -> None:
    rows = survey(tiny_models.bert())
    assert all(row.adapted == row.modules and row.trainable == row.full for row in rows)


def test_4_bit_and_what_stays(tmp_path: Path) -> None:
    tiny_models.qwen3_moe().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "causal_lm", (), dtype=torch.bfloat16, load_in_4bit=True)
    rows = rows_of(prepare_quantized(model))
    assert (rows["attention"].four_bit, rows["attention"].half, rows["attention"].full) == (6144, 32, 0)
    assert rows["attention"].bytes > 6144 // 2 + 2 * 32  # packed in half a byte each, norms, and scales
    assert (rows["experts"].four_bit, rows["experts"].half, rows["experts"].full) == (0, 18432, 0)
    assert rows["experts"].bytes == 2 * 18432
    said = left_over(list(rows.values()))
    assert said is not None
    assert said.startswith("load_in_4bit: not in 4 bits: head 0.0 MB, experts 0.0 MB, embeddings 0.0 MB;")
    assert "fused experts are no linear layers" in said
    assert left_over(survey(tiny_models.qwen3())) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("bert.encoder.layer.0.output.dense.weight", "MLP"),
        ("transformer.h.0.mlp.c_fc.weight", "MLP"),
        ("model.layers.0.mlp.gate.weight", "router"),
        ("model.layers.0.mlp.gate_proj.weight", "MLP"),
        ("model.layers.0.feed_forward.shared_expert.up_proj.lora_A.default.weight", "shared expert"),
        ("model.layers.0.mlp.experts.base_layer.lora_B.default.weight", "experts"),
        ("score.modules_to_save.default.weight", "head"),
        ("model.norm.weight", "other"),
    ],
)
def test_kinds(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_the_table_names_its_figures() -> None:
    text = render(survey(tiny_models.qwen3()))
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["layers", "modules", "adapted"]
    assert lines[-1].split()[:2] == ["all", "16"]
    assert f"{describe(tiny_models.qwen3())['all']:,}" in lines[-1]


def test_a_run_keeps_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from debias.train import train

    caplog.set_level("INFO", logger="debias")
    bert = tiny_runs.save_bert(tmp_path / "bert")
    run = train(tiny_runs.config_for(bert, tmp_path / "run", max_steps=1))
    layers = json.loads((run / "run.json").read_text())["layers"]
    assert {row["kind"]: row["adapted"] for row in layers}["attention"] == 8
    assert "trainable" in caplog.text
    assert "attention" in caplog.text
    assert layers == as_records([KindRow(**row) for row in layers])
