"""A model as a judge: batches, prompts, calibration, adapters that must change something, labels in the right order."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_models import randomize_lora
from tiny_runs import PROMPT, save_bert, save_llama

from debias.adapters.lora import add_lora
from debias.config.run import RunConfig
from debias.data import Example, generate
from debias.errors import InputError
from debias.inference.agreement import no_trees
from debias.inference.answers import Scoring
from debias.inference.any_model import Given, given_config, load_given
from debias.inference.batches import by_length
from debias.inference.loading import load
from debias.models.load import load_model, load_tokenizer

NLI = ("entailment", "neutral", "contradiction")
ANSWERS = {"entailment": " yes yes", "neutral": " maybe", "contradiction": " no premise no"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def classifier(bert: Path, folder: Path, labels: tuple[str, ...]) -> Path:
    """The tiny BERT with a head, whose outputs have these names."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(5)
    names = dict(enumerate(labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        bert, id2label=names, label2id={name: index for index, name in names.items()}
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def adapter(model: Path, folder: Path, *, idle: bool = False, head: bool = False) -> Path:
    """A LoRA; `idle`: as it starts, with a zero matrix."""
    torch.manual_seed(3)
    base = load_model(str(model), "classification" if head else "causal_lm", NLI)
    adapted = add_lora(base, r=3, alpha=6, dropout=0.0, targets="auto", classification=head, fresh=base.fresh_modules)
    if not idle:
        randomize_lora(adapted)
    adapted.save_pretrained(folder)
    return folder


def prompt_file(folder: Path, **changes: Any) -> Path:
    path = folder / "prompt.yaml"
    path.write_text(
        yaml.safe_dump({"template": PROMPT["template"], "verbalizers": ANSWERS, **changes}, sort_keys=False)
    )
    return path


def pairs(number: int, seed: int = 0) -> list[Example]:
    """Every third has the premise of the one before; the last two are the same."""
    rows = generate("validation", number, seed)
    texts = [(rows[i - (i % 3 == 1)]["premise"], row["hypothesis"]) for i, row in enumerate(rows)]
    texts[-1] = texts[-2]
    return [Example(str(i), text, i % 3) for i, text in enumerate(texts)]


def causal(llama: Path, scoring: Scoring | None = None, **changes: Any) -> Any:
    prompt = {**PROMPT, "verbalizers": ANSWERS}
    values = {"model": str(llama), "head": "causal_lm", "prompt": prompt, "data": {"train": "generated"}}
    config = RunConfig.model_validate({**values, "output_dir": "none", "max_length": 60, **changes})
    return load(config, config.model, None, scoring or Scoring())


def plain_log_p(predictor: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        logits = predictor.model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return math.fsum(float(log_p[len(prompt) - 1 + k, token]) for k, token in enumerate(answer))


def table(predictor: Any, prompts: list[list[int]]) -> np.ndarray:
    return np.array([[plain_log_p(predictor, ids, a) for a in predictor.task.prompt.answer_ids] for ids in prompts])


# Batches.


@pytest.mark.parametrize(("budget", "most"), [(40, None), (40, 3), (1, None), (10_000, None), (10_000, 7)])
def test_batches_hold_every_item_once_within_the_budget(budget: int, most: int | None) -> None:
    lengths = [5, 30, 7, 7, 12, 41, 3, 3, 9, 20]
    batches = by_length(lengths, budget, most)
    assert sorted(index for batch in batches for index in batch) == list(range(10))
    assert batches[0][0] == 5  # the longest first
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= budget or len(batch) == 1
        assert len(batch) <= (most or 10)


def test_no_items_no_batches() -> None:
    assert by_length([], 10) == []


# Answers.


@pytest.mark.parametrize("normalize", ["none", "tokens", "characters"])
def test_scores_against_one_pass_for_each_label(llama: Path, normalize: Any) -> None:
    predictor = causal(llama, Scoring(normalize))
    examples = pairs(12)
    want = table(predictor, [predictor.task.prompt.ids(one) for one in examples])
    want /= {"none": [1, 1, 1], "tokens": [2, 1, 3], "characters": [7, 5, 13]}[normalize]
    np.testing.assert_allclose(predictor.label_scores(examples), want, atol=1e-5)
    assert predictor.description["one_pass"] is True
    assert predictor.description["normalize"] == normalize


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_batches_and_order_do_not_matter(llama: Path, batch_size: int | None) -> None:
    examples = pairs(20)
    want = causal(llama).label_scores(examples)
    backwards = causal(llama).label_scores(examples[::-1], batch_size)[::-1]
    np.testing.assert_allclose(backwards, want, atol=1e-5)


def test_contextual_calibration(llama: Path) -> None:
    """Zhao et al., ICML 2021: the probability of each label over its mean under inputs without content."""
    predictor = causal(llama, Scoring(calibrate="contextual"))
    examples = pairs(6)
    got = predictor.label_scores(examples)
    empty = [Example("", (word, word), 0) for word in ("N/A", "[MASK]", "")]
    free = np.exp(table(predictor, [predictor.task.prompt.ids(one) for one in empty]))
    prior = (free / free.sum(axis=1, keepdims=True)).mean(axis=0)
    raw = np.exp(table(predictor, [predictor.task.prompt.ids(one) for one in examples])) / prior
    np.testing.assert_allclose(
        np.exp(got) / np.exp(got).sum(axis=1, keepdims=True), raw / raw.sum(axis=1, keepdims=True), atol=1e-5
    )


def test_pmi_takes_off_what_the_last_words_alone_say(llama: Path) -> None:
    """Holtzman et al., EMNLP 2021: the domain is what the template has after its last field."""
    predictor = causal(llama, Scoring(calibrate="pmi"))
    examples = pairs(6)
    words = predictor.task.tokenizer
    domain = table(predictor, [words(" answer :")["input_ids"]])
    want = table(predictor, [predictor.task.prompt.ids(one) for one in examples]) - domain
    np.testing.assert_allclose(predictor.label_scores(examples), want, atol=1e-5)


def test_pmi_needs_words_after_the_last_field(llama: Path) -> None:
    prompt = {"template": "{premise} {hypothesis}", "verbalizers": ANSWERS}
    with pytest.raises(InputError, match="pmi needs words after the last field"):
        causal(llama, Scoring(calibrate="pmi"), prompt=prompt).label_scores(pairs(3))


def test_unknown_scoring() -> None:
    with pytest.raises(InputError, match="normalize is 'length', not one of none, tokens, characters"):
        Scoring("length")  # type: ignore[arg-type]


def test_prompts_that_lost_their_start(llama: Path) -> None:
    """They are scored as they were cut."""
    template = "question : answer : question : answer : premise : {premise} {hypothesis}"
    short = causal(llama, max_length=40, prompt={"template": template, "verbalizers": ANSWERS})
    examples = pairs(30)
    encoded = [feature["input_ids"] for feature in short.task.encode(examples, with_answer=False).features]
    assert {True, False} == {len(ids) == 37 for ids in encoded}  # some are cut, some not
    np.testing.assert_allclose(short.label_scores(examples), table(short, encoded), atol=1e-5)


def test_what_is_longer_than_the_model_reads_is_counted(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also of texts that were asked about before, and said when it is asked for, since then."""
    template = "question : answer : question : answer : premise : {premise} {hypothesis}"
    short = causal(llama, max_length=40, prompt={"template": template, "verbalizers": ANSWERS})
    examples = pairs(30)
    whole = [len(short.task.prompt.ids(one)) > 37 for one in examples]
    assert 0 < sum(whole) < 30
    short.label_scores(examples)
    assert short.asked_and_cut == (30, sum(whole))
    first = whole.index(True)
    short.label_scores([examples[first]] * 2)
    assert short.asked_and_cut == (32, sum(whole) + 2)
    assert "longer than" not in caplog.text
    short.say_what_was_cut(30, sum(whole))
    assert "2 of 2 prompts are longer than max_length=40 and lost the start of their texts" in caplog.text
    caplog.clear()
    short.say_what_was_cut(32, sum(whole) + 2)
    assert caplog.text == ""


def test_the_same_texts_are_computed_once(llama: Path) -> None:
    predictor = causal(llama)
    seen = []
    predictor.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    first = predictor.label_scores(pairs(8))
    passes = len(seen)
    assert (predictor.label_scores(pairs(8)[::-1])[::-1] == first).all()
    assert len(seen) == passes


def test_a_model_that_takes_no_trees_is_scored_plainly(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that has a mask of its own (here: none but the causal one) is found by its scores."""
    caplog.set_level("INFO", "debias")
    predictor = causal(llama)
    whole = predictor.model.forward

    def forward(**inputs: Any) -> Any:
        if inputs["attention_mask"] is not None and inputs["attention_mask"].dim() == 4:
            inputs["attention_mask"] = None
        return whole(**inputs)

    predictor.model.forward = forward
    examples = pairs(9)
    want = table(causal(llama), [predictor.task.prompt.ids(one) for one in examples])
    np.testing.assert_allclose(predictor.label_scores(examples), want, atol=1e-5)
    assert predictor.description["one_pass"] is False
    assert "takes no trees of tokens (scores differ by" in caplog.text


def test_what_a_configuration_says_of_trees(llama: Path) -> None:
    model = load_model(str(llama), "causal_lm", NLI)
    assert no_trees(model, 100) is None
    model.config.sliding_window = 50
    assert no_trees(model, 100) == "a window shorter than 100 tokens"
    assert no_trees(model, 50) is None
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert no_trees(model, 50) == "layers of the kind linear_attention"
    model.config._attn_implementation = "flash_attention_2"
    assert "not sdpa or eager" in str(no_trees(model, 50))


# Adapters.


@pytest.mark.parametrize("head", [False, True], ids=["causal", "classification"])
def test_an_adapter_that_changes_scores(llama: Path, bert: Path, tmp_path: Path, head: bool) -> None:
    base = bert if head else llama
    given = Given(str(base), str(adapter(base, tmp_path / "adapter", head=head)), labels=NLI if head else None)
    if not head:
        given = Given(given.model, given.adapter, prompt_file(tmp_path))
    predictor = load_given(given)
    scores = predictor.label_scores(pairs(6))
    told = predictor.description
    assert told["adapter_changes_logits"] is True
    assert told["max_change"] > 0.01
    # Merged by now; the same as PEFT gives unmerged.
    predictor.model.unmerge_adapter()
    predictor._known.clear()
    np.testing.assert_allclose(predictor.label_scores(pairs(6)), scores, atol=1e-5)


@pytest.mark.parametrize("head", [False, True], ids=["causal", "classification"])
def test_an_adapter_that_changes_nothing_is_an_error(llama: Path, bert: Path, tmp_path: Path, head: bool) -> None:
    """A head that trained whole does not hide it."""
    base = bert if head else llama
    idle = str(adapter(base, tmp_path / "adapter", idle=True, head=head))
    given = Given(str(base), idle, None if head else prompt_file(tmp_path), NLI if head else None)
    with pytest.raises(InputError, match="the adapter changes nothing"):
        load_given(given).label_scores(pairs(6))


def test_in_a_run_it_is_a_warning(llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = causal(llama).config
    predictor = load(config, config.model, str(adapter(llama, tmp_path / "adapter", idle=True)), Scoring())
    predictor.label_scores(pairs(6))
    assert "WARNING: the adapter changes nothing" in caplog.text
    assert predictor.description["adapter_changes_logits"] is False
    assert predictor.description["max_change"] == 0


def one_token(llama: Path, folder: Path, token: int, **settings: Any) -> Path:
    """An adapter that changes what is said of one token, or behind it, alone."""
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model

    torch.manual_seed(3)
    trained = TrainableTokensConfig(token_indices=[token], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    woken = LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[token], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(str(llama), "causal_lm", NLI), woken if settings.get("woken") else trained)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("woken", [False, True], ids=["trainable tokens", "aLoRA"])
def test_an_adapter_of_a_token_that_the_first_examples_lack(llama: Path, tmp_path: Path, woken: bool) -> None:
    """Whether it changes anything was asked of eight, and judging ended in an error."""
    examples = pairs(70)
    words = load_tokenizer(str(llama), "causal_lm")
    late = [Example(one.id, (f"{one.texts[0]} !!", one.texts[1]), one.label) for one in examples[66:]]
    (token,) = set(words("!!", add_special_tokens=False)["input_ids"])
    assert not any(token in words(" ".join(one.texts))["input_ids"] for one in examples[:66])
    given = Given(str(llama), str(one_token(llama, tmp_path / "adapter", token, woken=woken)), prompt_file(tmp_path))
    predictor, base = load_given(given), causal(llama)
    scores_NC = predictor.label_scores([*examples[:66], *late])
    assert predictor.description["max_change"] > 0
    moved_N = np.abs(scores_NC - base.label_scores([*examples[:66], *late])).max(axis=1) > 1e-4
    assert moved_N.tolist() == [False] * 66 + [True] * 4


def test_an_adapter_of_a_token_that_no_example_has(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that come later may have it."""
    given = Given(str(llama), str(one_token(llama, tmp_path / "adapter", 0)), prompt_file(tmp_path))
    load_given(given).label_scores(pairs(20))
    assert "WARNING: the adapter changes nothing in 20 examples" in caplog.text


def test_hidden_states_beside_a_padding_token_without_an_embedding(llama: Path, tmp_path: Path) -> None:
    """A pad token that was added to the tokenizer alone: the model's own is taken, as everywhere."""
    from debias.inference.asking import hidden_of

    shutil.copytree(llama, tmp_path / "base")
    words = load_tokenizer(str(llama), "causal_lm")
    words.add_special_tokens({"pad_token": "<a pad of its own>"})
    words.save_pretrained(tmp_path / "base")
    examples = pairs(6)
    found, want = (hidden_of(causal(folder), examples, -1) for folder in (tmp_path / "base", llama))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_an_adapter_without_its_weights(llama: Path, bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = adapter(bert, tmp_path / "adapter", head=True)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if "classifier" not in key}, file)
    given = Given(str(bert), str(folder), labels=NLI)
    with pytest.raises(InputError, match="lacks the weights of classifier, which its base has not either"):
        load_given(given)
    save_file({key: value for key, value in tensors.items() if "query.lora_A" not in key}, file)
    with pytest.raises(InputError, match=r"lacks weights: .*query\.lora_A"):
        load_given(given)
    with pytest.raises(InputError, match=r"adapter: .* does not fit or cannot be read"):
        load_given(Given(str(llama), str(adapter(bert, tmp_path / "other", head=True)), prompt_file(tmp_path)))
    with pytest.raises(InputError, match="cannot be read"):
        load_given(Given(str(bert), str(tmp_path / "nothing"), labels=NLI))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_model.safetensors", b"{", "does not fit or cannot be read: .*header"),
        ("adapter_model.safetensors", None, r"holds no weights \(adapter_model\.safetensors\)"),
        ("adapter_config.json", b"[]", "cannot be read"),
        ("adapter_config.json", b"{", "cannot be read"),
        ("adapter_config.json", b"[" * 100_000, "cannot be read"),
        (
            "adapter_config.json",
            b'{"peft_type": "LORA", "target_modules": "*.q_proj"}',
            "cannot be read: nothing to repeat",
        ),
        ("adapter_config.json", b'{"peft_type": "LORA", "target_modules": "("}', "cannot be read: missing"),
        ("adapter_config.json", None, r"holds no adapter_config\.json; give the folder of a PEFT adapter"),
    ],
)
def test_a_damaged_adapter(llama: Path, tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = adapter(llama, tmp_path / "adapter") / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=f"adapter: .*{message}") as caught:
        load_given(Given(str(llama), str(path.parent), prompt_file(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_adapter_with_weights_for_layers_that_are_not_there(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter(llama, tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = load_file(file)
    more = {key.replace("layers.1.", "layers.9."): value.clone() for key, value in tensors.items()}
    save_file({**tensors, **more}, file)
    with pytest.raises(InputError, match=r"ForCausalLM has no place for its weights .*layers\.9\..* and \d+ more$"):
        load_given(Given(str(llama), str(file.parent), prompt_file(tmp_path)))


def test_an_adapter_whose_base_was_elsewhere(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is not on this machine is no error, the same folder by another name no warning."""
    monkeypatch.chdir(llama.parent)
    folder = adapter(llama, tmp_path / "adapter")
    given_config(Given(llama.name, str(folder), prompt_file(tmp_path)))
    assert caplog.text == ""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "/gone/llama"}))
    given_config(Given(llama.name, str(folder), prompt_file(tmp_path)))
    assert "WARNING: the adapter was trained on /gone/llama and is put on llama" in caplog.text


def test_an_adapter_names_its_base(llama: Path, tmp_path: Path) -> None:
    config = given_config(Given(adapter=str(adapter(llama, tmp_path / "adapter")), prompt=prompt_file(tmp_path)))
    assert config.model == str(llama)


def test_a_recipes_name_as_the_prompt(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it says of the weights is taken too, and said."""
    caplog.set_level("INFO", "debias")
    recipe = Path("smollm2_qlora_biased_snli_edge")
    assert given_config(Given(str(llama), prompt=recipe)).load_in_4bit
    assert "judged in 4 bits" in caplog.text
    caplog.clear()
    assert not given_config(Given(str(llama), prompt=recipe, load_in_4bit=False)).load_in_4bit
    assert caplog.text == ""
    with pytest.raises(InputError, match="no recipe of that name; did you mean smollm2_qlora_biased_snli_edge"):
        given_config(Given(str(llama), prompt=Path("smollm2_qlora_biased_snli")))


# Labels.


def test_labels_of_a_classifier_by_its_own_names(bert: Path, tmp_path: Path) -> None:
    """In another order and case than those given: never by position."""
    folder = classifier(bert, tmp_path / "model", ("CONTRADICTION", "Entailment", "neutral"))
    predictor = load_given(Given(str(folder), labels=NLI))
    assert predictor.labels == ("contradiction", "entailment", "neutral")
    example = pairs(3)[0]
    ids = predictor.task.tokenizer(*example.texts, return_tensors="pt")
    with torch.inference_mode():
        logits = predictor.model(**ids).logits
    got = predictor.label_scores([example])[0]
    np.testing.assert_allclose(got, torch.log_softmax(logits, -1)[0].numpy(), atol=1e-5)
    assert load_given(Given(str(folder))).labels == ("CONTRADICTION", "Entailment", "neutral")


def test_labels_of_an_adapter_by_the_names_that_lie_beside_it(bert: Path, tmp_path: Path) -> None:
    """Given in another order they are the same labels; other names are refused. PEFT itself keeps no names."""
    folder = adapter(bert, tmp_path / "adapter", head=True)
    assert given_config(Given(str(bert), str(folder), labels=NLI)).data.labels == NLI
    own = ("neutral", "Entailment", "contradiction")
    (folder / "labels.json").write_text(json.dumps({"id2label": dict(enumerate(own))}))
    turned = ("neutral", "entailment", "contradiction")
    assert given_config(Given(str(bert), str(folder))).data.labels == own
    assert given_config(Given(str(bert), str(folder), labels=NLI)).data.labels == turned
    recipe = tmp_path / "other.yaml"  # of a run whose labels are in another order
    recipe.write_text(
        f"model: {bert}\ndata: {{train: generated, labels: [contradiction, entailment, neutral]}}\noutput_dir: x\n"
    )
    assert given_config(Given(str(bert), str(folder), recipe)).data.labels == turned
    with pytest.raises(InputError, match=r"has the labels \['neutral', .*but --labels has \['good', 'bad', 'ugly'\]"):
        given_config(Given(str(bert), str(folder), labels=("good", "bad", "ugly")))


def test_labels_that_are_others_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = classifier(bert, tmp_path / "model", ("good", "bad", "ugly"))
    with pytest.raises(InputError, match=r"has the labels \['good', 'bad', 'ugly'\], expected"):
        given_config(Given(str(folder), labels=NLI))


def test_a_classifier_without_names_needs_them(bert: Path, tmp_path: Path) -> None:
    folder = classifier(bert, tmp_path / "model", ("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(InputError, match="does not name its labels; give them in order with --labels"):
        given_config(Given(str(folder)))
    assert given_config(Given(str(folder), labels=NLI)).data.labels == NLI
    with pytest.raises(InputError, match="3 outputs, and 2 labels"):
        given_config(Given(str(folder), labels=("yes", "no")))


def test_a_base_without_a_head_is_no_judge(bert: Path) -> None:
    with pytest.raises(InputError, match="has no trained classification head"):
        given_config(Given(str(bert), labels=NLI))


def test_a_causal_model_needs_a_prompt(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --prompt, a file of template and verbalizers"):
        given_config(Given(str(llama)))
    config = given_config(Given(str(llama), prompt=prompt_file(tmp_path)))
    assert config.data.text_fields == ("premise", "hypothesis")
    assert config.data.labels == NLI
    with pytest.raises(InputError, match="verbalizer: unknown key"):
        given_config(Given(str(llama), prompt=prompt_file(tmp_path, verbalizer={})))
    with pytest.raises(InputError, match="labels are those of its prompt's verbalizers"):
        given_config(Given(str(llama), prompt=prompt_file(tmp_path), labels=NLI))


def test_bf16_on_a_cpu_without_it_is_float32(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very weights that bf16 holds, multiplied in float32."""
    monkeypatch.setattr("debias.inference.loading.has_bf16", lambda: False)
    predictor = causal(llama, bf16=True)
    assert predictor.description["dtype"] == "float32"
    half = load_model(str(llama), "causal_lm", NLI, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in predictor.model.state_dict().items())
    four = causal(llama, bf16=True, load_in_4bit=True)
    assert four.description["load_in_4bit"] is True
    assert four.description["dtype"] == "float32"
    assert np.isfinite(four.label_scores(pairs(4))).all()
    assert json.dumps(four.description)


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        ("{premise} so {hypothesis}? Answer:", "? Answer:"),
        ("{premise}\nReply as {{label}}: ", "\nReply as {label}: "),  # no field: braces that are letters
        ('{premise} / {hypothesis}\nAnswer in JSON {{"label":', '\nAnswer in JSON {"label":'),
        ("{{a}} {premise}{{b}}", "{b}"),
    ],
)
def test_the_prior_of_pmi_is_asked_all_that_follows_the_last_field(template, tail):
    assert Scoring(calibrate="pmi").prior_texts(template, ("premise", "hypothesis")) == [tail]


def test_a_template_that_ends_with_a_field_has_no_such_prior():
    for template in ("{{x}} {premise}", "{premise} "):
        with pytest.raises(InputError, match="pmi needs words after the last field"):
            Scoring(calibrate="pmi").prior_texts(template, ("premise",))
