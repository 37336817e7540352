"""BEFT: which layers get a vector, the score that selects a bias, and what is refused."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
from gradient_checks import text_loss, weights_for
from safetensors.torch import load_file

from debias.adapters import RunFacts, make_adapter
from debias.adapters.beft import beft_scores, best_target, selection_scores
from debias.engines import attach
from debias.errors import InputError
from debias.methods import Edge
from debias.train import train


def beft(model: Any, *targets: str) -> Any:
    block = {"type": "beft", **({"targets": list(targets)} if targets else {})}
    return make_adapter(block).attach(model, RunFacts(classification=True))


def vectors(model: Any) -> dict[str, torch.Tensor]:
    return {path: p for path, p in model.named_parameters() if "beft_bias" in path}


# Which layers.


@pytest.mark.parametrize(
    ("model", "targets", "ending", "shape"),
    [
        (tiny_models.bert, (), ".value.beft_bias.default", [1, 16]),
        (tiny_models.bert, ("query",), ".query.beft_bias.default", [1, 16]),
        (tiny_models.qwen3, (), ".v_proj.beft_bias.default", [1, 16]),
        (tiny_models.llama4, (), ".v_proj.beft_bias.default", [1, 16]),
        (tiny_models.gemma3, ("o_proj",), ".o_proj.beft_bias.default", [1, 32]),
    ],
)
def test_one_row_for_each_layer_that_is_named(model: Any, targets: Any, ending: str, shape: list[int]) -> None:
    found = vectors(beft(model(), *targets))
    assert len(found) == 2
    assert all(path.endswith(ending) and list(p.shape) == shape and not p.any() for path, p in found.items())


def test_a_layer_without_bias_gets_one_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    beft(tiny_models.qwen3(classify=True))
    (line,) = [record.getMessage() for record in caplog.records if "beft" in record.getMessage()]
    assert "2 of 2 layers have no bias of their own" in line
    assert "cannot be merged into the base" in line
    caplog.clear()
    beft(tiny_models.bert())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (
            tiny_models.bert,
            ["v_proj"],
            "adapter.targets: 'v_proj' matches no linear layer; there are dense, key, query, v",
        ),
        (
            tiny_models.gpt2,
            [],
            "'auto' of beft is the value projection (v_proj, value, .*), and this model has none; give",
        ),
        (tiny_models.gpt2, ["c_attn"], "beft adapts nn.Linear alone, and transformer.h.0.attn.c_attn is a Conv1D"),
        (tiny_models.qwen3_moe, ["gate"], "'gate' matches no linear layer"),
    ],
)
def test_layers_that_cannot_take_it(model: Any, targets: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        beft(model(), *targets)


# One-row tensors.


def test_edge_takes_the_tensor_form_of_its_one_row(caplog: pytest.LogCaptureFixture) -> None:
    """Published EDGE would add bias to a tensor of one row; the update is the tensor form, in plain sums here."""
    model, batch, weight_B = beft(tiny_models.bert(), "query", "value"), tiny_models.text_batch(6), weights_for(6)
    (path, vector) = next((path, p) for path, p in vectors(model).items() if ".value." in path)
    loss_B = text_loss(model, batch)
    main = torch.autograd.grad(loss_B.mean(), vector, retain_graph=True)[0].double().flatten().tolist()
    bias = torch.autograd.grad((weight_B * loss_B).mean(), vector)[0].double().flatten().tolist()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge(alpha=0.5, projection="published"))
    assert hook.gradients == "shared_forward"
    hook.backward(text_loss(model, batch), weight_B)
    hook.combine()
    length = [math.sqrt(math.fsum(value * value for value in one)) for one in (main, bias)]
    shared = [m / length[0] + b / length[1] for m, b in zip(main, bias, strict=True)]
    share = math.fsum(b * c for b, c in zip(bias, shared, strict=True)) / math.fsum(c * c for c in shared)
    want = [m - 0.5 * (b - share * c) for m, b, c in zip(main, bias, shared, strict=True)]
    assert vector.grad is not None
    assert vector.grad.flatten().tolist() == pytest.approx(want, abs=1e-6 * length[0]), path
    published = math.fsum(b * c for b, c in zip(bias, shared, strict=True))
    wrong = [m - 0.5 * (b - published * c) for m, b, c in zip(main, bias, shared, strict=True)]
    assert math.dist(wrong, want) > 0.01 * length[0]


# The score.


def by_hand(pairs: list[tuple[list[float], list[float]]]) -> float:
    scores = []
    for u, w in pairs:
        inner = sum(a * b for a, b in zip(w, u, strict=True))
        longest = max(math.sqrt(sum(a * a for a in one)) for one in (u, w))
        scores.append(1 - inner / longest**2)
    return sum(scores) / len(scores)


def test_the_score_against_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    base, tuned, pairs = {}, {}, {}
    for layer in range(5):
        for number, name in enumerate(("query", "key", "value")):
            u = torch.randn(7, generator=generator)
            w = (1 + 0.3 * number) * u + number * torch.randn(7, generator=generator)
            path = f"bert.encoder.layer.{layer}.attention.self.{name}.bias"
            base[path], tuned[path] = u, w
            pairs.setdefault(name, []).append((u.double().tolist(), w.double().tolist()))
    found = beft_scores(base, tuned)
    assert list(found) == ["query", "key", "value"]
    for name, score in found.items():
        assert score == pytest.approx(by_hand(pairs[name]), rel=1e-12)
    assert found["query"] == 0.0  # as it was
    assert best_target(found) == max(found, key=lambda name: found[name])


@pytest.mark.parametrize(
    ("tuned", "score"),
    [([1.0, 0.0], 0.0), ([-1.0, 0.0], 2.0), ([0.0, 3.0], 1.0), ([2.0, 0.0], 0.5), ([0.5, 0.0], 0.5), ([0.0, 0.0], 1.0)],
)
def test_scores_known_by_heart(tuned: list[float], score: float) -> None:
    found = beft_scores({"l.q.bias": torch.tensor([1.0, 0.0])}, {"l.q.bias": torch.tensor(tuned)})
    assert found == {"q": score}


def test_layers_whose_base_bias_is_zero_or_absent_have_no_score() -> None:
    base = {"0.q.bias": torch.zeros(2), "1.q.bias": torch.ones(2), "0.v.bias": torch.zeros(2)}
    tuned = {path: torch.tensor([1.0, 0.0]) for path in ("0.q.bias", "1.q.bias", "0.v.bias", "0.k.bias")}
    found = beft_scores(base, tuned)
    assert found["q"] == 0.5
    assert math.isnan(found["v"])
    assert math.isnan(found["k"])
    assert beft_scores({}, {}) == {}


def test_what_the_scores_refuse() -> None:
    with pytest.raises(ValueError, match=r"0.q.bias: shape \[3\], but \[2\] in the base"):
        beft_scores({"0.q.bias": torch.ones(2)}, {"0.q.bias": torch.ones(3)})


def test_undefined_scores_fall_back_to_the_value_projection(caplog: pytest.LogCaptureFixture) -> None:
    nothing = float("nan")
    assert best_target({"q_proj": nothing, "k_proj": nothing, "v_proj": nothing}) == "v_proj"
    assert "the score of q_proj, k_proj, v_proj is undefined" in caplog.text
    assert "v_proj is taken" in caplog.text
    assert best_target({"query": 1.9, "key": nothing, "value": 0.1}) == "value"
    for scores in ({}, {"query": nothing}):
        with pytest.raises(ValueError, match="names no value projection"):
            best_target(scores)


# From a run.


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished BitFit run of a BERT whose biases are not zero."""
    place = tmp_path_factory.mktemp("beft")
    tiny_runs.save_bert(place / "bert")
    from transformers import BertModel

    model = BertModel.from_pretrained(place / "bert")
    torch.manual_seed(3)
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(place / "bert")
    return train(tiny_runs.config_for(place / "bert", place / "run", adapter="bitfit", max_steps=2))


def test_scores_of_a_run_are_those_of_its_files(tuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = selection_scores(tuned)
    base = load_file(tuned.parent / "bert" / "model.safetensors")
    after = load_file(tuned / "model" / "model.safetensors")
    assert list(found) == ["query", "key", "value"]
    for name, score in found.items():
        paths = [f"encoder.layer.{layer}.attention.self.{name}.bias" for layer in range(2)]
        pairs = [(base[path].double().tolist(), after[f"bert.{path}"].double().tolist()) for path in paths]
        assert score == pytest.approx(by_hand(pairs), rel=1e-9)
        assert score > 0
    caplog.set_level(logging.WARNING)
    assert best_target(found) in found


def test_runs_that_have_no_scores(tuned: Path, tmp_path: Path) -> None:
    from debias.config.reading import dump_config, load_config

    config = load_config(tuned / "config.yaml")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(InputError, match="holds no model/; the run has not finished"):
        selection_scores(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(config).replace("type: bitfit", "type: full"))
    with pytest.raises(InputError, match=r"adapter\.type is 'full'; scores come from a bitfit run"):
        selection_scores(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        selection_scores(tmp_path / "nowhere")
