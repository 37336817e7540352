"""The lines of a card, run as they stand: plain transformers and PEFT say what the run says."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import llama
from tiny_runs import PROMPT, config_for, save_bert, save_llama
from tiny_tokenizers import KINDS

from debias.building.model import build_model
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data import Example, generate
from debias.data.prompt import Prompt
from debias.errors import InputError
from debias.inference.any_model import Given, given_config, load_given
from debias.inference.loading import load_run
from debias.models.load import load_tokenizer
from debias.readouts import Answers
from debias.runs.folder import save_trained
from debias_eval.reporting.card import write_cards
from debias_eval.reporting.using import use
from debias_eval.results.runs import read_run

CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
RUNS: dict[str, dict[str, Any]] = {
    "encoder": {},
    "decoder": {"of_llama": True},
    "causal": {"of_llama": True, "head": "causal_lm", "prompt": PROMPT},
    "chat": {"of_llama": True, "head": "causal_lm", "prompt": {**PROMPT, "chat": True}},
}
TEXTS = [(row["premise"], row["hypothesis"]) for row in generate("test", 12, 5)]


def finished(name: str, place: Path) -> Path:
    """The folder of a finished run, its adapter off its start, with a card."""
    changes = dict(RUNS[name])
    base = (save_llama if changes.pop("of_llama", False) else save_bert)(place / "base")
    if name == "chat":
        settings = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    config = config_for(base, place / "run", **changes)
    model = build_model(config)
    torch.manual_seed(4)
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2 if "lora_" in path else 0.5)
    save_trained(model, load_tokenizer(str(base), config.head), place / "run")
    (place / "run" / "config.yaml").write_text(dump_config(config))
    ((card, _),) = write_cards([place / "run"])
    assert card == place / "run" / "adapter" / "README.md"
    return place / "run"


def lines_of(run: Path) -> str:
    (code,) = re.findall(r"## Use\n\n```python\n(.*?)```", (run / "adapter" / "README.md").read_text(), re.DOTALL)
    return code


def answered(scope: dict[str, Any]) -> list[float]:
    """The scores behind what was printed, by the lines' own names."""
    if "answers" in scope:
        return [scope["log_p"](answer) for answer in scope["answers"].values()]
    with torch.no_grad():
        logits_C: list[float] = scope["model"](**scope["inputs"]).logits[0].log_softmax(-1).tolist()
    return logits_C


@pytest.mark.parametrize("name", RUNS)
def test_the_lines_of_a_card_say_what_the_run_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(name, tmp_path)
    code = lines_of(run)
    assert "debias" not in code
    monkeypatch.chdir(run)
    predictor = load_run(run)
    scores_NC = predictor.label_scores([Example(str(i), texts, 0) for i, texts in enumerate(TEXTS)])
    wanted = [predictor.labels[i] for i in scores_NC.argmax(axis=1)]
    loading, last = code.split("tokenizer = ", 1)
    scope: dict[str, Any] = {}
    said_C: list[list[float]] = []
    exec(compile(loading, "card", "exec"), scope)  # once; what comes after is run for each pair of texts
    asking = "tokenizer = " + last
    for premise, hypothesis in TEXTS:
        capsys.readouterr()
        asked = asking.replace("'(premise)'", repr(premise)).replace("'(hypothesis)'", repr(hypothesis))
        exec(compile(asked, "card", "exec"), scope)
        assert capsys.readouterr().out.strip() == wanted.pop(0)
        said_C.append(answered(scope))
    assert torch.allclose(torch.tensor(said_C).double(), torch.from_numpy(scores_NC), atol=1e-4)
    assert scores_NC.std(axis=0).min() > 1e-3  # what is said depends on the texts


TEMPLATES = (
    "{premise} Is it so? {hypothesis} Answer:",
    "{premise} Is it so? {hypothesis} Answer: ",
    "{hypothesis}\n{premise}",
    "'''{premise}\"\"\" \\n {{x}} {hypothesis}\r\n\tSo:",
)
SAID = ([" right", " not so", " wrong"], ["right", "not so", "wrong"], [" a\u00e9\u65e5", " 'quote\"`", " c\nb"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_asks_for_the_tokens_that_its_run_asks_for(kind: str, tmp_path: Path) -> None:
    """Tokenizers that end every text, templates that end with a space, answers that begin without one."""
    tokenizer, asked = KINDS[kind](), []
    model = llama(vocab_size=len(tokenizer), max_position_embeddings=256).eval()
    (tmp_path / "adapter").mkdir()
    for template, said, chat in itertools.product(TEMPLATES, SAID, (False, True)):
        try:
            prompt = Prompt(tokenizer, template, said, ("premise", "hypothesis"), chat=chat)
        except InputError:  # SentencePiece, which would put a space between
            assert kind == "sentence piece"
            continue
        ids = prompt.ids(Example("1", ("(premise)", "(hypothesis)"), 0))
        with torch.no_grad():
            want_1C = Answers(prompt.answer_ids).label_scores(model, {"input_ids": torch.tensor([ids])})
        answers = dict(zip(("e", "n", "c"), said, strict=True))
        told = {"template": template, "verbalizers": answers, "chat": chat}
        settings = {
            "model": "base",
            "head": "causal_lm",
            "prompt": told,
            "data": {"train": "a.csv", "labels": ["e", "n", "c"]},
        }
        config = RunConfig.model_validate({**settings, "output_dir": str(tmp_path)})
        (tmp_path / "config.yaml").write_text(dump_config(config))
        (lines,) = re.findall(r"```+python\n(.*?)\n```", use(read_run(tmp_path)), re.DOTALL)
        scope = {"model": model, "tokenizer": tokenizer, "torch": torch, "print": asked.append}
        exec(compile(lines[lines.index("answers = ") :], "card", "exec"), scope)
        got_C = torch.tensor([scope["log_p"](answer) for answer in said])
        torch.testing.assert_close(got_C, want_1C[0], rtol=0, atol=1e-4, msg=f"{template!r} {said} {chat}")
        assert asked[-1] == "enc"[int(want_1C.argmax())]
    assert len(asked) >= (8 if kind == "sentence piece" else 24)


@pytest.mark.parametrize("name", ["decoder", "causal"])
def test_the_names_of_labels_lie_beside_a_classifiers_adapter(name: str, tmp_path: Path) -> None:
    run = finished(name, tmp_path)
    beside = run / "adapter" / "labels.json"
    if name == "causal":  # whose answers stand in its prompt
        assert not beside.exists()
        return
    names = ["entailment", "neutral", "contradiction"]
    told = {
        "id2label": {str(i): one for i, one in enumerate(names)},
        "label2id": {one: i for i, one in enumerate(names)},
    }
    assert json.loads(beside.read_text()) == told
    away = (run / "adapter").rename(tmp_path / "away")  # far from its run's settings
    given = Given(model=str(tmp_path / "base"), adapter=str(away))
    assert given_config(given).data.labels == tuple(names)
    assert load_given(given).labels == tuple(names)
    (away / "labels.json").write_text('{"id2label": ["a"]}')
    with pytest.raises(InputError, match=r"labels\.json: cannot be read: AttributeError"):
        given_config(given)


def test_what_transformers_cannot_name_is_loaded_by_this_project(tmp_path: Path) -> None:
    run = finished("encoder", tmp_path)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "model": "package:minilm"}))
    write_cards([run])
    line = "base = load_model('package:minilm', 'classification', ['entailment', 'neutral', 'contradiction'])\n"
    assert line in lines_of(run)
    (run / "config.yaml").write_text(
        yaml.safe_dump({**settings, "model": "package:smollm2", "head": "causal_lm", "prompt": PROMPT})
    )
    write_cards([run])
    assert "base = load_model('package:smollm2', 'causal_lm', [" in lines_of(run)
    compile(lines_of(run), "card", "exec")
