"""Terms of the weights: a golden row, an oracle in plain loops that forms what is not formed here, and in a step.

The golden row, by hand: with W = diag(1, 2) and s = 1/2 the signs of `W D_1^T`, `W D_2^T` and `D_1 D_2^T` are
[[+, -], [+, -]], [[+, +], [-, -]] and [[-, -], [+, +]].
"""

import itertools
import math

import pytest
import torch
from gradient_checks import text_loss, weights_for
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from tiny_models import bert, bert_lora, gpt2, llama, rows, text_batch, with_lora
from torch import nn
from torch.nn.functional import cross_entropy

from debias.engines import attach, attaching
from debias.methods import Edge, MainOnly
from debias.penalties import PEGO, PENALTIES, Factors, make_penalty, pego
from debias.sharpness import SAM

# The row, W, B, A and the scaling; the slopes by B and by A.
GOLDEN = [
    (
        PEGO(strength=1.0, adapters=2),
        ([[1.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [-1.0, 1.0]], [[1.0, 1.0], [1.0, -2.0]], 0.5),
        ([[2.25, 3.0], [-2.25, 3.0]], [[-0.5, 5.0], [0.0, -4.5]]),
    )
]


def layer_of(base, b, a, scale):
    return Factors(*(torch.as_tensor(one, dtype=torch.float64) for one in (base, b, a)), scale)


@pytest.mark.parametrize(("penalty", "layer", "slopes"), GOLDEN)
def test_golden(penalty, layer, slopes):
    for got, want in zip(penalty.slopes(layer_of(*layer)), slopes, strict=True):
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-15, atol=1e-15)


def test_every_row_has_a_golden_one():
    assert {type(row[0]) for row in GOLDEN} == set(PENALTIES.values())
    assert make_penalty(None) is None
    assert make_penalty({"name": "pego", "strength": 1}) == PEGO(strength=1.0)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "pego", "strength": -1}, r"weight_penalty\.strength is -1, expected 0 or more"),
        ({"name": "pego", "adapters": 0}, r"weight_penalty\.adapters is 0, expected 1 or more"),
        ({"name": "pego", "rank": 4}, r"weight_penalty\.rank: pego has no such setting"),
        ("pegu", r"weight_penalty\.name is 'pegu', not one of pego; did you mean pego\?"),
    ],
)
def test_wrong_settings_are_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        make_penalty(block)


# The oracle: every D_i is formed, entry by entry.


def product(left, right):
    return [[math.fsum(x * y for x, y in zip(row, other, strict=True)) for other in right] for row in left]


def turned(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def absolute(left, right):
    """Of `left right^T`, the sum of absolute values."""
    return math.fsum(abs(value) for row in product(left, right) for value in row)


def value(base, b, a, scale, adapters):
    size = len(a) // adapters
    updates = []
    for at in range(0, len(a), size):
        b_i, a_i = [row[at : at + size] for row in b], a[at : at + size]
        updates.append([[scale * one for one in row] for row in product(b_i, turned(a_i))])
    pairs = itertools.combinations(updates, 2)
    return math.fsum(absolute(base, one) for one in updates) + math.fsum(absolute(*pair) for pair in pairs)


def slopes_by_differences(base, b, a, scale, adapters):
    found = []
    for matrix in (b, a):
        slope = [[0.0] * len(matrix[0]) for _ in matrix]
        for i, j in itertools.product(range(len(matrix)), range(len(matrix[0]))):
            held, ends = matrix[i][j], []
            for way in (1e-6, -1e-6):
                matrix[i][j] = held + way
                ends.append(value(base, b, a, scale, adapters))
            matrix[i][j] = held
            slope[i][j] = (ends[0] - ends[1]) / 2e-6
        found.append(slope)
    return found


@pytest.mark.parametrize(("rows_", "columns", "adapters", "size"), [(5, 3, 3, 2), (3, 6, 2, 1), (4, 4, 1, 3)])
def test_slopes_are_those_of_the_term_as_it_is_written(rows_, columns, adapters, size, monkeypatch):
    """However many rows are handled together."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((rows_, columns), (rows_, adapters * size), (adapters * size, columns))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).tolist() for shape in shapes]
    wanted = slopes_by_differences(*drawn, 0.7, adapters)
    for most in (1, 2 * rows_, 1 << 22):
        monkeypatch.setattr(pego, "MOST", most)
        found = PEGO(strength=2.0, adapters=adapters).slopes(layer_of(*drawn, 0.7))
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, 2 * torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_group_of_adapters_is_one_lora():
    """N parallel adapters add what one of N times the rank does. It begins where they begin, without a slope."""
    generator = torch.Generator().manual_seed(7)
    a, b, x = (torch.randn(shape, generator=generator) for shape in ((6, 5), (4, 6), (5,)))
    apart = sum(b[:, at : at + 2] @ (a[at : at + 2] @ x) for at in (0, 2, 4))
    torch.testing.assert_close(b @ (a @ x), apart)
    for slope in PEGO(adapters=3).slopes(Factors(torch.randn(4, 5), torch.zeros(4, 6), a, 1.0)):
        assert not slope.any()


# In a step.

STRONG = PEGO(strength=0.05, adapters=3)


def stepped(model, parts, batch, way="auto", rule=None, penalty=STRONG, **settings):
    """What one step of plain SGD at rate 1 takes from every parameter."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    hook = attach(model, optimizer, rule or Edge(), way, weight_penalty=penalty, **settings)
    for start, stop in parts:
        part = rows(batch, start, stop)
        weight_B = weights_for(stop - start)
        hook.backward(text_loss(model, part), weight_B, again=lambda p=part, w=weight_B: (text_loss(model, p), w))
    report = hook.step()
    hook.detach()
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}, report


def term_by_autograd(model):
    """The penalty of a whole model as its authors' code has it, D_i formed."""
    total = torch.zeros(())
    for module in model.modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            base = module.get_base_layer().weight.detach()
            base = base.T if module.fan_in_fan_out else base
            updates = [module.scaling["default"] * b[:, i : i + 1] @ a[i : i + 1] for i in range(3)]
            total = total + sum((base @ one.T).abs().sum() for one in updates)
            total = total + sum((one @ other.T).abs().sum() for one, other in itertools.combinations(updates, 2))
    return total


@pytest.mark.parametrize("way", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("parts", [[(0, 6)], [(0, 1), (1, 4), (4, 6)]], ids=["whole", "cut"])
def test_it_is_added_once_a_step_to_what_the_rule_has_made(way, parts):
    batch = text_batch()
    plain, before = stepped(bert_lora(), parts, batch, way, penalty=None)
    found, report = stepped(bert_lora(), parts, batch, way)
    model = bert_lora()
    (STRONG.strength * term_by_autograd(model)).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(wanted) > 8
    for name in found:
        torch.testing.assert_close(found[name], plain[name] + wanted.get(name, 0.0), rtol=1e-4, atol=2e-5)
    whole = math.sqrt(sum(float(one.square().sum()) for one in found.values()))
    assert report.grad_norm == pytest.approx(whole, rel=1e-4)
    assert report.main_norm == pytest.approx(before.main_norm, rel=1e-6)  # neither gradient has any of it


def test_it_is_clipped_with_the_rest():
    found, _ = stepped(bert_lora(), [(0, 6)], text_batch(), rule=MainOnly(), max_grad_norm=0.01)
    assert math.sqrt(sum(float(one.square().sum()) for one in found.values())) == pytest.approx(0.01, rel=1e-3)


def test_sharpness_moves_weights_and_the_term_is_of_those_that_were_there():
    steps = [
        stepped(bert_lora(), [(0, 6)], text_batch(), penalty=one, sharpness=SAM(rho=0.5))[0] for one in (None, STRONG)
    ]
    plain = [stepped(bert_lora(), [(0, 6)], text_batch(), penalty=one)[0] for one in (None, STRONG)]
    for name in steps[0]:
        torch.testing.assert_close(
            steps[1][name] - steps[0][name], plain[1][name] - plain[0][name], rtol=1e-3, atol=5e-5
        )


def test_weights_of_gpt2_lie_the_other_way_round_and_frozen_factors_stay():
    model = with_lora(gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"])
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad = False
    ids = text_batch()["input_ids"]

    def loss():
        logits = model(input_ids=ids).logits[:, :-1]
        return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(dim=1)

    hook = attach(model, None, MainOnly(), weight_penalty=STRONG)
    grads = []
    for penalty in (STRONG, None):
        hook.detach()
        hook = attach(model, None, MainOnly(), weight_penalty=penalty)
        model.zero_grad(set_to_none=True)
        hook.backward(loss(), torch.ones(len(ids)))
        hook.combine()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    hook.detach()
    model.zero_grad(set_to_none=True)
    (STRONG.strength * term_by_autograd(model)).backward()
    assert grads[0].keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(grads[0][name] - grads[1][name], p.grad, rtol=1e-3, atol=1e-4)


def kept_in(dtype, *shape):
    """BERT with LoRA whose first base weight is of that dtype, and of that shape where one is given."""
    model = bert_lora()
    layer = next(one for one in model.modules() if hasattr(one, "lora_A")).get_base_layer()
    layer.weight = nn.Parameter(torch.zeros(shape or layer.weight.shape).to(dtype), requires_grad=False)
    return model


def two_active():
    settings = {"r": 6, "target_modules": ["query"]}
    model = get_peft_model(bert(), LoraConfig(**settings))
    model.add_adapter("second", LoraConfig(**settings))
    model.base_model.set_adapter(["default", "second"])
    return model


def one_on_another(*kinds):
    """Adapters of two kinds on one layer, the second around the first."""
    first, second = (kind(r=6, target_modules=["query"]) for kind in kinds)
    model = get_peft_model(bert(), first, mixed=True)
    model.add_adapter("second", second)
    model.set_adapter(["default", "second"])
    return model


def adalora():
    settings = {"init_r": 6, "target_r": 3, "total_step": 10, "target_modules": ["query"]}
    return get_peft_model(bert(), AdaLoraConfig(**settings))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_in_floating_point_of_16_bits_and_more_are_taken(dtype):
    attach(kept_in(dtype), None, MainOnly(), weight_penalty=STRONG).detach()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, r"weight_penalty pego needs linear layers with LoRA \(adapter: lora\), and this model has none"),
        (
            lambda: kept_in(torch.uint8, 8, 1),
            r"weight_penalty pego: .*query is quantized to uint8, .* load the model in .*, without load_in_4bit",
        ),
        (
            lambda: kept_in(torch.float8_e4m3fn),
            r"weight_penalty pego: .*query is quantized to float8_e4m3fn, .* load the model in float32",
        ),
        (
            lambda: bert_lora(use_dora=True),
            r"weight_penalty pego: .* has LoRA of another form \(DoraLinearVariant\); take adapter",
        ),
        (
            lambda: bert_lora(init_lora_weights="mica"),
            r"weight_penalty pego: .* has LoRA of another form \(MiCALinearVariant\); take adapter",
        ),
        (adalora, r"weight_penalty pego: .*query has LoRA of another form \(SVDLinear\); take adapter lora"),
        (
            lambda: one_on_another(LoHaConfig, LoraConfig),
            r"weight_penalty pego: .*query has another adapter around or beneath its LoRA",
        ),
        (
            lambda: one_on_another(LoraConfig, LoHaConfig),
            r"weight_penalty pego: .*query.base_layer has another adapter around or beneath its LoRA",
        ),
        (two_active, r"weight_penalty pego: .*query has 2 active adapters \(default, second\); set one of them"),
        (
            lambda: with_lora(llama(), task_type="CAUSAL_LM", target_modules=["embed_tokens"]),
            r"weight_penalty pego: .*embed_tokens is no linear layer; leave it out of adapter\.targets",
        ),
        (lambda: bert_lora(r=4), r"weight_penalty\.adapters is 3, expected a divisor of the rank 4 \(lora_r\)"),
    ],
    ids=["no adapter", "4 bits", "8 bits", "dora", "mica", "adalora", "around", "beneath", "two", "embeddings", "rank"],
)
def test_what_it_cannot_take_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        attach(make(), None, MainOnly(), weight_penalty=STRONG)


def test_engines_that_hold_the_weights_are_refused(monkeypatch):
    told = "weight_penalty pego reads whole weights, and cannot have weights that {}; use one process or Distributed"
    with monkeypatch.context() as patched:
        patched.setattr(attaching, "is_sharded", lambda model: True)
        with pytest.raises(ValueError, match=told.format("FSDP shards")):
            attach(bert_lora(), None, MainOnly(), weight_penalty=STRONG)
    monkeypatch.setattr(attaching, "_is_engine", lambda model: True)
    with pytest.raises(ValueError, match=told.format("DeepSpeed holds")):
        attach(bert_lora(), MainOnly(), weight_penalty=STRONG)
