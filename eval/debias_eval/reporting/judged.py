"""The parts of a card that say whose results these are, where no run of ours made the model: it was only judged."""

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from debias.runs.names import ASKED
from debias_eval.reporting.reproduce import plain
from debias_eval.reporting.tables import markdown_text
from debias_eval.reporting.using import use
from debias_eval.results.runs import Run

# What `judged` may say beside model, adapter, labels and prompt, and what a card calls it.
FACTS = {"normalize": "Answers normalized", "calibrate": "Answers calibrated", "max_length": "Longest text, in tokens"}
TOKENIZER = "tokenizer_config.json"


def served(run: Run) -> bool:
    """Whether the model was asked through a server."""
    return "served" in run.judged


def front_values(run: Run) -> dict[str, Any]:
    """For the hub's front matter: what was judged, and that it was."""
    told = run.judged
    library = {} if served(run) else {"library_name": "peft" if told.get("adapter") else "transformers"}
    return {"base_model": str(told.get("model")), **library, "tags": ["debias", "evaluation"]}


def opening(run: Run) -> str:
    """What was judged, by whom, and that nothing was trained."""
    told = run.judged
    model = markdown_text(str(told.get("model")))
    adapter = f" with the adapter {markdown_text(str(told['adapter']))}" if told.get("adapter") else ""
    server = ", which a completions server answered for" if served(run) else ""
    return (
        f"# {markdown_text(run.name)}\n\nResults of {model}{adapter}{server}, judged with `debias eval`. "
        "Nothing was trained for it, and this folder holds no weights.\n"
    )


def facts(run: Run) -> str:
    """How it was asked."""
    told = run.judged
    prompt = told.get("prompt")
    found = {
        "Model": told.get("model"),
        "Adapter": told.get("adapter"),
        "Tokenizer": told.get("tokenizer"),
        "Labels": told.get("labels"),
        **_prompt_facts(prompt if isinstance(prompt, Mapping) else {}),
        "Examples in context": _shots(told.get("shots")),
        **{name: told.get(key) for key, name in FACTS.items() if told.get(key) != "none"},
        "Precision": _precision(run),
    }
    lines = "\n".join(f"- {name}: {markdown_text(plain(value))}" for name, value in found.items() if value)
    return f"## What was judged\n\n{lines}\n"


def _prompt_facts(prompt: Mapping[str, Any]) -> dict[str, str]:
    if not prompt:
        return {}
    answers = prompt.get("verbalizers")
    pairs = answers.items() if isinstance(answers, Mapping) else ()
    return {
        "Prompt": repr(str(prompt.get("template"))) + (" in the model's chat template" if prompt.get("chat") else ""),
        "Answers": ", ".join(f"{label}: {answer!r}" for label, answer in pairs),
    }


def _shots(told: Any) -> str:
    """How many rows of which data stood before every prompt, and which seed drew them."""
    if not isinstance(told, Mapping):
        return ""
    return f"{told.get('number')} of {told.get('source')}, labels balanced, seed {told.get('seed')}"


def _precision(run: Run) -> str:
    """Of the weights that were asked; a server keeps its own to itself."""
    if served(run):
        return "the server's"
    base = ", its base in 4 bits" if run.judged.get("load_in_4bit") else ""
    return f"{'bf16' if run.judged.get('bf16') else 'float32'}{base}"


def limit(run: Run) -> str:
    """What nobody here can know of it."""
    texts = "the texts of these suites may have been in its training data"
    return f"This folder does not know how the model was trained: {texts}, and another seed might answer otherwise."


def how_to_use(run: Run) -> str:
    """The lines that load the adapter and ask it; nothing for a whole model or one behind a server."""
    told, asked = run.judged, run.info.get(ASKED)
    asked = asked if isinstance(asked, Mapping) else {}
    adapter = asked.get("adapter") or told.get("adapter")
    if served(run) or not adapter or told.get("shots"):  # lines that ask without its examples would ask otherwise
        return ""
    prompt = told.get("prompt")
    template = str(prompt.get("template")) if isinstance(prompt, Mapping) else ""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    model = str(asked.get("model") or told.get("model"))
    config = {
        "model": model,
        "head": "causal_lm" if prompt else "classification",
        "prompt": prompt,
        "data": {"labels": told.get("labels"), "text_fields": list(dict.fromkeys(fields))},
    }
    own = not Path(str(adapter)).is_dir() or (Path(str(adapter)) / TOKENIZER).is_file()
    words = told.get("tokenizer") or (None if own else model)
    return use(dataclasses.replace(run, config=config), str(adapter), words)
