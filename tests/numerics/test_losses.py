"""Losses against plain arithmetic, and answers against the full [B, T, V] logits."""

import math

import pytest
import torch
from tiny_models import VOCABULARY, answer_batch, bert, gpt2, llama, text_batch

from debias.losses import Answers, Classification, answer_log_likelihood, cross_entropy, gce_weight
from debias.readouts.answers import with_positions

torch.set_num_threads(1)


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def test_cross_entropy_is_minus_log_softmax():
    logits = [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [30.0, -40.0, 5.0], [1e4, 0.0, -1e4]]
    labels = [2, 1, 1, 0]
    want = [-log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)]
    got = cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert got.shape == (4,)
    assert got.tolist() == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = torch.tensor([[1.0, -2.0, 0.5]]).bfloat16()
    got = cross_entropy(logits, torch.tensor([0]))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(-log_softmax([1.0, -2.0, 0.5])[0], rel=1e-6)


@pytest.mark.parametrize("q", [0.7, 0.3, 1.0])
def test_gce_weight_is_q_times_p_to_the_q(q):
    p = [1.0, 0.9, 0.5, 1e-3, 1e-30]
    got = gce_weight(torch.tensor([math.log(value) for value in p]), q)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([q * value**q for value in p], rel=1e-5)


def test_gce_weight_at_its_ends():
    assert gce_weight(torch.tensor([-math.inf, 0.0])).tolist() == pytest.approx([0.0, 0.7])
    assert gce_weight(torch.tensor([-1e4], dtype=torch.float64)).item() == 0.0


def test_gce_weight_is_detached():
    assert not gce_weight(torch.zeros(2, requires_grad=True)).requires_grad


def test_the_weighted_gradient_is_that_of_gce():
    """q * p^q * grad CE is q times the gradient of (1 - p^q)/q: the literature's form, with LfF's factor."""
    logits = torch.tensor([[0.3, -1.0, 0.7]], requires_grad=True)
    q, label = 0.7, torch.tensor([2])
    loss = cross_entropy(logits, label)
    (got,) = torch.autograd.grad((gce_weight(-loss.detach(), q) * loss).sum(), logits)
    p = torch.softmax(logits, dim=-1)[0, 2]
    (want,) = torch.autograd.grad((1 - p**q) / q, logits)
    torch.testing.assert_close(got, q * want)


def test_classification_against_the_models_own_loss():
    model, batch = bert(), text_batch()
    said = Classification().said(model, batch)
    own = model(**batch).loss
    assert said.log_p_B.shape == (6,)
    assert said.count == 6
    torch.testing.assert_close(-said.log_p_B.mean(), own)
    torch.testing.assert_close(said.confidence_B, said.log_p_B.detach())
    assert not said.confidence_B.requires_grad
    scores = Classification().label_scores(model, batch)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(-scores.gather(1, batch["labels"].unsqueeze(1)).squeeze(1), -said.log_p_B)


def full_log_likelihood(model, batch) -> list[list[float]]:
    """log p of each answer token, sample by sample without padding, from the logits of every position."""
    result = []
    for i in range(batch["input_ids"].shape[0]):
        real = batch["attention_mask"][i].bool()
        ids, answer = batch["input_ids"][i][real], batch["answer_mask"][i][real]
        logits = model(input_ids=ids.unsqueeze(0)).logits[0].double().tolist()
        rows = [log_softmax(logits[t - 1])[ids[t]] for t in range(len(ids)) if answer[t]]
        result.append(rows)
    return result


@pytest.fixture(params=["llama sdpa", "llama eager", "gpt2"])
def causal(request):
    """Relative positions and absolute ones: only the latter notice where counting starts."""
    if request.param == "gpt2":
        return gpt2().eval()
    return llama(attn_implementation=request.param.split()[1]).eval()


@pytest.mark.parametrize("probability", ["product", "geometric_mean"])
@pytest.mark.parametrize("mean_over", ["samples", "tokens"])
def test_answers_against_the_full_logits(causal, probability, mean_over):
    batch = answer_batch()
    tokens = full_log_likelihood(causal, batch)
    assert [len(row) for row in tokens] == [1, 2, 3, 1, 2]
    said = Answers([[5], [6]], probability, mean_over).said(causal, batch)
    sums = [sum(row) for row in tokens]
    assert (-said.log_p_B).tolist() == pytest.approx([-value for value in sums], rel=1e-5)
    assert said.log_p_B.dtype == torch.float32
    assert said.log_p_B.requires_grad
    means = [value / len(row) for value, row in zip(sums, tokens, strict=True)]
    assert said.confidence_B.tolist() == pytest.approx(sums if probability == "product" else means, rel=1e-5)
    assert not said.confidence_B.requires_grad
    assert said.count == (5 if mean_over == "samples" else 9)


def test_answer_gradients_against_the_full_logits(causal):
    batch = answer_batch()
    (-Answers([[5]]).said(causal, batch).log_p_B).sum().backward()
    got = {name: p.grad.clone() for name, p in causal.named_parameters()}
    causal.zero_grad()
    total = 0.0
    for i in range(5):
        real = batch["attention_mask"][i].bool()
        ids, answer = batch["input_ids"][i][real], batch["answer_mask"][i][real]
        log_p = torch.log_softmax(causal(input_ids=ids.unsqueeze(0)).logits[0].double(), dim=-1)
        positions = answer.nonzero().squeeze(1)
        total = total - log_p[positions - 1, ids[positions]].sum()
    total.backward()
    for name, p in causal.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_no_logits_of_all_positions(causal):
    seen = []
    causal.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    answers = Answers([[5, 6, 7], [8]])
    answers.said(causal, answer_batch())
    assert seen == [(5, 3, VOCABULARY)]  # the longest answer has three tokens
    seen.clear()
    answers.label_scores(causal, prompts())
    assert seen == [(4, 3, VOCABULARY), (4, 1, VOCABULARY)]
    seen.clear()
    Answers([[5], [8]]).label_scores(causal, prompts())
    assert seen == [(4, 1, VOCABULARY)]


def test_an_answer_longer_than_another_rows_whole_text(causal):
    """Positions kept for the long answer are padding in the short row: they count for nothing, in loss and gradient."""
    ids = torch.randint(1, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    answer_mask = torch.zeros_like(ids, dtype=torch.bool)
    answer_mask[0, 2:] = True
    answer_mask[1, 7] = True
    batch = {"input_ids": ids * mask, "attention_mask": mask, "answer_mask": answer_mask}
    said = Answers([[5]]).said(causal, batch)
    want = [-sum(row) for row in full_log_likelihood(causal, batch)]
    assert (-said.log_p_B).tolist() == pytest.approx(want, rel=1e-5)
    (-said.log_p_B).sum().backward()
    assert all(p.grad.isfinite().all() for p in causal.parameters())


@pytest.mark.parametrize("kind", [torch.bool, torch.long])
def test_answer_mask_may_be_bool_or_int(causal, kind):
    batch = answer_batch()
    want = -Answers([[5]]).said(causal, batch).log_p_B
    got = -Answers([[5]]).said(causal, {**batch, "answer_mask": batch["answer_mask"].to(kind)}).log_p_B
    assert torch.equal(got, want)


def prompts(padding: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded prompts of 3 to 6 tokens, `padding` more columns in front."""
    ids = torch.randint(1, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(6) >= torch.tensor([[0], [3], [1], [2]])).long()
    pad = torch.zeros(4, padding, dtype=torch.long)
    return {"input_ids": torch.cat([pad, ids * mask], dim=1), "attention_mask": torch.cat([pad, mask], dim=1)}


@pytest.mark.parametrize(
    "verbalizers", [[[5], [9], [60]], [[5, 6], [9, 1, 3], [60, 2]], [[5], [9, 1, 3]]], ids=["one", "many", "mixed"]
)
@pytest.mark.parametrize("padding", [0, 5])
def test_label_scores_against_the_full_logits(causal, verbalizers, padding):
    batch = prompts(padding)
    got = Answers(verbalizers).label_scores(causal, batch)
    assert got.shape == (4, len(verbalizers))
    for i in range(4):
        prompt = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
        for c, answer in enumerate(verbalizers):
            logits = causal(input_ids=torch.tensor([prompt + answer])).logits[0].double().tolist()
            want = math.fsum(log_softmax(logits[len(prompt) - 1 + k])[token] for k, token in enumerate(answer))
            assert got[i, c].item() == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_padding_does_not_change_a_loss(causal):
    batch = answer_batch()
    pad = torch.zeros(5, 7, dtype=torch.long)
    padded = {key: torch.cat([pad.to(v.dtype), v], dim=1) if v.dim() == 2 else v for key, v in batch.items()}
    torch.testing.assert_close(
        -Answers([[5]]).said(causal, padded).log_p_B, -Answers([[5]]).said(causal, batch).log_p_B, rtol=1e-5, atol=1e-5
    )


def test_positions_start_at_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert with_positions(torch.nn.Linear(1, 1), {"attention_mask": mask})["position_ids"].tolist() == [
        [0, 0, 0, 1],
        [0, 1, 2, 3],
    ]
    given = {"attention_mask": mask, "position_ids": mask}
    assert with_positions(torch.nn.Linear(1, 1), given) is given


def test_an_answer_needs_something_before_it(causal):
    batch = answer_batch()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    first = batch["answer_mask"].clone()
    first[0, 0] = True
    nothing = batch["answer_mask"].clone()
    nothing[2] = False
    for mask in (first, nothing):
        with pytest.raises(ValueError, match="answer_mask"):
            answer_log_likelihood(causal, inputs, mask)
