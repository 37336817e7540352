"""The figures of single transformer layers, against sums over plain numbers."""

import math

import pytest
import torch
from gradient_checks import by_samples, text_loss, weights_for
from tiny_models import bert_lora, text_batch
from torch import nn

from debias.engines import attach
from debias.engines.step import GramSums, layer_of, report, rows_of_layers
from debias.methods import Edge, Gram, MainOnly, Orthogonal, Subtract, combine

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", "3"),
        ("module.base_model.model.bert.encoder.layer.11.output.dense.lora_B.default.weight", "11"),
        ("transformer.h.0.attn.c_attn.weight", "0"),
        ("layers.2.mlp.experts.7.up_proj.weight", "2"),
        ("encoder.block.5.layer.1.DenseReluDense.wi.weight", "5"),
        ("blocks.4.norm.bias", "4"),
        ("base_model.model.classifier.weight", "other"),
        ("bert.embeddings.word_embeddings.weight", "other"),
        ("player.3.weight", "other"),
        ("graph.1.weight", "other"),
        ("layers.norm.weight", "other"),
        ("layer.3", "other"),
        ("", "other"),
    ],
)
def test_a_layer_by_the_name_of_a_parameter(name, layer):
    assert layer_of(name) == layer


def test_layers_come_in_their_order():
    names = ("x.layer.10.a", "head", "x.layer.2.a", "x.layer.10.b")
    assert list(rows_of_layers(names).items()) == [("2", (2,)), ("10", (0, 3)), ("other", (1,))]


def plainly(main, bias, update):
    """(cosine, removed share) of lists of numbers."""
    mm, bb = math.fsum(m * m for m in main), math.fsum(b * b for b in bias)
    mb = math.fsum(m * b for m, b in zip(main, bias, strict=True))
    removed = math.fsum((m - u) ** 2 for m, u in zip(main, update, strict=True))
    return mb / math.sqrt(mm * bb), math.sqrt(removed / mm)


@pytest.mark.parametrize("rule", [Edge(), Edge(0.5, "row"), Edge(1.0, "tensor"), Subtract(), Orthogonal()], ids=repr)
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_figures_of_each_layer(rule, way):
    model, batch, weight_B = bert_lora(), text_batch(6), weights_for(6)
    main, bias = by_samples(model, text_loss, batch, weight_B)
    want = {}
    for layer in ("0", "1"):
        names = [name for name in bias if f".layer.{layer}." in name]
        assert names
        sides = [[], [], []]
        for name in names:
            m, b = main[name] / 6, bias[name] / 6
            for side, tensor in zip(sides, (m, b, combine(rule, m, b)), strict=True):
                side.extend(tensor.double().flatten().tolist())
        want[layer] = plainly(*sides)
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), rule, way)
    hook.backward(text_loss(model, batch), weight_B)
    done = hook.step()
    assert set(done.cosine_by_layer) == set(done.removed_share_by_layer) == {"0", "1", "other"}  # a pooler
    for layer, (cosine, removed_share) in want.items():
        assert done.cosine_by_layer[layer] == pytest.approx(cosine, rel=1e-4)
        assert done.removed_share_by_layer[layer] == pytest.approx(removed_share, rel=1e-4)
    assert abs(want["0"][0] - want["1"][0]) > 1e-3  # or a mix-up of layers would pass


def test_the_whole_is_what_its_layers_make():
    torch.manual_seed(0)
    sums = GramSums()
    for name in ("h.0.w", "h.1.w"):
        main, bias = torch.randn(1, 4, 3, dtype=torch.float64), torch.randn(1, 4, 3, dtype=torch.float64)
        gram = torch.stack([(main**2).sum(-1), (main * bias).sum(-1), (bias**2).sum(-1)], dim=-1)
        sums.add([name], Gram.of(gram), [torch.full((1, 4), 0.9).double(), torch.full((1, 4), -0.2).double()])
    done = report(sums, 0.5, 4.0)
    mm, _, _, removed, update = torch.cat(sums.parts_K5).sum(0).tolist()
    assert done.main_norm == pytest.approx(0.5 * mm**0.5)
    assert done.grad_norm == pytest.approx(0.5 * update**0.5)
    assert done.removed_share == pytest.approx((removed / mm) ** 0.5)
    parts = torch.cat(sums.parts_K5)
    layers = [(parts[i, 3] / parts[i, 0]).sqrt().item() for i in range(2)]
    assert list(done.removed_share_by_layer.values()) == pytest.approx(layers)


def test_a_layer_without_a_gradient_has_no_cosine():
    """Zero over zero: the figure is 0, as that of the whole."""
    sums = GramSums()
    sums.add(["h.0.w"], Gram.of(torch.zeros(1, 2, 3).double()), [torch.ones(1, 2).double(), torch.zeros(1, 2).double()])
    done = report(sums, 1.0, 1.0)
    assert done.cosine_by_layer == done.removed_share_by_layer == {"0": 0.0}
    assert done.finite


def test_nan_stays_in_its_layer_and_in_the_whole():
    sums = GramSums()
    gram = torch.ones(2, 2, 3).double()
    gram[1, 0, 0] = float("nan")
    sums.add(["h.0.w", "h.1.w"], Gram.of(gram), [torch.ones(2, 2).double(), torch.zeros(2, 2).double()])
    done = report(sums, 1.0, 1.0)
    assert not done.finite
    assert done.cosine_by_layer["0"] == pytest.approx(1.0)
    assert math.isnan(done.cosine_by_layer["1"])


def test_plain_fine_tuning_has_no_layers():
    model = nn.Sequential(nn.Linear(3, 2))
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), MainOnly())
    hook.backward(model(torch.randn(4, 3)).square().sum(dim=1), torch.ones(4))
    assert hook.step().cosine_by_layer == {}
