"""Samples packed in one row against the same samples one at a time: logits, losses, weights, gradients."""

import math
from typing import Any

import pytest
import tiny_models
import torch
from batches import flat
from batches import rows as rows_of

from debias.data.encode import Collator
from debias.data.packing import PackingCollator
from debias.gradients import MicroBatch, make_source
from debias.losses import Answers, SelfWeight
from debias.readouts import inputs_and_facts

torch.set_num_threads(1)
FAMILIES = {
    "llama": tiny_models.llama,
    "qwen3": tiny_models.qwen3,
    "qwen3_moe": tiny_models.qwen3_moe,
    "llama4_text": tiny_models.llama4,
    "gemma3_text": tiny_models.gemma3,
    "gpt2": tiny_models.gpt2,
}


class Words:
    """What a collator asks of a tokenizer."""

    pad_token_id = 0
    padding_side = "left"


def features(samples: int = 6) -> list[dict[str, Any]]:
    """Of 2 to 25 tokens, longer than the sliding window and the attention chunks of 8; answers of one to three."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i, length in enumerate([13, 2, 25, 4, 9, 4][:samples]):
        answer = min(1 + i % 3, length - 1)
        ids = torch.randint(1, 60, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "answer_mask": [False] * (length - answer) + [True] * answer, "labels": i % 3})
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def test_logits_are_those_of_each_sample_alone(model: Any) -> None:
    rows = features()
    batch = flat(PackingCollator(Words())(rows_of(rows)))
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        for i, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            torch.testing.assert_close(packed[batch["sample_index"][0] == i], alone, rtol=1e-5, atol=1e-5)


def log_likelihood_alone(model: Any, row: dict[str, Any]) -> list[float]:
    """Of each answer token, in plain loops over the logits of the sample on its own."""
    ids = row["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().tolist()
    found = []
    for t, answers in enumerate(row["answer_mask"]):
        if answers:
            top = max(logits[t - 1])
            norm = top + math.log(math.fsum(math.exp(value - top) for value in logits[t - 1]))
            found.append(logits[t - 1][ids[t]] - norm)
    return found


@pytest.mark.parametrize("probability", ["product", "geometric_mean"])
@pytest.mark.parametrize("mean_over", ["samples", "tokens"])
def test_losses_are_those_of_each_sample_alone(model: Any, probability: Any, mean_over: Any) -> None:
    rows = features()
    tokens = [log_likelihood_alone(model, row) for row in rows]
    said = Answers([[5]], probability, mean_over, chunk=3).said(model, flat(PackingCollator(Words())(rows_of(rows))))
    sums = [math.fsum(values) for values in tokens]
    assert (-said.log_p_B).tolist() == pytest.approx([-value for value in sums], rel=1e-5)
    means = [value / len(values) for value, values in zip(sums, tokens, strict=True)]
    assert said.confidence_B.tolist() == pytest.approx(sums if probability == "product" else means, rel=1e-5)
    assert said.count == (6 if mean_over == "samples" else sum(len(values) for values in tokens))


def two_gradients(model: Any, batch: dict[str, Any], way: str) -> dict[str, torch.Tensor]:
    """Main and bias gradients of all adapters, by name."""
    model.zero_grad()
    selected = {name: p for name, p in model.named_parameters() if p.requires_grad}
    source = make_source(way, model, selected)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        said = Answers([[5]], chunk=4).said(model, batch)
        return -said.log_p_B, SelfWeight()(said, inputs_and_facts(batch)[1])

    source.backward(MicroBatch(*forward(), again=forward, sample_index=batch.get("sample_index")))
    found = {f"bias {name}": source.bias[name].clone() for name in selected}
    found |= {f"main {name}": p.grad.clone() for name, p in selected.items()}
    source.detach()
    return found


@pytest.mark.parametrize("way", ["two_pass", "shared_forward", "single_pass"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_both_gradients_are_those_of_the_padded_batch(family: str, way: str) -> None:
    adapted = tiny_models.with_lora(FAMILIES[family](), task_type="CAUSAL_LM")
    want = two_gradients(adapted, flat(Collator(Words())(rows_of(features()))), "two_pass")
    got = two_gradients(adapted, flat(PackingCollator(Words())(rows_of(features()))), way)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_cache_would_mix_samples() -> None:
    """Why packed rows are computed without one: this difference is what `use_cache` of most configs would make."""
    model = tiny_models.llama().eval()
    batch = flat(PackingCollator(Words())(rows_of(features())))
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    with torch.no_grad():
        apart, mixed = (model(**inputs, use_cache=cache).logits for cache in (False, True))
    assert float((apart - mixed).abs().max()) > 1e-2
    losses = -Answers([[5]]).said(model, batch).log_p_B
    assert losses[1].item() == pytest.approx(-sum(log_likelihood_alone(model, features()[1])), rel=1e-5)


def test_one_sample_alone_in_a_row() -> None:
    model = tiny_models.llama()
    row = features()[:1]
    batches = [flat(collator(Words())(rows_of(row))) for collator in (PackingCollator, Collator)]
    packed, padded = (Answers([[5]]).said(model, batch).log_p_B for batch in batches)
    torch.testing.assert_close(packed, padded)


@pytest.mark.parametrize("wrong", ["first of the row", "first of a sample", "none"])
def test_an_answer_needs_something_before_it_in_its_sample(wrong: str) -> None:
    model = tiny_models.llama()
    batch = flat(PackingCollator(Words())(rows_of(features())))
    mask = batch["answer_mask"]
    start = int((batch["sample_index"][0] == 2).nonzero()[0])
    if wrong == "none":
        mask[0, start : start + 25] = False
    else:
        mask[0, 0 if wrong == "first of the row" else start] = True
    with pytest.raises(ValueError, match="every sample needs an answer token, and none at its first position"):
        Answers([[5]]).said(model, batch)
