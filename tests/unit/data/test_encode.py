"""debias.data.encode: examples to token ids, padded batches, and an order with little padding."""

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_runs
import torch
from batches import flat, rows

from debias.data import Example
from debias.data.encode import Collator, EncodedExamples, encode_for_answers, encode_for_classification
from debias.data.order import LengthBuckets
from debias.data.prompt import Prompt
from debias.errors import InputError

FIELDS = ("premise", "hypothesis")
TEMPLATE = "{premise} question : {hypothesis} answer :"
ANSWERS = [" yes", " maybe", " no"]


@pytest.fixture(scope="module")
def encoder_words() -> Any:
    return tiny_runs.tokenizer(causal=False)


@pytest.fixture(scope="module")
def decoder_words() -> Any:
    words = tiny_runs.tokenizer(causal=True)
    words.pad_token = words.eos_token
    words.padding_side = "left"
    return words


def example(*texts: str, label: int = 0, **more: Any) -> Example:
    return Example(id="1", texts=texts, label=label, **more)


# Classification.


def test_pairs_become_one_sequence_with_segments(encoder_words: Any) -> None:
    encoded = encode_for_classification([example("yes no", "maybe", label=2)], encoder_words, 48)
    (feature,) = encoded.features
    words = encoder_words.convert_ids_to_tokens(feature["input_ids"])
    assert words == ["[CLS]", "yes", "no", "[SEP]", "maybe", "[SEP]"]
    assert feature["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert encoded.facts["labels"].tolist() == [2]
    assert "bias_weight" not in feature


def test_one_text_alone(encoder_words: Any) -> None:
    (feature,) = encode_for_classification([example("yes")], encoder_words, 48).features
    assert encoder_words.convert_ids_to_tokens(feature["input_ids"]) == ["[CLS]", "yes", "[SEP]"]


def test_three_texts_are_refused(encoder_words: Any) -> None:
    with pytest.raises(InputError, match=r"text_fields: .*one or two texts, got 3"):
        encode_for_classification([example("a", "b", "c")], encoder_words, 48)


def test_no_examples_are_no_features(encoder_words: Any) -> None:
    assert len(encode_for_classification([], encoder_words, 48)) == 0


def test_the_longer_text_is_truncated_first(encoder_words: Any) -> None:
    (feature,) = encode_for_classification([example("yes " * 30, "no no")], encoder_words, 12).features
    words = encoder_words.convert_ids_to_tokens(feature["input_ids"])
    assert len(words) == 12
    assert words.count("no") == 2


def test_bias_weight_travels_with_its_example(encoder_words: Any) -> None:
    encoded = encode_for_classification([example("yes", bias_weight=0.25)], encoder_words, 48)
    batch = flat(Collator(encoder_words)([encoded[0]]))
    assert batch["bias_weight"].tolist() == [0.25]


# Padding.


def test_encoder_batches_are_padded_on_the_right(encoder_words: Any) -> None:
    encoded = encode_for_classification([example("yes"), example("yes no maybe")], encoder_words, 48)
    batch = flat(Collator(encoder_words)(list(encoded)))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [encoder_words.pad_token_id] * 2
    assert batch["token_type_ids"].shape == (2, 5)
    assert batch["labels"].dtype == torch.int64


def test_decoder_batches_are_padded_on_the_left(decoder_words: Any) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ANSWERS, FIELDS)
    encoded = encode_for_answers([example("yes", "no"), example("yes no no", "no")], prompt, 48, with_answer=True)
    batch = flat(Collator(decoder_words)(list(encoded)))
    assert batch["attention_mask"][0].tolist() == [0, 0] + [1] * 8
    assert batch["input_ids"][0, 0] == decoder_words.eos_token_id
    # Answers end where the row ends, whatever the padding.
    assert batch["answer_mask"].dtype == torch.bool
    assert batch["answer_mask"].sum(dim=1).tolist() == [1, 1]
    assert bool(batch["answer_mask"][:, -1].all())


def test_a_mask_hides_padding_and_not_the_token_that_pads(decoder_words: Any) -> None:
    feature = {"input_ids": [decoder_words.eos_token_id] * 3, "labels": 0}
    batch = flat(Collator(decoder_words)(rows([feature, {"input_ids": [7] * 4, "labels": 0}])))
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


# Prompts and answers.


def test_the_answer_follows_the_prompt_and_only_it_is_masked_in(decoder_words: Any) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ["yes maybe", "maybe", "no"], FIELDS)
    (feature,) = encode_for_answers([example("no", "no", label=0)], prompt, 48, with_answer=True).features
    words = decoder_words.convert_ids_to_tokens(feature["input_ids"])
    assert words == ["[BOS]", "no", "question", ":", "no", "answer", ":", "yes", "maybe"]
    assert feature["answer_mask"] == [False] * 7 + [True] * 2


def test_without_answers_there_is_no_answer(decoder_words: Any) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ANSWERS, FIELDS)
    (feature,) = encode_for_answers([example("no", "no", label=2)], prompt, 48, with_answer=False).features
    assert "answer_mask" not in feature
    assert feature["input_ids"] == prompt.ids(example("no", "no"))


@pytest.mark.parametrize("with_answer", [True, False])
def test_a_long_prompt_loses_the_start_of_its_texts(
    decoder_words: Any, with_answer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ["yes yes", "maybe", "no"], FIELDS)
    one = example("yes " * 40, "no", label=1)
    (feature,) = encode_for_answers([one], prompt, 16, with_answer=with_answer).features
    # Room is kept for the longest answer, so that a prompt is the same for every label and in scoring.
    whole, head = prompt.ids(one), decoder_words(TEMPLATE.partition("{")[0])["input_ids"]
    assert 0 < len(head) < 10
    assert feature["input_ids"][:14] == [*head, *whole[len(head) - 14 :]]
    assert len(feature["input_ids"]) == 14 + with_answer
    assert "1 of 1 prompts are longer than max_length=16" in caplog.text


def _with_bos() -> Any:
    """Words of their own, a beginning of sequence before every text, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "<bos>", "<user>", "<model>", "Say", "if", "Text:", "Then:", "Answer:", "yes", "no"]
    words += [f"w{i}" for i in range(60)]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    named = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", unk_token="[UNK]", pad_token="[UNK]")
    named.chat_template = "{{ bos_token }} <user> {{ messages[0]['content'] }} <model> "
    return named


@pytest.mark.parametrize(
    ("chat", "head", "tail"),
    [(False, "<bos> Say if Text:", "Answer:"), (True, "<bos> <user> Say if Text:", "Answer: <model>")],
)
def test_a_long_prompt_keeps_what_stands_before_its_texts(chat: bool, head: str, tail: str) -> None:
    words = _with_bos()
    prompt = Prompt(words, "Say if Text: {premise} Then: {hypothesis} Answer: ", [" yes", " no"], FIELDS, chat=chat)
    long = example(" ".join(f"w{i}" for i in range(40)), "w50 w51", label=1)
    short = example("w1 w2", "w3", label=1)
    cut, whole = encode_for_answers([long, short], prompt, 17, with_answer=False).features
    assert whole["input_ids"] == prompt.ids(short)
    text = words.decode(cut["input_ids"])
    assert len(cut["input_ids"]) == 16
    assert text.startswith(f"{head} w")
    assert text.endswith(f"w39 Then: w50 w51 {tail}")


def test_where_the_instruction_alone_has_no_room_the_beginning_of_sequence_stays() -> None:
    words = _with_bos()
    prompt = Prompt(words, "Say if Say if Text: {premise} {hypothesis} Answer: ", [" yes", " no"], FIELDS)
    long = example("w1 w2 w3 w4", "w5 w6 w7", label=1)
    (cut,) = encode_for_answers([long], prompt, 6, with_answer=False).features
    assert words.decode(cut["input_ids"]) == "<bos> w5 w6 w7 Answer:"


def test_no_room_for_a_prompt(decoder_words: Any) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ["yes yes yes yes", "maybe", "no"], FIELDS)
    with pytest.raises(InputError, match="max_length is 4: no room"):
        encode_for_answers([example("a", "b")], prompt, 4, with_answer=True)


@pytest.mark.parametrize(
    "answers",
    [["yes", "yes no", "maybe"], ["yes no", "yes", "maybe"], ["yes", "yes", "no"]],
    ids=["first", "last", "same"],
)
def test_an_answer_that_begins_another_is_refused(decoder_words: Any, answers: Sequence[str]) -> None:
    with pytest.raises(InputError, match=r"prompt\.verbalizers: 'yes' begins"):
        Prompt(decoder_words, TEMPLATE, answers, FIELDS)


def test_answers_that_share_a_start_are_fine(decoder_words: Any) -> None:
    Prompt(decoder_words, TEMPLATE, ["yes no", "yes maybe", "no"], FIELDS)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_answer_is_refused(decoder_words: Any, empty: str) -> None:
    with pytest.raises(InputError, match="has no tokens"):
        Prompt(decoder_words, TEMPLATE, [empty, "maybe", "no"], FIELDS)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{premise} {hypothesis} {label}", "uses {label}"),
        ("{premise} {hypothesis} {}", "uses {}"),
        ("{premise} {hypothesis} {0}", "uses {0}"),
        ("{premise} {hypothesis} {premise.upper}", "uses {premise.upper}"),
        ("{premise} {hypothesis} }", "Single '}'"),
        ("{premise} {hypothesis} {", "'{'"),
        ("{premise}", "does not use {hypothesis}"),
        ("{premise} {{hypothesis}}", "does not use {hypothesis}"),
        ("{premise!r} {hypothesis}", "without ':' or '!'"),
        ("{premise} {hypothesis:>9}", "without ':' or '!'"),
        ("{premise} {hypothesis:{x}}", "without ':' or '!'"),
    ],
)
def test_bad_templates(decoder_words: Any, template: str, says: str) -> None:
    with pytest.raises(InputError, match=r"^prompt\.template") as caught:
        Prompt(decoder_words, template, ANSWERS, FIELDS)
    assert says in str(caught.value)


def test_doubled_braces_are_braces(decoder_words: Any) -> None:
    prompt = Prompt(decoder_words, "{{ {premise} }} {hypothesis}", ANSWERS, FIELDS)
    assert prompt.ids(example("yes", "no")) == list(decoder_words("{ yes } no")["input_ids"])


@pytest.mark.parametrize("text", ["{x}", "{hypothesis}", "{", "}", "{}", "%s {0!r}", "{{premise}}"])
def test_braces_in_the_data_are_text(decoder_words: Any, text: str) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ANSWERS, FIELDS)
    assert prompt.ids(example(text, "no")) == list(decoder_words(f"{text} question : no answer :")["input_ids"])


def test_chat_wraps_the_prompt_in_the_template_of_the_tokenizer() -> None:
    words = tiny_runs.tokenizer(causal=True)
    words.chat_template = (
        "{{ bos_token }} question {{ messages[0]['content'] }}{% if add_generation_prompt %} answer{% endif %}"
    )
    prompt = Prompt(words, "{premise} {hypothesis}", ANSWERS, FIELDS, chat=True)
    written = words.convert_ids_to_tokens(prompt.ids(example("yes", "no")))
    assert written == ["[BOS]", "question", "yes", "no", "answer"]  # one [BOS], not two


def test_chat_without_a_chat_template_is_refused(decoder_words: Any) -> None:
    with pytest.raises(InputError, match=r"prompt\.chat: .*no chat template"):
        Prompt(decoder_words, TEMPLATE, ANSWERS, FIELDS, chat=True)


# Buckets.


def padding(order: Sequence[int], lengths: Sequence[int], batch: int) -> int:
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    return sum(max(lengths[i] for i in one) * len(one) - sum(lengths[i] for i in one) for one in batches)


def lengths_of(size: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 60, (size,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 64, 399, 400, 401, 1000])
def test_every_example_once(size: int) -> None:
    order = list(LengthBuckets(lengths_of(size), 8, seed=3))
    assert sorted(order) == list(range(size))
    assert len(LengthBuckets(lengths_of(size), 8, seed=3)) == size


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        buckets = LengthBuckets(lengths_of(200), 8, seed)
        buckets.set_epoch(epoch)
        torch.rand(3)  # the global generator plays no part
        return list(buckets)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_the_same_buckets_twice_are_the_same_order() -> None:
    buckets = LengthBuckets(lengths_of(50), 8, 0)
    assert list(buckets) == list(buckets)


def test_buckets_save_most_of_the_padding() -> None:
    lengths = lengths_of(2000)
    buckets = LengthBuckets(lengths, 16, 0)
    at_random = torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist()
    assert padding(list(buckets), lengths, 16) < 0.1 * padding(at_random, lengths, 16)


def test_batches_do_not_come_sorted() -> None:
    lengths = lengths_of(800)
    order = list(LengthBuckets(lengths, 8, 0))
    means = torch.tensor([float(sum(lengths[i] for i in order[at : at + 8])) for at in range(0, 800, 8)])
    place = torch.arange(len(means), dtype=torch.float32)
    assert abs(float(torch.corrcoef(torch.stack([means, place]))[0, 1])) < 0.3


def test_a_short_batch_comes_last() -> None:
    lengths = lengths_of(85)
    order = list(LengthBuckets(lengths, 8, 0))
    # Were it elsewhere, the batches after it would be cut across buckets and the padding would be large.
    assert padding(order, lengths, 8) < 0.2 * padding(list(range(85)), lengths, 8)


def test_a_data_set_brings_its_order(encoder_words: Any) -> None:
    encoded = EncodedExamples([{"input_ids": [1] * n} for n in (3, 9, 4)], {})
    assert encoded.sampler(2, 0).lengths == [3, 9, 4]
    assert sorted(encoded.sampler(2, 0)) == [0, 1, 2]


# Several wordings of a prompt.

TWO = "{premise} so {hypothesis} ?"


def asked_in(decoder_words: Any, *more: str, rows: int = 40) -> Any:
    pairs = [example(f"it is {i} dogs", f"a dog {i}", label=i % 2) for i in range(rows)]
    prompt = Prompt(decoder_words, ONE, [" yes", " no"], ("premise", "hypothesis"), more=more)
    return encode_for_answers(pairs, prompt, 40, with_answer=True), prompt, pairs


ONE = "{premise} {hypothesis} ?"


def test_each_example_is_asked_in_one_of_the_wordings_anew_in_each_epoch(decoder_words: Any) -> None:
    encoded, prompt, pairs = asked_in(decoder_words, TWO)
    plain, _, _ = asked_in(decoder_words)
    assert len(encoded) == len(plain) == 40
    sampler, one = encoded.sampler(4, seed=3), plain.sampler(4, seed=3)
    drawn = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        one.set_epoch(epoch)
        places = list(sampler)
        assert [place % 40 for place in places] == list(one)  # which examples, in which order, stays
        assert places == list(sampler)  # resumed
        drawn.append({place % 40: place // 40 for place in places})
        for place in places:
            row, asked = pairs[place % 40], (prompt, *prompt.more)[place // 40]
            got = encoded[place]
            answer = asked.answer_ids[row.label]
            assert got["tokens"]["input_ids"] == asked.ids(row) + answer
            assert got["tokens"]["answer_mask"] == [False] * len(asked.ids(row)) + [True] * len(answer)
            assert int(got["facts"]["index"]) == place % 40
            assert int(got["facts"]["labels"]) == row.label
    assert all(8 < sum(one.values()) < 32 for one in drawn)  # by an even coin
    assert drawn[0] != drawn[1] != drawn[2]
    with pytest.raises(IndexError):
        encoded[80]


def test_a_model_is_judged_in_its_template_alone(decoder_words: Any) -> None:
    _, prompt, pairs = asked_in(decoder_words, TWO)
    judged = encode_for_answers(pairs, prompt, 40, with_answer=False)
    assert not judged.wordings
    assert [judged[i]["tokens"]["input_ids"] for i in range(40)] == [prompt.ids(row) for row in pairs]


def test_wordings_that_do_not_fit_are_refused(decoder_words: Any) -> None:
    with pytest.raises(InputError, match=r"prompt.more_templates: '\{premise\} \?': .*does not use \{hypothesis\}"):
        asked_in(decoder_words, "{premise} ?")


# What is longer than it may be.


@pytest.mark.parametrize("fast", [True, False])
def test_texts_that_are_cut_are_counted(encoder_words: Any, fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Texts that just fit, are a token too long, and far too long: [CLS], [SEP] and seven words are nine tokens."""
    tokenizer = encoder_words if fast else slow(encoder_words)
    examples = [example("yes " * words) for words in (7, 8, 1, 400, 6)]
    encoded = encode_for_classification(examples, tokenizer, 9)
    assert [len(feature["input_ids"]) for feature in encoded.features] == [9, 9, 3, 9, 8]
    assert (encoded.cut, list(encoded.cut_at)) == (2, [1, 3])
    assert caplog.messages == ["2 of 5 texts are longer than max_length=9 and were cut"]
    caplog.clear()
    pairs = [example("yes " * words, "no no") for words in (4, 5, 4, 90)]
    assert list(encode_for_classification(pairs, tokenizer, 9, quiet=True).cut_at) == [1, 3]
    assert encode_for_classification(examples[2:3], tokenizer, 9).cut == 0
    assert caplog.messages == []


def slow(tokenizer: Any) -> Any:
    """A tokenizer as those without Rust are: it does not say what it left out."""

    def ask(*columns: Any, **settings: Any) -> dict[str, Any]:
        return dict(tokenizer(*columns, **settings))

    return ask


def test_prompts_that_are_cut_are_counted(decoder_words: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompt = Prompt(decoder_words, TEMPLATE, ["yes yes", "maybe", "no"], FIELDS)
    examples = [example("yes " * words, "no") for words in (1, 40, 2, 80)]
    encoded = encode_for_answers(examples, prompt, 16, with_answer=False, quiet=True)
    assert (encoded.cut, list(encoded.cut_at)) == (2, [1, 3])
    assert caplog.messages == []
