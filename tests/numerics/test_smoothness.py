"""Answers near what a model reads: the term and the way up to it, against an oracle of lists; what is drawn and hooked.

Golden: p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4) have KL(p, q) = KL(q, p) = (log 2) / 4.
"""

import copy
import dataclasses
import math

import oracle
import pytest
import torch
from gradient_checks import assert_same, by_samples, take
from tiny_models import (
    answer_batch,
    bert,
    bert_lora,
    gpt2,
    llama,
    llama_lora,
    qwen3,
    rows,
    text_batch,
    with_lora,
)
from torch import nn

from debias.engines import attach
from debias.engines.nearby import Nearby, refuse_nearby
from debias.losses import Answers, Classification, gce_weight
from debias.methods import Edge
from debias.models.vision import MlpConfig, MlpForImageClassification
from debias.readouts.router import RouterLoss
from debias.sharpness import SAM
from debias.smoothness import R3F, SMART, SMOOTHNESS, Smoothness, divergence, make_smoothness
from debias.smoothness.smart import up_to_one

P, Q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
GOLDEN = {"smart": (SMART(strength=3.0), 1.5 * math.log(2)), "r3f": (R3F(strength=0.5), 0.25 * math.log(2))}


def logs(*rows_of_p):
    return torch.tensor(rows_of_p, dtype=torch.float64).log()


@dataclasses.dataclass(frozen=True)
class Fixed(Smoothness):
    """A move that is a function of what is read, so that it is the same however a batch is cut."""

    name = "fixed"

    def move(self, like_D, ask, log_p_BC):
        return 0.1 * torch.sin(7 * like_D)


def test_golden():
    assert GOLDEN.keys() == SMOOTHNESS.keys()
    for row, want in GOLDEN.values():
        got = row.term(logs(P, P, Q), logs(Q, P, P))
        assert got.tolist() == pytest.approx([want, 0.0, want], rel=1e-14)
    assert make_smoothness(None) is None
    assert make_smoothness({"name": "smart", "steps": 2}) == SMART(steps=2)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "smart", "strength": -1}, r"smoothness\.strength is -1, expected 0 or more"),
        (
            {"name": "smart", "steps": 0},
            r"smoothness\.steps is 0, expected 1 or more \(r3f is the term",
        ),
        (
            {"name": "smart", "form": "code", "radius": 0.1},
            r"smoothness\.radius is 0\.1, and form code has none; leave it",
        ),
        ({"name": "smart", "radius": 0}, r"smoothness\.radius is 0, expected more than 0"),
        ({"name": "smart", "masks": "none"}, r"smoothness\.masks is 'none', not one of same, own"),
        ({"name": "r3f", "noise": -1}, r"smoothness\.noise is -1, expected more than 0"),
        ("smrt", r"smoothness\.name is 'smrt', not one of smart, r3f; did you mean smart\?"),
    ],
)
def test_wrong_settings_are_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        make_smoothness(block)


# The oracle: a model of lists, slopes by differences.

LABELS, COLUMNS, TOKENS = 3, 4, 5


def answer(weights, embedded):
    """Probabilities of the labels, of a sample's tokens: a mean of tanh, and a linear layer."""
    hidden = [math.fsum(math.tanh(token[j]) for token in embedded) / len(embedded) for j in range(COLUMNS)]
    logits = [oracle.dot(row, hidden) for row in weights]
    total = math.fsum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def both_ways(p, q):
    return math.fsum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))


def shifted(embedded, move):
    return [[x + d for x, d in zip(token, step, strict=True)] for token, step in zip(embedded, move, strict=True)]


def way_up(weights, embedded, move, smart):
    """By differences, step by step."""
    clean, h = answer(weights, embedded), 1e-5
    for _ in range(smart.steps):
        slope = [[0.0] * COLUMNS for _ in embedded]
        for t in range(len(embedded)):
            for j in range(COLUMNS):
                sides = []
                for sign in (1, -1):
                    moved = copy.deepcopy(move)
                    moved[t][j] += sign * h
                    sides.append(both_ways(clean, answer(weights, shifted(embedded, moved))))
                slope[t][j] = (sides[0] - sides[1]) / (2 * h)
        for t, row in enumerate(slope):
            largest = max(map(abs, row))
            for j in range(COLUMNS):
                new = move[t][j] + smart.step_size * (row[j] / largest if largest else 0.0)
                move[t][j] = max(-smart.radius, min(smart.radius, new))
    return move


@pytest.mark.parametrize("steps", [1, 3])
def test_the_way_up_and_the_term_are_the_oracles(steps):
    generator = torch.Generator().manual_seed(8)
    weights = torch.randn(LABELS, COLUMNS, generator=generator, dtype=torch.float64)
    embedded = torch.randn(2, TOKENS, COLUMNS, generator=generator, dtype=torch.float64)
    smart = SMART(strength=1.7, steps=steps, step_size=0.06, radius=0.11, noise=0.05)

    def ask(move):
        return torch.log_softmax(torch.tanh(embedded + move).mean(dim=1) @ weights.T, dim=-1)

    clean = ask(torch.zeros_like(embedded))
    torch.manual_seed(5)
    move = smart.move(embedded, ask, clean)
    torch.manual_seed(5)
    began = smart.noise * torch.randn(embedded.shape, dtype=torch.float64)
    assert not move.requires_grad
    assert (move.abs() == smart.radius).any()  # it is held back somewhere
    for i in range(2):
        want = way_up(weights.tolist(), embedded[i].tolist(), began[i].tolist(), smart)
        torch.testing.assert_close(move[i], torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-7)
        sides = [answer(weights.tolist(), one) for one in (embedded[i].tolist(), shifted(embedded[i].tolist(), want))]
        assert float(smart.term(clean, ask(move))[i]) == pytest.approx(1.7 * both_ways(*sides), rel=1e-6)


def climbed(clean, near):
    """Of the authors' code, whose log odds are held fast: the slope by differences of q alone."""
    odds = [[-math.log(1 / (one + 1e-6) - 1 + 1e-6) for one in p] for p in (clean, near)]
    return [2 * (b - a) for a, b in zip(*odds, strict=True)]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_authors_code_is_the_oracles(steps):
    """Its way up, its term and the term's gradient, in plain loops: what is held fast is a number there."""
    generator = torch.Generator().manual_seed(8)
    weights = torch.randn(LABELS, COLUMNS, generator=generator, dtype=torch.float64)
    embedded = torch.randn(2, TOKENS, COLUMNS, generator=generator, dtype=torch.float64)
    smart = SMART(strength=1.7, steps=steps, step_size=0.5, noise=0.05, form="code")
    leaf = weights.clone().requires_grad_()

    def ask(move):
        return torch.log_softmax(torch.tanh(embedded + move).mean(dim=1) @ leaf.T, dim=-1)

    clean = ask(torch.zeros_like(embedded))
    torch.manual_seed(5)
    move = smart.move(embedded, ask, clean.detach())
    torch.manual_seed(5)
    began = smart.noise * torch.randn(embedded.shape, dtype=torch.float64)
    assert not move.requires_grad
    term_B = smart.term(clean, ask(move))
    (slope,) = torch.autograd.grad(term_B.sum(), leaf)
    want_slope, h = torch.zeros_like(weights), 1e-5
    for i in range(2):
        rows, at, want = weights.tolist(), embedded[i].tolist(), began[i].tolist()
        p = answer(rows, at)
        for _ in range(steps):
            held, up = climbed(p, answer(rows, shifted(at, want))), [[0.0] * COLUMNS for _ in at]
            for t, j in ((t, j) for t in range(TOKENS) for j in range(COLUMNS)):
                sides = []
                for sign in (1, -1):
                    moved = copy.deepcopy(want)
                    moved[t][j] += sign * h
                    sides.append(oracle.dot(held, answer(rows, shifted(at, moved))))
                up[t][j] = (sides[0] - sides[1]) / (2 * h)
            want = [
                [d + smart.step_size * u for d, u in zip(*both, strict=True)] for both in zip(want, up, strict=True)
            ]
            want = [[d / (max(map(abs, token)) + 1e-6) for d in token] for token in want]
        torch.testing.assert_close(move[i], torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-7)
        assert all(0.9 < max(map(abs, token)) < 1 for token in want)  # a move of about 1, whatever its steps were
        q = answer(rows, shifted(at, want))
        assert float(term_B[i].detach()) == pytest.approx(1.7 * both_ways(p, q), rel=1e-6)
        for c, j in ((c, j) for c in range(LABELS) for j in range(COLUMNS)):
            sides = []
            for sign in (1, -1):
                other = copy.deepcopy(rows)
                other[c][j] += sign * h
                # The targets are p and q as they were.
                ways = ((p, answer(other, shifted(at, want))), (q, answer(other, at)))
                sides.append(math.fsum(-a * math.log(b) for one, two in ways for a, b in zip(one, two, strict=True)))
            want_slope[c, j] += 1.7 * (sides[0] - sides[1]) / (2 * h)
    torch.testing.assert_close(slope, want_slope, rtol=1e-6, atol=1e-8)


def test_near_each_other_the_codes_gradient_is_half_of_the_terms():
    """What the card says of targets that are held fast."""
    p, q = (logs(one).requires_grad_() for one in ([0.5, 0.3, 0.2], [0.5001, 0.2999, 0.2]))
    slopes = [torch.autograd.grad(SMART(form=form).term(p, q).sum(), q)[0] for form in ("paper", "code")]
    torch.testing.assert_close(slopes[1], 0.5 * slopes[0], rtol=1e-3, atol=1e-7)
    assert float(slopes[1].abs().max()) > 5e-5


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_slope_that_is_none_leaves_the_codes_move_finite(bad):
    def ask(move):
        return torch.log_softmax(bad * move.mean(dim=1), dim=-1)

    move = SMART(form="code").move(torch.zeros(2, 3, 4), ask, torch.zeros(2, 4))
    assert bool(move.isfinite().all())
    assert 0.8 < float(move.abs().max()) < 1


def test_what_is_found_is_worse_than_noise():
    """On a real model, in float32, at the defaults: one step up changes answers more than noise of the same size."""
    model, batch = bert().eval(), text_batch(8)
    found = {}
    for name, one in {"up": SMART(), "noise": R3F(noise=1e-3, masks="same")}.items():
        torch.manual_seed(0)
        _, term_B = Nearby(model, Classification(), one).said(model, batch)
        found[name] = term_B.detach()
    assert bool((found["up"] > 3 * found["noise"]).all())
    assert bool((found["noise"] > 0).all())


# Ugly inputs.


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_the_step_is_of_one_size_whatever_the_slope(size):
    slope = size * torch.tensor([[[1.0, -4.0, 2.0], [0.0, 0.0, 0.0]], [[3.0, 3.0, -3.0], [1.0, 0.0, 0.0]]])
    got = up_to_one(slope)
    want = torch.tensor([[[0.25, -1.0, 0.5], [0.0, 0.0, 0.0]], [[1.0, 1.0, -1.0], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(got, want if size else torch.zeros_like(want))
    flat = up_to_one(slope[:, :1].flatten(1))
    torch.testing.assert_close(flat, (want if size else torch.zeros_like(want))[:, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_slope_that_is_not_finite_moves_nothing_of_its_token_but_noise(bad):
    got = up_to_one(torch.tensor([[[bad, 1.0], [2.0, 1.0]]]))
    assert bool(got.isfinite().all())
    assert got[0, 1].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("row", [SMART(noise=5.0), R3F(noise=0.3), R3F(noise=0.3, kind="normal")], ids=repr)
def test_a_move_stays_where_it_may_be(row):
    like = torch.zeros(20, 30, 4)
    move = row.move(like, lambda move: torch.log_softmax(move.sum(dim=1)[:, :3], dim=-1), torch.zeros(20, 3))
    if isinstance(row, SMART):
        assert float(move.abs().max()) == pytest.approx(row.radius)
    elif row.kind == "uniform":
        assert 0.29 < float(move.abs().max()) <= 0.3
        assert abs(float(move.mean())) < 0.02
    else:
        assert float(move.std()) == pytest.approx(0.3, rel=0.05)


def test_the_divergence_is_exact_where_answers_are_near():
    """To rounding of its own size: a difference of two KLs would be noise here."""
    generator = torch.Generator().manual_seed(2)
    logits, change = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for size in (1e-1, 1e-3, 1e-5):
        exact = divergence(logits, logits + size * change)
        single = divergence(logits.float(), (logits + size * change).float())
        assert bool((single >= 0).all())
        assert float((single - exact).norm() / exact.norm()) < 2e-6 / size
    certain = torch.tensor([[0.0, -math.inf]])
    assert not divergence(torch.tensor([[80.0, -80.0]]), torch.tensor([[80.0, -80.0]])).any()
    assert certain.exp().sum() == 1.0


# Two gradients of it.

MODELS = {
    "bert": (bert_lora, Classification, text_batch),
    "llama": (llama_lora, lambda: Answers([[5], [6], [7]]), answer_batch),
}


def one_token(batch):
    """Answers of a single token, which is what every label can be read of."""
    mask = batch["answer_mask"].clone()
    mask[:, :-1] = False
    mask[:, -1] = True
    return {**batch, "answer_mask": mask}


def loss_by(readout, smoothness, model):
    nearby = Nearby(model, readout, smoothness)

    def forward(model, batch):
        said, term_B = nearby.said(model, batch)
        return term_B - said.log_p_B

    return forward


@pytest.mark.parametrize("way", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("name", MODELS)
def test_both_gradients_are_those_of_single_samples(name, way):
    """The layers are called twice in a micro-batch, and single_pass hears of both."""
    build, readout, make = MODELS[name]
    model, batch = build(), make(6)
    batch = one_token(batch) if name == "llama" else batch
    weight_B = torch.tensor([0.1, 0.7, 0.0, 0.4, 0.3, 0.5])
    forward = loss_by(readout(), Fixed(strength=20.0), model)
    want = by_samples(model, forward, batch, weight_B)
    parts = [(0, 2), (2, 6)]
    got = take(way, model, forward, [rows(batch, *part) for part in parts], [weight_B[slice(*part)] for part in parts])
    assert_same(got, want)
    plain = by_samples(model, loss_by(readout(), Fixed(strength=0.0), model), batch, weight_B)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(got, plain)


def texts(nearby):
    def forward(model, batch):
        said, term_B = nearby.said(model, batch)
        return term_B - said.log_p_B, gce_weight(said.log_p_B)

    return forward


def trained(smoothness, sharpness=None, way="single_pass", steps=9):
    model = with_lora(bert(dropout=0.2), dropout=0.2, task_type="SEQ_CLS")
    forward = texts(Nearby(model, Classification(), smoothness))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hook = attach(model, optimizer, Edge(), way, sharpness=sharpness)
    torch.manual_seed(1)
    for step in range(steps):
        batch = text_batch(6, seed=step)
        hook.backward(*forward(model, batch), again=lambda b=batch: forward(model, b))
        hook.step()
    assert hook.gradients == way
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), hook


def test_single_pass_proves_itself_of_two_calls_and_sam_goes_with_it():
    """A second pass repeats dropout and noise: with a radius of zero it is the run without it, to the bit."""
    smart = SMART(strength=5.0, step_size=0.1, radius=0.1)
    plain, hook = trained(smart)
    assert hook.source._looks >= 2
    still, _ = trained(smart, SAM(rho=0.0))
    assert torch.equal(plain, still)
    sharp, _ = trained(smart, SAM(rho=0.5))
    none, _ = trained(SMART(strength=0.0, step_size=0.1, radius=0.1))
    assert not torch.equal(plain, sharp)
    assert not torch.equal(plain, none)


# What is drawn, and what is hooked.


def test_masks_of_the_two_answers():
    """`same`: without a move there is nothing to penalise; `own`: two masks are two answers."""
    still = {"step_size": 1e-12, "radius": 1e-12, "noise": 1e-12}
    model = bert(dropout=0.3).train()
    for masks, is_zero in (("same", True), ("own", False)):
        nearby = Nearby(model, Classification(), SMART(masks=masks, **still))
        _, term_B = nearby.said(model, text_batch(6))
        assert bool((term_B == 0).all()) == is_zero


def test_at_the_defaults_most_of_the_term_is_what_another_mask_does():
    """What the cards say of it: the move by itself is hardly felt; that of SMART's authors' code is of about 1."""
    model = bert(dropout=0.1).train()
    same = {}
    for row, times in ((SMART(), 30), (R3F(), 1e5), (SMART(form="code"), 0)):
        sizes = {}
        for masks in ("own", "same"):
            torch.manual_seed(0)
            one = dataclasses.replace(row, masks=masks)
            _, term_B = Nearby(model, Classification(), one).said(model, text_batch(20))
            sizes[masks] = float(term_B.detach().mean())
        assert sizes["own"] > times * sizes["same"], row.name
        same[row.name, getattr(row, "form", None)] = sizes["same"]
    assert same["smart", "code"] > 100 * same["smart", "paper"] > 0


def test_what_is_drawn_next_is_drawn_once():
    """After the noise goes what would go after it: answers at other masks leave the random state alone."""
    model = bert(dropout=0.3).train()
    nearby = Nearby(model, Classification(), SMART(steps=3, masks="same"))
    torch.manual_seed(0)
    nearby.said(model, text_batch(6))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    said = Classification().said(model, text_batch(6))
    torch.randn(6, 9, 16)
    assert torch.equal(after, torch.get_rng_state())
    assert said.count == 6


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_no_hook_stays_also_where_a_pass_fails():
    model = bert()
    before = hooks_of(model)
    nearby = Nearby(model, Classification(), SMART())
    nearby.said(model, text_batch(4))
    assert hooks_of(model) == before
    calls = []

    class Failing(Classification):
        def said(self, model, batch, **asks):
            calls.append(1)
            if len(calls) == 2:
                raise MemoryError("no room")
            return super().said(model, batch, **asks)

    with pytest.raises(MemoryError, match="no room"):
        Nearby(model, Failing(), SMART()).said(model, text_batch(4))
    assert hooks_of(model) == before
    assert all(p.grad is None for p in model.parameters())  # the way up is by the move's gradient alone


def test_what_moves_is_what_the_first_layer_reads():
    model = bert()
    assert Nearby(model, Classification(), SMART())._layer is model.bert.embeddings
    assert Nearby(bert_lora(), Classification(), SMART())._layer.__class__.__name__ == "BertEmbeddings"
    readout = Answers([[5], [6], [7]])
    for make, name in ((llama, "embed_tokens"), (gpt2, "wte"), (qwen3, "embed_tokens")):
        model = make()
        layer = Nearby(model, readout, SMART())._layer
        assert layer is model.get_input_embeddings(), name
    picture = MlpForImageClassification(MlpConfig(num_labels=3, hidden_size=8))
    nearby = Nearby(picture, Classification(), Fixed())
    pixels = torch.rand(4, 3, 28, 28)
    said, term_B = nearby.said(picture, {"pixel_values": pixels, "labels": torch.zeros(4, dtype=torch.long)})
    moved = picture(pixel_values=pixels + 0.1 * torch.sin(7 * pixels)).logits
    torch.testing.assert_close(term_B, divergence(said.log_p_BC, moved))


def packed(batch):
    """The samples one after another, without padding."""
    kept = batch["attention_mask"].bool()
    lengths = kept.sum(dim=1).tolist()
    row = {key: batch[key][kept].unsqueeze(0) for key in ("input_ids", "answer_mask")}
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    index = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)]).unsqueeze(0)
    return {**row, "position_ids": positions, "sample_index": index, "labels": batch["labels"]}


def test_packed_rows_have_the_term_of_padded_ones():
    batch = one_token(answer_batch(4))
    model, readout = llama(), Answers([[5], [6], [7]])
    nearby = Nearby(model, readout, Fixed())
    _, padded_B = nearby.said(model, batch)
    _, packed_B = nearby.said(model, packed(batch))
    torch.testing.assert_close(packed_B, padded_B, rtol=1e-4, atol=1e-6)


# What is refused.


def test_what_it_cannot_be_had_for_is_refused_by_name():
    readout = Classification()
    with pytest.raises(ValueError, match="smoothness smart moves embeddings by less than 16 bits can tell"):
        Nearby(bert().bfloat16(), readout, SMART())
    with pytest.raises(ValueError, match="smoothness r3f moves embeddings, and Linear holds no model of transformers"):
        Nearby(nn.Linear(2, 3), readout, R3F())
    with pytest.raises(ValueError, match="answers of one token each, the longest here has 2"):
        Nearby(llama(), Answers([[5, 6], [7]]), SMART())
    model = bert()
    vars(model)["router_loss"] = RouterLoss(0.1)
    with pytest.raises(ValueError, match="calls the model more than once, and the load balancing loss"):
        Nearby(model, readout, SMART())

    class Twice(Classification):
        def said(self, model, batch, **asks):
            super().said(model, batch, **asks)
            return super().said(model, batch, **asks)

    model = bert()
    nearby = Nearby(model, readout, SMART())
    model.bert.embeddings.register_forward_hook(lambda layer, given, output: (output, None))
    with pytest.raises(ValueError, match="smoothness smart: BertEmbeddings makes a tuple, and no tensor to move"):
        nearby.said(model, text_batch(4))
    with pytest.raises(ValueError, match="smoothness smart has not been tried with DeepSpeed"):
        refuse_nearby("smart", deepspeed=True, bf16=False)
    with pytest.raises(ValueError, match="smoothness r3f: answers near each other are the same in bf16"):
        refuse_nearby("r3f", deepspeed=False, bf16=True)
    model = bert()
    with pytest.raises(RuntimeError, match="was called 2 times in a forward pass"):
        Nearby(model, Twice(), SMART()).said(model, text_batch(4))
