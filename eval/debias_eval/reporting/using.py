"""How to use what a run trained, in lines that run: plain transformers and PEFT, without a line of this project."""

import re
from collections.abc import Mapping
from typing import Any

from debias.runs.names import ADAPTER
from debias_eval.reporting.tables import one_line
from debias_eval.results.runs import Run

PLAIN = ("package:", "vision:")  # how models begin whose names transformers does not know
CLASSIFY = """
inputs = tokenizer(*{texts!r}, truncation=True, max_length={length}, return_tensors='pt')  # {fields}
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])"""
# As a run's prompts are made: nothing stands between a text and its answer, neither what the tokenizer puts behind a
# text nor a token that has both in it.
ANSWER = """
answers = {answers!r}
template = {template!r}


def prompt(texts):
    return {prompt}


def words(text):
    return tokenizer(text, add_special_tokens=False).input_ids


some, others = prompt({names!r}), prompt({others!r})
{before}


def behind(answer):  # its tokens in a text that goes on; where they are not to be told from the text's, those alone
    ids = [words(text + answer)[len(words(text)) :] for text in (some, others)]
    apart = all(words(text + answer)[: len(words(text))] == words(text) for text in (some, others))
    return ids[0] if apart and ids[0] == ids[1] else words(answer)


def log_p(answer):
    asked, ids = before + words(prompt({texts!r})), behind(answer)
    logits = model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor([ids]).T).sum().item()


print(max(answers, key=lambda label: log_p(answers[label])))"""
BEFORE = """whole, alone = tokenizer(some).input_ids, words(some)
before = whole[: next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)]  # of every text"""
CHAT = """tokenizer.apply_chat_template(
        [{'role': 'user', 'content': template.format_map(texts)}], add_generation_prompt=True, tokenize=False
    )"""


def use(run: Run, adapter: str | None = None, words: str | None = None) -> str:
    """The section of a card that loads the adapter and asks it; empty for a run without one.

    `adapter`: where it is, if not in the run's folder; `words`: whose tokenizer reads the text, if not its own.
    """
    if adapter is None and not (run.path / ADAPTER).is_dir():
        return ""
    head = str(run.config.get("head", "classification"))
    where = f"{ADAPTER!r}  # this folder, or its name on the hub" if adapter is None else repr(adapter)
    lines = [*_imports(run, head), "", f"adapter = {where}", *_load(run, head)]
    if head != "image_classification":
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if words is None else repr(words)})")
        lines += _ask(run, head)
    return f"## Use\n\n{fenced(chr(10).join(lines), 'python')}\n"


def _is_plain(run: Run) -> bool:
    return not str(run.config.get("model", "BASE")).startswith(PLAIN)


def _imports(run: Run, head: str) -> list[str]:
    classes = [] if head == "image_classification" else ["AutoTokenizer"]
    if _is_plain(run):
        classes = sorted([*classes, _class(head)])
    first = ["import torch"] if head == "causal_lm" else []
    lines = [
        *first,
        "from peft import PeftModel",
        *([f"from transformers import {', '.join(classes)}"] if classes else []),
    ]
    return lines if _is_plain(run) else [*lines, "", "from debias.models.load import load_model"]


def _class(head: str) -> str:
    kinds = {"causal_lm": "AutoModelForCausalLM", "image_classification": "AutoModelForImageClassification"}
    return kinds.get(head, "AutoModelForSequenceClassification")


def _load(run: Run, head: str) -> list[str]:
    """The base, with as many outputs as the adapter's head and their names, and the adapter on it."""
    base, labels = str(run.config.get("model", "BASE")), _labels(run)
    on_it = "model = PeftModel.from_pretrained(base, adapter).eval()"
    if not _is_plain(run):
        return [f"base = load_model({base!r}, {head!r}, {labels!r})", on_it]
    if head == "causal_lm" or not labels:
        return [f"base = {_class(head)}.from_pretrained({base!r})", on_it]
    names = dict(enumerate(labels))
    ids = "label2id={name: i for i, name in labels.items()}"
    return [f"labels = {names!r}", f"base = {_class(head)}.from_pretrained({base!r}, id2label=labels, {ids})", on_it]


def _ask(run: Run, head: str) -> list[str]:
    """A question to the model, where the config says how it is asked."""
    fields, prompt = _strings(_data(run).get("text_fields")), run.config.get("prompt")
    if head != "causal_lm":
        told: dict[str, Any] = {
            "texts": [f"({field})" for field in fields],
            "fields": f"the {' and the '.join(fields)}",
        }
        padding = "base.config.pad_token_id = tokenizer.pad_token_id  # by which a batch's texts are told from padding"
        length = run.config.get("max_length")
        return (
            [padding, *CLASSIFY.format(**told, length=length if isinstance(length, int) else 128).split("\n")]
            if fields
            else []
        )
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("verbalizers"), Mapping):
        return []
    chat = bool(prompt.get("chat"))
    asked: dict[str, Any] = {
        "answers": dict(prompt["verbalizers"]),
        "template": str(prompt.get("template")),
        "prompt": CHAT if chat else "template.format_map(texts)",
        "before": "before = []  # the chat template writes what stands before a text" if chat else BEFORE,
        "names": {field: field for field in fields},
        "others": dict.fromkeys(fields, "It is so"),
        "texts": {field: f"({field})" for field in fields},
    }
    return ANSWER.format(**asked).split("\n")


def _labels(run: Run) -> list[str]:
    return _strings(_data(run).get("labels"))


def _data(run: Run) -> Mapping[str, Any]:
    data = run.config.get("data")
    return data if isinstance(data, Mapping) else {}


def _strings(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    safe = "\n".join(one_line(line) if not line.isprintable() else line for line in text.rstrip("\n").split("\n"))
    return f"{fence}{language}\n{safe}\n{fence}"
