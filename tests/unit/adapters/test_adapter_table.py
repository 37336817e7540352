"""Every row of ADAPTERS: what trains is what the row owns, saved and loaded by others' tools, counted by the plan."""

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
from planned_runs import run_of

from debias.adapters import ADAPTERS, RunFacts, base_path, is_beside_base, make_adapter
from debias.adapters.survey import describe, survey
from debias.building.model import adapt, check_trainable
from debias.engines import not_head
from debias.errors import InputError
from debias.gradients.single_pass import refusal
from debias.models.load import load_model
from debias.plan.count import count

FACTS = RunFacts(classification=True, lora_r=2, lora_alpha=4)
# Which rows cannot take a model, and why; BERT and the pictures' model have biases, Qwen3 has none.
REFUSED = {("bitfit", "qwen3"), ("bitfit", "qwen3_moe")}


def model_of(name: str) -> Any:
    if name == "vit":
        return load_model("vision:vit", "image_classification", ("a", "b", "c"))
    return tiny_models.bert() if name == "bert" else tiny_models.family(name, classify=True)


def attached(row: str, name: str) -> Any:
    model = model_of(name)
    torch.manual_seed(1)
    return make_adapter(row).attach(model, RunFacts(True, getattr(model, "fresh_modules", ()), 2, 4.0))


def logits(model: Any) -> torch.Tensor:
    batch = {key: value for key, value in tiny_models.text_batch().items() if key != "labels"}
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("name", ["bert", "qwen3", "qwen3_moe", "vit"])
@pytest.mark.parametrize("row", ADAPTERS)
def test_what_trains_is_what_the_row_owns(row: str, name: str) -> None:
    if (row, name) in REFUSED:
        with pytest.raises(InputError, match="'bitfit' trains bias vectors, and this model has none"):
            attached(row, name)
        return
    kind, model = ADAPTERS[row], attached(row, name)
    trains = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {path for path, _ in model.named_parameters() if kind.owns(path)}
    assert trains
    assert any(path not in trains for path, _ in model.named_parameters()) == (row != "full")
    base = {path for path, _ in model_of(name).named_parameters()}
    beside = {path for path, _ in model.named_parameters() if is_beside_base(path)}
    held = {path for path, _ in model.named_parameters() if any(mark in path for mark in kind.held)}
    assert beside == (trains | held if kind.frozen_base else set())
    assert len(base) == len(list(model.named_parameters())) - len(beside)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert any(not_head(path, parameter) for path, parameter in model.named_parameters() if path in trains)


@pytest.mark.parametrize("row", ADAPTERS)
def test_others_tools_load_what_was_saved(row: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = tiny_models.bert()
    base.save_pretrained(tmp_path / "base")
    before = logits(copy.deepcopy(base))
    model = tiny_models.randomized(make_adapter(row).attach(base, FACTS))
    model.save_pretrained(tmp_path / "trained")
    frozen = ADAPTERS[row].frozen_base
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / ("base" if frozen else "trained"))
    found = PeftModel.from_pretrained(found, tmp_path / "trained") if frozen else found
    assert torch.equal(logits(found), logits(model))
    assert float((logits(model) - before).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma3_text", "llama4_text"])
@pytest.mark.parametrize("row", ADAPTERS)
def test_the_plan_counts_what_the_model_has(row: str, name: str) -> None:
    """The plan builds a model of few layers on the meta device; here it is the whole one, with values."""
    run = run_of(adapter=row, lora_r=3)
    base = tiny_models.family(name)
    base.fresh_modules = []
    elements = describe(base)["all"]
    if row == "bitfit":
        with pytest.raises(InputError, match="bitfit"):
            count(run, tiny_models.family_config(name))
        return
    model, counts = adapt(run, base), count(run, tiny_models.family_config(name))
    assert counts.elements(trainable=True) == describe(model)["trainable"]
    assert counts.base == elements
    assert sum(size.trainable for size in counts.sizes) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("row", ADAPTERS)
def test_the_survey_counts_each_adapted_weight_once(row: str) -> None:
    model = attached(row, "bert")
    rows = {one.kind: one for one in survey(model)}
    assert sum(one.trainable for one in rows.values()) == describe(model)["trainable"]
    # q, k, v, o of two layers
    adapted = {"beft": 2, "bitfit": 0, "ia3": 4}.get(row, 8)
    assert (rows["attention"].modules, rows["attention"].adapted) == (8, adapted)
    assert (rows["head"].modules, rows["head"].adapted) == (1, 1)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("base_model.model.l.0.q_proj.lora_A.default.weight", ("base_model.model.l.0.q_proj", True)),
        ("l.0.q_proj.lora_B.default.weight", ("l.0.q_proj", False)),
        ("l.0.q_proj.lora_magnitude_vector.default.weight", ("l.0.q_proj", False)),
        ("l.0.k_proj.vera_lambda_d.default", ("l.0.k_proj", True)),
        ("l.0.k_proj.vera_lambda_b.default", ("l.0.k_proj", False)),
        ("l.0.down_proj.ia3_l.default", ("l.0.down_proj", True)),
        ("l.0.v_proj.beft_bias.default", ("l.0.v_proj", True)),
        ("classifier.modules_to_save.default.weight", ("classifier.modules_to_save.default.weight", True)),
        ("l.0.v_proj.base_layer.weight", ("l.0.v_proj.base_layer.weight", False)),
    ],
)
def test_where_a_tensor_beside_the_base_belongs(path: str, found: tuple[str, bool]) -> None:
    assert base_path(path) == found
    assert is_beside_base(path) == (found[0] != path or "modules_to_save" in path)


@pytest.mark.parametrize("row", ADAPTERS)
def test_a_base_in_4_bits_is_a_frozen_one(row: str) -> None:
    run = run_of(adapter=row, load_in_4bit=True)
    if ADAPTERS[row].frozen_base:
        check_trainable(run)
        return
    with pytest.raises(InputError, match=f"a 4-bit base cannot be trained itself; adapter.type is '{row}'"):
        check_trainable(run)


@pytest.mark.parametrize("row", ADAPTERS)
def test_which_rows_take_a_single_pass(row: str) -> None:
    """LoRA, A frozen or not; of DoRA the layer's own norm stands between the two matrices and the output."""
    model = attached(row, "bert")
    selected = {name: p for name, p in model.named_parameters() if p.requires_grad and not_head(name, p)}
    reason = refusal(model, selected)
    assert (reason is None) == (row in ("lora", "rslora", "lora_fa"))
    if row == "dora":
        assert reason is not None
        assert "is a LoRA variant (DoraLinearVariant)" in reason


def test_a_row_is_told_its_settings() -> None:
    model = make_adapter({"type": "dora", "targets": ["query"]}).attach(tiny_models.bert(), FACTS)
    layers = [path for path, _ in model.named_parameters() if "lora_A" in path]
    assert len(layers) == 2
    assert all(".query." in path for path in layers)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_dora) == (2, 4, True)


def test_dora_leaves_fused_experts(caplog: pytest.LogCaptureFixture) -> None:
    model = make_adapter("dora").attach(tiny_models.qwen3_moe(classify=True), FACTS)
    assert "dora: 4 stacks of fused experts get no adapter" in caplog.text
    assert not any("experts" in path for path, p in model.named_parameters() if p.requires_grad)


def test_dora_begins_as_its_base_and_keeps_the_paper_s_form() -> None:
    """`m (W + s B A) / |W + s B A|` row by row, from the tensors and in plain loops, against what the layer says."""
    base = tiny_models.bert()
    before = logits(copy.deepcopy(base))
    model = make_adapter({"type": "dora", "targets": ["query"]}).attach(base, FACTS)
    assert torch.allclose(logits(model), before, atol=1e-6)
    tiny_models.randomized(model)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    w, b = layer.base_layer.weight.double(), layer.base_layer.bias.double()
    a_RI, b_OR = (getattr(layer, name)["default"].weight.detach().double() for name in ("lora_A", "lora_B"))
    m_O = layer.lora_magnitude_vector["default"].weight.detach().double()
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    got = layer(x).detach().double()
    for o in range(16):
        row = [float(w[o, i]) + 2.0 * sum(float(b_OR[o, r] * a_RI[r, i]) for r in range(2)) for i in range(16)]
        norm = sum(value * value for value in row) ** 0.5
        for n in range(3):
            want = float(m_O[o]) / norm * sum(float(x[n, i]) * row[i] for i in range(16)) + float(b[o])
            assert abs(float(got[n, o]) - want) < 1e-5


def test_tiny_runs_name_their_adapter(tmp_path: Path) -> None:
    for row in ADAPTERS:
        assert tiny_runs.config_for(tmp_path, tmp_path / "x", adapter=row).adapter["type"] == row
