"""Losses with weights of their own against plain loops, and the hidden states that they read of each kind of model."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from batches import flat
from batches import rows as rows_of
from tiny_models import bert_lora, gpt2, llama_lora, text_batch

from debias.data.encode import Collator
from debias.data.packing import PackingCollator
from debias.losses import Blind, LearnedMixin, LearningLoss
from debias.models.vision import MlpConfig, MlpForImageClassification
from debias.readouts import Answers, Classification, Said

LABELS, COLUMNS, SAMPLES = 3, 4, 6
ByHand = Callable[..., float]


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(one) for one in logits)
    return [math.exp(one) / total for one in logits]


def loss_by_hand(weights: list[float], log_p: list[float], bias: list[float], hidden: list[float], label: int) -> float:
    score = math.fsum(w * h for w, h in zip(weights, [*hidden, 1.0], strict=True))
    trust = math.log1p(math.exp(score))
    mixed = softmax([one + trust * math.log(b) for one, b in zip(log_p, bias, strict=True)])
    q = softmax([trust * math.log(b) for b in bias])
    return -math.log(mixed[label]) - 0.2 * math.fsum(one * math.log(one) for one in q)


def slope_by_hand(loss: ByHand, weights: list[float], rows: list[Any]) -> list[float]:
    """By w and c of the mean loss, by central differences."""
    found = []
    for place in range(len(weights)):
        ends = []
        for way in (1e-5, -1e-5):
            moved = [w + way * (place == at) for at, w in enumerate(weights)]
            ends.append(math.fsum(loss(moved, *row) for row in rows) / len(rows))
        found.append((ends[0] - ends[1]) / 2e-5)
    return found


def adam_by_hand(loss: ByHand, steps: list[list[Any]], rate: float) -> list[float]:
    weights, first, second = ([0.0] * (COLUMNS + 1) for _ in range(3))
    for t, rows in enumerate(steps, 1):
        for place, slope in enumerate(slope_by_hand(loss, weights[:], rows)):
            first[place] = 0.9 * first[place] + 0.1 * slope
            second[place] = 0.999 * second[place] + 0.001 * slope**2
            length = math.sqrt(second[place] / (1 - 0.999**t)) + 1e-8
            weights[place] -= rate * first[place] / (1 - 0.9**t) / length
    return weights


def drawn(steps: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((SAMPLES, LABELS), (SAMPLES, LABELS), (SAMPLES, COLUMNS))
    return [tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes) for _ in range(steps)]


def said_of(logits: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> Said:
    log_p_BC = torch.log_softmax(logits, dim=-1)
    log_p_B = log_p_BC.gather(1, labels.unsqueeze(1)).squeeze(1)
    return Said(log_p_B, log_p_B.detach(), len(labels), log_p_BC, hidden)


@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2]], ids=str)
def test_what_is_learned_is_adams_way_down_the_mean_loss_however_a_step_is_cut(cuts: list[int]) -> None:
    loss, labels, told = LearningLoss(LearnedMixin(penalty=0.2, step_size=0.05)), torch.tensor([0, 1, 2, 0, 1, 2]), []
    for logits, bias, hidden in drawn(5):
        p_b = torch.softmax(bias, dim=-1)
        log_p = torch.log_softmax(logits, dim=-1).tolist()
        rows = list(zip(log_p, p_b.tolist(), hidden.tolist(), labels.tolist(), strict=True))
        start, found = 0, []
        for size in cuts:
            part = slice(start, start + size)
            known = {"labels": labels[part], "bias_log_p": p_b[part].log()}
            found += loss(said_of(logits[part], hidden[part], labels[part]), known).tolist()
            start += size
        weights = loss.memory_S[: COLUMNS + 1].tolist() or [0.0] * (COLUMNS + 1)
        assert found == pytest.approx([loss_by_hand(weights, *row) for row in rows], rel=1e-9)
        told.append(rows)
        loss.step(lambda sums: sums)
    assert loss.memory_S[: COLUMNS + 1].tolist() == pytest.approx(adam_by_hand(loss_by_hand, told, 0.05), rel=1e-6)
    again = LearningLoss(LearnedMixin(penalty=0.2, step_size=0.05))
    again.load_state_dict(loss.state_dict())  # before its first step it does not know how long its memory is
    assert torch.equal(again.memory_S, loss.memory_S)


def detector_by_hand(weights: list[float], hidden: list[float], right: bool) -> float:
    score = math.fsum(w * h for w, h in zip(weights, [*hidden, 1.0], strict=True))
    return -math.log(1 / (1 + math.exp(-score if right else score)))


@pytest.mark.parametrize("cuts", [[6], [1, 5]], ids=str)
def test_blind_weighs_by_what_its_detector_left_open_however_a_step_is_cut(cuts: list[int]) -> None:
    settings = {"gamma": 3.0, "temperature": 0.7, "step_size": 0.05}
    loss, labels, told = LearningLoss(Blind(**settings)), torch.tensor([0, 1, 2, 0, 1, 2]), []
    for logits, _, hidden in drawn(5):
        log_p = torch.log_softmax(logits, dim=-1).tolist()
        right = [max(range(LABELS), key=row.__getitem__) == y for row, y in zip(log_p, labels.tolist(), strict=True)]
        weights = loss.memory_S[: COLUMNS + 1].tolist() or [0.0] * (COLUMNS + 1)
        want = []
        for row, h, y, s in zip(log_p, hidden.tolist(), labels.tolist(), right, strict=True):
            score = math.fsum(w * one for w, one in zip(weights, [*h, 1.0], strict=True)) / 0.7
            q = 1 / (1 + math.exp(-score))
            want.append(-((1 - (q if s else 1 - q)) ** 3) * row[y])
        start, found = 0, []
        for size in cuts:
            part = slice(start, start + size)
            found += loss(said_of(logits[part], hidden[part], labels[part]), {"labels": labels[part]}).tolist()
            start += size
        assert found == pytest.approx(want, rel=1e-9)
        assert len(set(right)) == 2
        told.append(list(zip(hidden.tolist(), right, strict=True)))
        loss.step(lambda sums: sums)
    assert loss.memory_S[: COLUMNS + 1].tolist() == pytest.approx(adam_by_hand(detector_by_hand, told, 0.05), rel=1e-6)


def test_blinds_detector_gives_the_model_no_gradient() -> None:
    (logits, _, hidden), labels = drawn(1)[0], torch.tensor([0, 1, 2, 0, 1, 2])
    memory = torch.linspace(-1, 0.7, 3 * (COLUMNS + 1) + 1, dtype=torch.float64)
    inputs = (logits.requires_grad_(), hidden.requires_grad_())
    Blind()(said_of(*inputs, labels), {"labels": labels}, memory).sum().backward()
    assert hidden.grad is None
    assert logits.grad is not None
    plain = said_of(logits, hidden, labels)
    assert torch.equal(Blind(gamma=0.0)(plain, {"labels": labels}, memory), -plain.log_p_B)


def test_the_gradient_goes_through_the_trust_into_the_hidden_states() -> None:
    (logits, bias, hidden), labels = drawn(1)[0], torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.linspace(-1, 0.7, COLUMNS + 1, dtype=torch.float64)
    memory = torch.cat([weights, torch.zeros(2 * (COLUMNS + 1) + 1, dtype=torch.float64)])
    known = {"labels": labels, "bias_log_p": torch.log_softmax(bias, dim=-1)}
    loss = LearnedMixin(penalty=0.3)
    inputs = (logits.requires_grad_(), hidden.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, h: loss(said_of(x, h, labels), known, memory), inputs)
    loss(said_of(*inputs, labels), known, memory).sum().backward()
    assert hidden.grad is not None
    assert bool((hidden.grad.abs() > 1e-6).all())


def test_of_a_readout_that_was_not_asked_it_says_what_to_ask() -> None:
    said = Said(torch.zeros(1), torch.zeros(1), 1, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"learned_mixin reads every label and hidden states; ask .*hidden=True"):
        LearnedMixin()(said, {"labels": torch.tensor([0]), "bias_log_p": torch.zeros(1, 3)}, torch.zeros(0))
    with pytest.raises(ValueError, match=r"blind reads every label and hidden states; ask .*hidden=True"):
        Blind()(said, {"labels": torch.tensor([0])}, torch.zeros(0))
    with pytest.raises(ValueError, match="the loss reads hidden states, and Linear holds no backbone of transformers"):
        Classification().said(torch.nn.Linear(2, 2), {"inputs": {}, "facts": {}}, hidden=True)


def test_hidden_states_of_a_classifier_are_means_over_its_tokens() -> None:
    model, batch = bert_lora().eval(), text_batch()
    found = Classification().said(model, batch, hidden=True).hidden_BH
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    last = model(**inputs, output_hidden_states=True).hidden_states[-1].tolist()
    want = [
        [math.fsum(values) / len(values) for values in zip(*kept, strict=True)]
        for row, mask in zip(last, inputs["attention_mask"].tolist(), strict=True)
        if (kept := [token for token, there in zip(row, mask, strict=True) if there])
    ]
    assert found is not None
    assert found.requires_grad
    torch.testing.assert_close(found, torch.tensor(want))
    assert Classification().said(model, batch).hidden_BH is None


def test_hidden_states_of_the_perceptron_are_what_its_head_is_given() -> None:
    model = MlpForImageClassification(MlpConfig(image_size=4, hidden_size=5, num_labels=3)).double()
    pixels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = {"inputs": {"pixel_values": pixels}, "facts": {"labels": torch.tensor([0, 2])}}
    found = Classification().said(model, batch, hidden=True).hidden_BH
    for n, picture in enumerate(pixels.flatten(1).tolist()):
        x = picture
        for layer in model.layers.values():
            w, b = layer.weight.tolist(), layer.bias.tolist()
            x = [
                max(0.0, math.fsum(a * one for a, one in zip(row, x, strict=True)) + c)
                for row, c in zip(w, b, strict=True)
            ]
        assert found is not None
        assert found[n].tolist() == pytest.approx(x, rel=1e-5)


class Words:
    """What a collator asks of a tokenizer."""

    pad_token_id = 0
    padding_side = "left"


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("made", [llama_lora, gpt2])
def test_hidden_states_of_a_causal_model_are_means_over_the_prompt_alone(made: Any, chunk: int | None) -> None:
    """Padded, packed, or each sample by itself without its answer, whose tokens would tell the label."""
    prompts, model = [[5, 9, 4], [7, 8, 6, 3, 2], [11, 12]], made().eval()
    mask = [[False] * len(ids) + [True] for ids in prompts]
    samples = [{"input_ids": [*ids, 20 + i], "answer_mask": mask[i], "labels": i % 3} for i, ids in enumerate(prompts)]
    alone = [model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1] for ids in prompts]
    want = torch.cat([hidden.mean(dim=1) for hidden in alone])
    readout = Answers([[20], [21], [22]], chunk=chunk)
    for collate in (Collator(Words()), PackingCollator(Words())):
        said = readout.said(model, flat(collate(rows_of(samples))), hidden=True)
        assert said.hidden_BH is not None
        torch.testing.assert_close(said.hidden_BH, want, rtol=1e-4, atol=1e-5)
