"""Labels scored on batches that are padded on either side, or in the form of training's rows, which hold the answer.

The oracle: one unpadded prompt with one answer at a time, plain arithmetic on its logits, in float64.
"""

import math

import pytest
import torch
from tiny_models import gpt2, llama
from tiny_trainers import trainer_of

from debias.losses import Answers
from debias.readouts.answers import with_positions

torch.set_num_threads(1)

ONE, SEVERAL = ([5], [9], [60]), ([5, 6], [9], [60, 2, 7])
draw = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(1, 61, (length,), generator=draw).tolist() for length in (5, 8, 1, 6)]
RIGHT = (1, 0, 2, 1)


def alone(model, prompt, answer):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].tolist()
    total = 0.0
    for place, token in enumerate(answer, start=len(prompt) - 1):
        top = max(logits[place])
        total += logits[place][token] - top - math.log(math.fsum(math.exp(value - top) for value in logits[place]))
    return total


def padded(side, answers=None, behind=(), pad=17, prompts=PROMPTS):
    """The prompts, with the right one of `answers` and what stands `behind` it where it is given."""
    rows = [
        prompt + ([*answers[right], *behind] if answers else []) for prompt, right in zip(prompts, RIGHT, strict=True)
    ]
    width = max(map(len, rows))

    def laid(row, filler):
        more = [filler] * (width - len(row))
        return more + row if side == "left" else row + more

    batch = {
        "input_ids": torch.tensor([laid(row, pad) for row in rows]),
        "attention_mask": torch.tensor([laid([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor(RIGHT),
    }
    if answers:
        marks = [
            [False] * len(prompt) + [True] * len(answers[right]) + [False] * len(behind)
            for prompt, right in zip(prompts, RIGHT, strict=True)
        ]
        batch["answer_mask"] = torch.tensor([laid(mark, False) for mark in marks])
    return batch


def forms(answers):
    for side in ("left", "right"):
        yield f"prompts, {side}", padded(side)
        yield f"rows of training, {side}", padded(side, answers)
        yield f"an end of text behind the answer, {side}", padded(side, answers, behind=(4, 5))
    unmasked = padded("right", answers)
    del unmasked["attention_mask"]
    yield "rows of training, without a mask", unmasked
    placed = padded("right", answers)
    placed["position_ids"] = with_positions(llama(), {key: placed[key] for key in ("input_ids", "attention_mask")})[
        "position_ids"
    ]
    yield "rows of training, their own positions", placed


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("answers", [ONE, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_labels_are_scored_after_each_prompt_however_it_is_laid(make, answers, chunk):
    model = make().double().eval()
    want = torch.tensor([[alone(model, prompt, answer) for answer in answers] for prompt in PROMPTS])
    for name, batch in forms(answers):
        with torch.no_grad():
            got = Answers(answers, chunk=chunk).label_scores(model, batch)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5, msg=name)


ROBERTAS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text", "roberta-prelayernorm")


def of_robertas_kin(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    languages = {"languages": ["en_XX"], "default_language": "en_XX"} if kind == "xmod" else {}
    settings = {**sizes, **dropout, **languages, "vocab_size": 61, "pad_token_id": 1, "max_position_embeddings": 40}
    config = AutoConfig.for_model(kind, is_decoder=True, initializer_range=0.3, **settings)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("kind", ROBERTAS)
def test_robertas_kin_are_read_at_their_own_positions(kind):
    """They begin behind the padding's, and a padding token in a text has none; debias gave positions from 0."""
    model = of_robertas_kin(kind)
    prompts = [*PROMPTS[:-1], [5, 1, 7, 1, 1, 9]]
    want = torch.tensor([[alone(model, prompt, answer) for answer in SEVERAL] for prompt in prompts])
    batch = padded("left", prompts=prompts)
    with torch.no_grad():
        for answers in (SEVERAL, ONE):
            got = Answers(answers).label_scores(model, batch)
            torch.testing.assert_close(got[:, 1], want[:, 1], rtol=1e-5, atol=2e-5, check_dtype=False)
        torch.testing.assert_close(Answers(SEVERAL).label_scores(model, batch), want, rtol=1e-5, atol=2e-5)
        said = Answers(SEVERAL).said(model, padded("left", SEVERAL, prompts=prompts)).log_p_B
    wanted = want[torch.arange(4), torch.tensor(RIGHT)]
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=2e-5, check_dtype=False)


def test_robertas_kin_do_not_pack():
    """Rows of several samples begin each at 0, where these models do not."""
    from debias.models.attention import packing_refusal
    from debias.readouts.answers import packed_logits

    assert "logits differ from those alone" in str(packing_refusal(of_robertas_kin("roberta"), 40, packed_logits))


@pytest.mark.parametrize("answers", [ONE, SEVERAL], ids=["one token", "several"])
def test_left_padded_prompts_are_asked_as_ever(answers):
    """An `answer_mask` that marks nothing changes no bit; answers of one token are one pass of one position."""
    model, batch = llama().eval(), padded("left")
    asked = []
    watch = model.lm_head.register_forward_hook(lambda module, given, out: asked.append(tuple(out.shape)))
    with torch.no_grad():
        plain = Answers(answers).label_scores(model, batch)
        watch.remove()
        marked = Answers(answers).label_scores(model, batch | {"answer_mask": torch.zeros(4, 8)})
    assert torch.equal(plain, marked)
    assert asked == ([(4, 1, 61)] if answers is ONE else [(4, len(answer), 61) for answer in answers])


def test_pictures_and_their_three_axes_of_positions():
    """The positions of an answer go on from those of its prompt's last token, in each axis."""
    seen = {}

    class Listening(torch.nn.Module):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0):
            seen["positions"] = position_ids
            raise InterruptedError

    batch = padded("right", SEVERAL)
    width = batch["input_ids"].shape[1]
    axes = torch.stack([torch.arange(width), torch.arange(width) + 10, torch.arange(width) * 2])
    batch["position_ids"] = axes.unsqueeze(1).expand(3, 4, width).contiguous()
    with pytest.raises(InterruptedError):
        Answers([[5, 6], [7, 8]]).label_scores(Listening(), batch)
    for axis in range(3):
        for row, prompt in enumerate(PROMPTS):
            last = int(axes[axis, len(prompt) - 1])
            found = seen["positions"][axis, row, len(prompt) : len(prompt) + 2].tolist()
            assert found == [last + 1, last + 2], (axis, row)


def without(row):
    batch = padded("left", ONE)
    batch["answer_mask"][row] = False
    return batch


def twice():
    batch = padded("left", ONE)
    batch["answer_mask"][1, -3] = True
    return batch


def empty(side):
    batch = padded(side)
    batch["attention_mask"][2] = 0
    return batch


def of_pairs():
    batch = padded("left", ONE)
    return batch | {"attention_mask": torch.ones(4, 1, 9, 9)}


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (without(2), r"^answer_mask marks an answer in 3 of 4 rows.*or give prompts alone$"),
        (twice(), r"^answer_mask marks several stretches of a row.*one prompt a row$"),
        (empty("left"), r"^attention_mask: a row of prompts has no token"),
        (empty("right"), r"^attention_mask: a row of prompts has no token"),
        (padded("left", ONE) | {"answer_mask": torch.ones(4, 9)}, r"^attention_mask: a row of prompts has no token"),
        (of_pairs(), r"^attention_mask is \[4, 1, 9, 9\]: where a prompt ends"),
    ],
)
@pytest.mark.parametrize("answers", [ONE, SEVERAL], ids=["one token", "several"])
def test_what_cannot_be_told_is_refused_in_one_line(batch, told, answers):
    with pytest.raises(ValueError, match=told) as error:
        Answers(answers).label_scores(llama().eval(), batch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_trainer_evaluates_the_rows_that_it_trains_on(tmp_path, side):
    """One data set and one collator for both: the loss is that of prompts asked one by one."""
    model = llama()
    want = [-alone(model.eval(), prompt, ONE[right]) for prompt, right in zip(PROMPTS, RIGHT, strict=True)]
    rows = [{"row": index, "answer_mask": [True]} for index in range(len(PROMPTS))]

    def collate(rows):
        whole = padded(side, ONE)
        return {key: value[[row["row"] for row in rows]] for key, value in whole.items()}

    more = {"readout": Answers(ONE), "data_collator": collate, "eval_dataset": rows}
    trainer = trainer_of(tmp_path, model=model, data=rows, remove_unused_columns=False, more=more)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(want) / len(want), abs=1e-5)
    predicted = trainer.predict(rows).predictions
    wanted = [[alone(model, prompt, answer) for answer in ONE] for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(predicted).double(), torch.tensor(wanted).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_of_a_prompt_know_nothing_of_what_stands_behind_its_answer(side):
    """An end of text behind the answer attends to it, and told its label."""
    model = llama().double().eval()
    behind, plain = padded(side, ONE, behind=(4, 5)), padded(side, ONE)
    got, want = (Answers(ONE).said(model, batch, hidden=True).hidden_BH for batch in (behind, plain))
    torch.testing.assert_close(got, want)
