"""Rows that hold several samples, as collators of others make them: `position_ids` that start again, and no index.

The oracle: each sample in a row of its own, in float64.
"""

import pytest
import torch
from tiny_models import granitemoe, llama
from tiny_trainers import trainer_of

from debias import attach
from debias.losses import Answers, answer_log_likelihood, gce_weight
from debias.methods import Edge
from debias.readouts import sample_index_of

torch.set_num_threads(1)

LENGTHS, ANSWERS = (5, 7, 4, 6), (2, 1, 2, 1)
READ = Answers([[5], [9]], "geometric_mean", "tokens")


def samples():
    """Ids and answer mask of each, of several lengths."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(1, 61, (length,), generator=draw) for length in LENGTHS]
    return [(row, torch.arange(len(row)) >= len(row) - n) for row, n in zip(ids, ANSWERS, strict=True)]


def joined(rows, pad=None, width=0):
    """A row of these samples one after another; `pad` in position_ids on the left up to `width`."""
    ids, mask = (torch.cat(part) for part in zip(*rows, strict=True))
    places = torch.cat([torch.arange(len(row)) for row, _ in rows])
    more = max(0, width - len(ids))
    padding = torch.full((more,), pad or 0)
    return {
        "input_ids": torch.cat([torch.zeros(more, dtype=torch.long), ids]),
        "position_ids": torch.cat([padding, places]),
        "answer_mask": torch.cat([torch.zeros(more, dtype=torch.bool), mask]),
    }


def stacked(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


PACKED = {
    "one row": [joined(samples())],
    "two rows": [joined(samples()[:2]), joined(samples()[2:], pad=0, width=12)],
    "two rows, padding at position 1": [joined(samples()[:2]), joined(samples()[2:], pad=1, width=12)],
}


def alone(model, **asks):
    """What is said of each sample in a row of its own."""
    made = [{"input_ids": ids[None], "answer_mask": mask[None]} for ids, mask in samples()]
    return [READ.said(model, {**one, "attention_mask": torch.ones_like(one["input_ids"])}, **asks) for one in made]


@pytest.mark.parametrize("rows", PACKED.values(), ids=PACKED)
def test_samples_of_a_row_are_told_apart_by_their_positions(rows):
    model = llama().double().eval()
    said, want = (f(model) for f in (lambda m: READ.said(m, stacked(rows), every_label=True, hidden=True), each_asked))
    for field in ("log_p_B", "confidence_B", "log_p_BC", "hidden_BH"):
        torch.testing.assert_close(getattr(said, field), torch.cat([getattr(one, field) for one in want]))
    assert said.count == sum(ANSWERS)
    index = said.sample_index
    assert torch.bincount(index[index >= 0]).tolist() == list(LENGTHS)


def test_a_family_that_does_not_name_use_cache_makes_none():
    """Granite's experts hand it on: with a cache, even an empty one, a sample sees those before it in its row."""
    model = granitemoe().eval()
    got, want = READ.said(model, stacked([joined(samples())])).log_p_B, alone(model)
    torch.testing.assert_close(got, torch.cat([one.log_p_B for one in want]))


def each_asked(model):
    return alone(model, every_label=True, hidden=True)


def test_a_sample_without_an_answer_in_a_packed_row_is_none():
    """Truncation leaves such: the others are read as ever, and its tokens are nobody's."""
    rows = samples()
    rows[1] = (rows[1][0], torch.zeros_like(rows[1][1]))
    model = llama().double().eval()
    said, want = READ.said(model, stacked([joined(rows)])), alone(model)
    torch.testing.assert_close(said.log_p_B, torch.cat([want[i].log_p_B for i in (0, 2, 3)]))
    assert said.sample_index is not None
    assert said.sample_index.tolist() == [[0] * 5 + [-1] * 7 + [1] * 4 + [2] * 6]


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("first", [0, 4])
def test_padding_is_no_restart(pad, masked, first):
    """Positions 0 or 1 under padding on either side, and positions that begin elsewhere than at 0."""
    rows = [joined([one], pad=pad, width=9) for one in samples()]
    batch = stacked(rows)
    real = torch.stack([torch.arange(9) >= 9 - length for length in LENGTHS])
    batch["position_ids"] = batch["position_ids"] + first * real
    given = {**batch, "attention_mask": real.long()} if masked else batch
    assert sample_index_of(given, batch["answer_mask"]) is None
    right = {key: value.flip(1) for key, value in given.items()} | {"position_ids": given["position_ids"].roll(-2, 1)}
    right["answer_mask"] = batch["answer_mask"].roll(-2, 1)
    if masked:
        right["attention_mask"] = given["attention_mask"].roll(-2, 1)
    assert sample_index_of(right, right["answer_mask"]) is None
    READ.label_scores(llama().eval(), given)  # prompts of the user's own positions


def test_positions_of_pictures_stand_still_and_are_one_sample():
    """Three axes, as Qwen2-VL has them: time stands still over a picture's tokens."""
    time = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5]])
    positions, mask = torch.stack([time, time + 1, time]), torch.arange(8)[None] >= 6
    given = {"position_ids": positions, "attention_mask": torch.ones(1, 8)}
    assert sample_index_of(given, mask) is None
    twice = {"position_ids": positions.repeat(1, 1, 2), "attention_mask": torch.ones(1, 16)}
    assert sample_index_of(twice, mask.repeat(1, 2)).tolist() == [[0] * 8 + [1] * 8]


def test_a_row_of_several_samples_is_never_read_as_one():
    model, batch = llama().eval(), stacked([joined(samples())])
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    with pytest.raises(ValueError, match=r"^position_ids start again within a row.*give sample_index") as told:
        answer_log_likelihood(model, inputs, batch["answer_mask"])
    assert "\n" not in str(told.value)
    got = answer_log_likelihood(
        model, inputs, batch["answer_mask"], sample_index=sample_index_of(inputs, batch["answer_mask"])
    )
    torch.testing.assert_close(got, torch.cat([one.log_p_B for one in alone(model)]))
    masked = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    for prompts in (inputs, masked):
        with pytest.raises(ValueError, match="within a row of prompts"):
            READ.label_scores(model, prompts)
    for key in ("seq_idx", "cu_seq_lens_q"):
        told_by_another = {**batch, key: torch.zeros(1, 22)}
        del told_by_another["position_ids"]
        with pytest.raises(ValueError, match=f"{key} is given without position_ids"):
            READ.said(model, told_by_another)


@pytest.mark.parametrize("gradients", ["single_pass", "shared_forward"])
def test_a_step_of_a_packed_row_is_that_of_its_samples(gradients):
    """In a loop, by `said.sample_index`, against rows of their own with padding."""
    steps = []
    for batch in (stacked([joined(samples())]), padded()):
        model = llama().double()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters()], lr=0.1)
        select = (lambda name, p: "proj" in name) if gradients == "single_pass" else (lambda name, p: True)
        hook = attach(model, optimizer, Edge(), gradients, select=select)
        said = READ.said(model, batch)
        weight_B = gce_weight(said.confidence_B)
        hook.backward(-said.log_p_B, weight_B, count=said.count, sample_index=said.sample_index)
        assert hook.step().cosine < 0.999
        steps.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for name, step in steps[1].items():
        torch.testing.assert_close(steps[0][name], step, rtol=1e-5, atol=1e-7, msg=name)


def padded():
    rows = [joined([one], width=7) for one in samples()]
    real = torch.stack([torch.arange(7) >= 7 - length for length in LENGTHS]).long()
    return {**stacked(rows), "attention_mask": real}


def test_the_trainer_tells_samples_apart_as_the_readout_does(tmp_path):
    rows = [{"input_ids": ids, "answer_mask": mask} for ids, mask in samples()]
    told = {}
    for name, index in (("by positions", False), ("by index", True)):

        def collate(rows, index=index):
            made = stacked([joined([(row["input_ids"], row["answer_mask"]) for row in rows])])
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            told_too = {"sample_index": torch.arange(len(rows)).repeat_interleave(lengths)[None]}
            return made | (told_too if index else {})

        more = {"readout": READ, "data_collator": collate}
        trainer = trainer_of(tmp_path / name, model=llama(), data=rows, remove_unused_columns=False, more=more)
        trainer.train()
        told[name] = trainer.hook.last
    assert told["by positions"] == told["by index"]
    assert told["by index"].samples == sum(ANSWERS)
    assert told["by index"].cosine < 0.999


def test_answers_without_an_attention_mask_count_every_token():
    model = llama().eval()
    ids = torch.randint(1, 61, (3, 6), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "answer_mask": (torch.arange(6) >= 4).expand(3, 6)}
    masked = {**batch, "attention_mask": torch.ones_like(ids)}
    got, want = (READ.said(model, one, hidden=True) for one in (batch, masked))
    torch.testing.assert_close((got.log_p_B, got.hidden_BH), (want.log_p_B, want.hidden_BH))
    for read in (READ, Answers([[5, 6], [9, 1, 3]])):
        torch.testing.assert_close(read.label_scores(model, batch), read.label_scores(model, masked))


def test_positions_of_prompts_go_on_under_a_longer_answer():
    """Given ones were left out where an answer has several tokens: the prompt was read at others."""
    model, read = llama().eval(), Answers([[5, 6], [9, 1]])
    ids = torch.randint(1, 61, (2, 5), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[0, 1, 2, 7, 9], [0, 1, 2, 3, 4]])
    got = read.label_scores(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places})
    whole = torch.cat([ids[:1], torch.tensor([[5, 6]])], dim=1)
    ahead = torch.tensor([[0, 1, 2, 7, 9, 10, 11]])
    log_p = torch.log_softmax(
        model(input_ids=whole, attention_mask=torch.ones_like(whole), position_ids=ahead).logits[0], dim=1
    )
    torch.testing.assert_close(got[0, 0], log_p[4, 5] + log_p[5, 6])


def test_a_mask_of_pairs_needs_positions():
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "answer_mask": torch.tensor([[False, False, True, True]])}
    with pytest.raises(ValueError, match=r"attention_mask is \[1, 1, 4, 4\].*give position_ids"):
        READ.said(llama(), {**batch, "attention_mask": torch.ones(1, 1, 4, 4, dtype=torch.bool)})
