"""What judging does for speed, against what it stands for: one example at a time, and PEFT's own adapter."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from tiny_models import randomize_lora
from tiny_runs import PROMPT, save_llama, tokenizer

from debias.building.padding import PaddingCheck
from debias.building.task import Task, padded_for
from debias.data import Example, generate
from debias.data.encode import EncodedExamples
from debias.data.facts import facts_of
from debias.data.prompt import Prompt
from debias.inference.agreement import PaddingGuard, no_trees
from debias.inference.answers import AnswerScorer, Scoring
from debias.inference.any_model import Given, load_given
from debias.readouts import Answers, Classification

torch.set_num_threads(1)
ANSWERS = {"entailment": " yes yes", "neutral": " maybe", "contradiction": " no premise no"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
LOCAL = [[["global", "local"], 1]]
# Families beside those of `tiny_models`: learned positions, offsets, ALiBi, windows, heads that read the last place.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": LOCAL, "window_size": 8},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": SIZES,
    "phi": SIZES,
    "mistral": {**SIZES, "num_key_value_heads": 1, "sliding_window": 8},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": {**SIZES, "max_position_embeddings": 66},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "modernbert": {**SIZES, "local_attention": 8},
}
CAUSAL = [*tiny_models.FAMILIES, *OTHERS]
HEADED = [name for name in (*CAUSAL, *CLASSIFIERS) if name != "llama4_text"]


def model_of(name: str, *, classify: bool = False, **changes: Any) -> Any:
    """A model whose weights are far from zero, so that a wrong place or mask shows."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    if name in tiny_models.FAMILIES:
        return tiny_models.family(name, classify=classify, **changes).eval()
    kind = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    special = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    labels = {"num_labels": 3} if classify else {}
    torch.manual_seed(0)
    model = kind.from_config(
        AutoConfig.for_model(name, **{**(OTHERS | CLASSIFIERS)[name], **special, **labels, **changes})
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Words:
    """A tokenizer that pads otherwise than the models do: on the other side, with another token."""

    pad_token_id = 2

    def __init__(self, side: str) -> None:
        self.padding_side = side


def texts(number: int = 7, seed: int = 0) -> list[list[int]]:
    draw = Random(seed)
    return [[draw.randrange(3, 200) for _ in range(draw.choice([2, 5, 9, 21, 33]))] for _ in range(number)]


def encoded(lengths: Any, answers: list[list[int]] | None) -> EncodedExamples:
    labels = [i % 3 for i in range(len(lengths))]
    features = []
    for ids, label in zip(lengths, labels, strict=True):
        answer = answers[label] if answers else []
        mask = {"answer_mask": [False] * len(ids) + [True] * len(answer)} if answers else {}
        features.append({"input_ids": [*ids, *answer], **mask})
    return EncodedExamples(features, facts_of([Example("", ("",), label) for label in labels]))


def as_one_and_as_many(model: Any, task: Task, rows: list[Any], say: Any) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        one = np.concatenate([say(model, task.collate([row])).numpy() for row in rows])
        return one, say(model, task.collate(rows)).numpy()


@pytest.mark.parametrize(
    ("name", "side"), [*((name, "left") for name in HEADED), *((name, "right") for name in ("gpt2", "bert", "xlnet"))]
)
def test_a_padded_batch_of_a_classifier(name: str, side: str) -> None:
    """In judging and in training: the tokenizer pads with another id, on either side."""
    model, readout = model_of(name, classify=True), Classification()
    task = padded_for(Task(readout, None, Words(side), 64), model)
    rows = list(encoded(texts(), None))
    for say in (readout.label_scores, lambda model, batch: readout.said(model, batch).log_p_B):
        one, many = as_one_and_as_many(model, task, rows, say)
        np.testing.assert_allclose(many, one, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_padded_batch_of_a_causal_model(name: str) -> None:
    answers = [[5], [9, 1, 3], [60, 7]]
    model, readout = model_of(name), Answers(answers)
    task = padded_for(Task(readout, object(), Words("right"), 64), model)  # type: ignore[arg-type]
    one, many = as_one_and_as_many(model, task, list(encoded(texts(), None)), readout.label_scores)
    np.testing.assert_allclose(many, one, atol=1e-4)
    said = lambda model, batch: readout.said(model, batch).log_p_B  # noqa: E731
    one, many = as_one_and_as_many(model, task, list(encoded(texts(), answers)), said)
    np.testing.assert_allclose(many, one, atol=1e-4)


def test_an_id_that_the_model_has_no_row_for_never_pads() -> None:
    model, words = model_of("qwen2"), Words("left")
    model.config.pad_token_id, words.pad_token_id = None, 200
    task = padded_for(Task(Answers([[5]]), object(), words, 64), model)  # type: ignore[arg-type]
    assert task.pad_id == 0


def fnet() -> Any:
    """Mixes all places of a row, padding too, and has no attention to mask."""
    from transformers import FNetConfig, FNetForSequenceClassification

    torch.manual_seed(0)
    config = FNetConfig(**SIZES, vocab_size=200, num_labels=3, pad_token_id=0, initializer_range=0.3)
    return FNetForSequenceClassification(config).eval()


def test_a_model_that_reads_padding_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "debias")
    for model, reads in ((fnet(), True), (model_of("bert", classify=True), False)):
        task = padded_for(Task(Classification(), None, Words("right"), 64), model)
        rows, guard = list(encoded(texts(), None)), PaddingGuard(model)

        def compute(batch: Any, model: Any = model, task: Task = task, rows: list[Any] = rows) -> Any:
            with torch.no_grad():
                scores = task.readout.label_scores(model, task.collate([rows[i] for i in batch]))
            return batch, scores.numpy()

        lengths = [len(row["tokens"]["input_ids"]) for row in rows]
        assert not guard.forbids([4, 4, 4], compute)  # nothing to pad, nothing tried
        assert guard.forbids(lengths, compute) is reads
        assert guard.forbids(lengths, compute) is reads
    assert caplog.text.count("FNetForSequenceClassification does not skip padding (scores differ by") == 1
    assert "BertFor" not in caplog.text


def test_training_warns_of_a_model_that_reads_padding(caplog: pytest.LogCaptureFixture) -> None:
    class Arguments:
        bf16 = False

    for model in (fnet(), model_of("gpt2", classify=True)):
        task = padded_for(Task(Classification(), None, Words("right"), 64), model)
        model.train()
        PaddingCheck(task, encoded(texts(), None)).on_train_begin(Arguments(), None, None, model=model)
        assert model.training
    assert caplog.text.count("WARNING: FNetForSequenceClassification does not skip padding") == 1
    assert "GPT2" not in caplog.text


# Trees.


def prompts(head: int, sharing: int) -> list[list[int]]:
    """The first in order have nothing in common; later ones begin alike in groups of four."""
    draw = Random(1)
    some = lambda number: [draw.randrange(30, 190) for _ in range(number)]  # noqa: E731
    begin = some(head)
    alone = [[*begin, 3 + i, *some(6)] for i in range(6)]
    groups = [[*begin, 100 + i, *some(7)] for i in range(sharing)]
    return [*alone, *([*group, *some(4)] for group in groups for _ in range(4))]


def scorer_of(model: Any, answers: list[list[int]]) -> AnswerScorer:
    words = tokenizer(causal=True)
    words.pad_token = words.eos_token
    prompt = Prompt(words, PROMPT["template"], list(PROMPT["verbalizers"].values()), ("premise", "hypothesis"))
    task = padded_for(Task(Answers(answers), prompt, words, 100), model)
    return AnswerScorer(model, task.readout, prompt, task.collate, 100, Scoring())  # type: ignore[arg-type]


def plainly(model: Any, asked: list[list[int]], answers: list[list[int]]) -> np.ndarray:
    """One unpadded pass for each prompt and answer, summed here."""
    table = []
    for ids in asked:
        row = []
        for answer in answers:
            with torch.no_grad():
                log_p = torch.log_softmax(model(input_ids=torch.tensor([ids + answer])).logits[0].double(), -1)
            row.append(math.fsum(float(log_p[log_p.shape[0] - len(answer) - 1 + k, t]) for k, t in enumerate(answer)))
        table.append(row)
    return np.array(table)


@pytest.mark.parametrize("name", CAUSAL)
def test_label_scores_of_every_family(name: str) -> None:
    """One text at a time, whether its attention takes trees or not."""
    model, answers = model_of(name), [[5, 6], [9], [9, 1, 4]]
    asked = prompts(0, 6)
    scorer = scorer_of(model, answers)
    with torch.no_grad():
        np.testing.assert_allclose(scorer.raw(asked, None), plainly(model, asked, answers), atol=1e-4)
    assert scorer.trees is (name not in {"gpt_neo", "bloom", "mpt", "falcon", "mistral", "llama4_text", "gemma3_text"})


@pytest.mark.parametrize("name", ["mpt", "gpt_neo", "falcon"])
def test_the_hardest_rows_tell_what_the_first_ones_hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration says nothing: rows that share nothing agree, and shared or wide ones do not."""
    monkeypatch.setattr("debias.inference.answers.no_trees", lambda model, longest: None)
    window = {"window_size": 12} if name == "gpt_neo" else {}
    model, answers = model_of(name, **window), [[5], [9], [60]]
    asked = prompts(0, 8)
    scorer = scorer_of(model, answers)
    with torch.no_grad():
        scorer.raw(asked[:2], None)
        easy = scorer.trees
        np.testing.assert_allclose(scorer.raw(asked, None), plainly(model, asked, answers), atol=1e-4)
    assert scorer.trees is False
    assert easy or name == "falcon"  # which takes no such mask with ALiBi


def test_what_a_family_says_of_its_distances() -> None:
    assert "takes no position_ids" in str(no_trees(model_of("mpt"), 20))
    assert "ALiBi" in str(no_trees(model_of("falcon"), 20))
    assert no_trees(model_of("falcon", alibi=False), 20) is None
    assert "local attention" in str(no_trees(model_of("gpt_neo"), 20))
    everywhere = {"attention_types": [[["global"], 2]]}
    assert no_trees(model_of("gpt_neo", **everywhere), 20) is None
    assert "window shorter than 20" in str(no_trees(model_of("mistral"), 20))


# Adapters.


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})


def learned(kind: str) -> Any:
    import peft

    if kind == "PromptTuningConfig":
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    if kind == "PromptEncoderConfig":
        return peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16)
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)


ADAPTERS = {
    "tied head": (True, lambda: lora(target_modules=["v_proj", "lm_head"])),
    "tied embeddings": (True, lambda: lora(target_modules=["embed_tokens", "q_proj"])),
    "own head": (False, lambda: lora(target_modules=["v_proj", "lm_head"])),
    "replicated layers": (False, lambda: lora(layer_replication=[[0, 2], [0, 2]])),
    "bias": (False, lambda: lora(lora_bias=True)),
    "DoRA": (True, lambda: lora(use_dora=True, target_modules=["down_proj", "lm_head"])),
    "prompt tuning": (False, lambda: learned("PromptTuningConfig")),
    "p-tuning": (False, lambda: learned("PromptEncoderConfig")),
    "prefix tuning": (False, lambda: learned("PrefixTuningConfig")),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {
        tied: save_llama(place / str(tied), tie_word_embeddings=tied, initializer_range=0.2) for tied in (True, False)
    }


def saved_adapter(base: Path, folder: Path, config: Any) -> Path:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    randomize_lora(model)
    for name, parameter in model.named_parameters():
        if "prompt_encoder" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def judged(base: Path, adapter: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """The predictor, its scores, and those of PEFT's own forward pass over each text alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    asking = adapter / "prompt.yaml"
    asking.write_text(yaml.safe_dump({"template": PROMPT["template"], "verbalizers": ANSWERS, "max_length": 100}))
    predictor = load_given(Given(str(base), str(adapter), asking, bf16=False))
    rows = generate("validation", 14, 3)
    examples = [Example(str(i), (row["premise"], row["hypothesis"]), 0) for i, row in enumerate(rows)]
    got = predictor.label_scores(examples)
    prompt = predictor.task.prompt
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    return predictor, got, plainly(theirs, [prompt.ids(one) for one in examples], prompt.answer_ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_judged_as_peft_runs_it(name: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    tied, config = ADAPTERS[name]
    predictor, got, want = judged(bases[tied], saved_adapter(bases[tied], tmp_path / "adapter", config()))
    np.testing.assert_allclose(got, want, atol=2e-4)
    layers = {path for path, module in predictor.model.named_modules() if getattr(module, "merged", False)}
    assert ("lm_head" in " ".join(layers)) is (name == "own head")
    assert bool(layers) is (name in {"tied head", "own head", "DoRA", "tied embeddings"})


def test_what_differs_when_folded_is_taken_out_again(
    bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor that is shared in a way nobody foresaw."""
    caplog.set_level("INFO", "debias")
    monkeypatch.setattr("debias.adapters.loading.shared_tensors", lambda model: frozenset())
    adapter = saved_adapter(bases[True], tmp_path / "adapter", lora(target_modules=["q_proj", "lm_head"]))
    predictor, got, want = judged(bases[True], adapter)
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert not any(getattr(module, "merged", False) for module in predictor.model.modules())
    assert caplog.text.count("the adapter stays beside its base: folded into it, scores differ by") == 1
