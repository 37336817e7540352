"""Whom the harness is to ask, and how: a run, what `debias eval --model` judged, or a model that is named."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.config.places import find_recipe
from debias.config.prompt_file import is_short
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.data_files import say_changed_base
from debias.runs.digests import weights_digest
from debias.runs.names import ADAPTER, ASKED, CONFIG, MODEL, SUMMARY


@dataclass(frozen=True)
class Asked:
    """A causal model and its prompt, from any of the places that name one.

    `adapter`: by folder or hub id. `whole`: the folder of weights that were trained whole, in the model's place.
    `tokenizer`: another than the adapter's own or the model's. `run`: the folder of the run that results belong to.
    """

    config: RunConfig
    adapter: str | None = None
    whole: Path | None = None
    tokenizer: str | None = None
    run: Path | None = None

    @property
    def weights(self) -> str | None:
        """The digest of what was trained; None where that lies in no folder here."""
        trained = self.adapter or self.whole
        return weights_digest(Path(trained)) if trained and Path(trained).is_dir() else None


def asked_of(prompt: Path | None, model: str | None = None, adapter: str | None = None) -> Asked:
    """Whom to ask by `--prompt`, `--model` and `--adapter`; InputError where they name no causal model.

    `prompt`: the folder of a run, a folder of `debias eval --model -o`, a recipe or a run's settings, or a file of
    template and verbalizers, which needs a model or an adapter. An adapter that a run of ours made brings its prompt.
    """
    if prompt is not None and prompt.is_dir() and not (prompt / CONFIG).is_file() and (prompt / SUMMARY).is_file():
        return _judged(prompt, model, adapter)
    if model is None and adapter is None:
        return _of_a_run(prompt)
    return _named({"model": model, "adapter": adapter, "prompt": _settings(prompt)}, _shown(prompt, adapter))


def _of_a_run(prompt: Path | None) -> Asked:
    if prompt is None:
        raise InputError(
            "--prompt is missing: a run's folder, a recipe, or with --model a file of template and answers"
        )
    config = read_prompt(prompt)
    adapter, whole = prompt / ADAPTER, prompt / MODEL
    if adapter.is_dir():
        say_changed_base(prompt, config)
    return Asked(
        config,
        str(adapter) if adapter.is_dir() else None,
        whole if whole.is_dir() else None,
        run=prompt if prompt.is_dir() else None,
    )


def read_prompt(path: Path) -> RunConfig:
    """The settings of a causal model from a run's folder or YAML file; InputError for a classification head."""
    path = Path(path)
    file = path / CONFIG if path.is_dir() else find_recipe(path)
    if file.is_file() and is_short(file):
        raise InputError(f"{path}: a file of template and verbalizers names no model; give --model or --adapter")
    return _causal(load_config(file), str(path))


def _judged(folder: Path, model: str | None, adapter: str | None) -> Asked:
    """What `debias eval --model -o FOLDER` was given; its results are another judge's, and go elsewhere."""
    if model is not None or adapter is not None:
        raise InputError(f"--model, --adapter: {folder} says which model it judged; leave them out, or give its prompt")
    try:
        options = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))[ASKED]
        options = {**options}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{folder}: neither a run nor a folder of `debias eval --model ... -o FOLDER`") from None
    if "endpoint" in options:
        raise InputError(f"{folder}: was judged through a server; give --model and --prompt of weights to be loaded")
    if "shots" in options:
        raise InputError(
            f"{folder}: was judged with examples in context, which are not exported; give --model, --prompt"
        )
    return _named(options, str(folder))


def _named(options: dict[str, Any], shown: str) -> Asked:
    from debias.inference.any_model import Given, given_config

    kept = ("model", "adapter", "prompt", "bf16", "load_in_4bit", "tokenizer")
    told = {key: options[key] for key in kept if options.get(key) is not None}
    if "prompt" in told:
        told["prompt"] = Path(told["prompt"])
    if options.get("labels"):
        told["labels"] = tuple(str(options["labels"]).split(","))
    given = Given(**told)
    return Asked(_causal(given_config(given), shown), given.adapter, tokenizer=given.tokenizer)


def _causal(config: RunConfig, shown: str) -> RunConfig:
    if config.head != "causal_lm":
        raise InputError(
            f"{shown}: head is {config.head!r}; the harness scores answers of causal models, so it takes head "
            "'causal_lm' with prompt.template and prompt.verbalizers"
        )
    return config


def _settings(prompt: Path | None) -> Path | None:
    return prompt / CONFIG if prompt is not None and prompt.is_dir() else prompt


def _shown(prompt: Path | None, adapter: str | None) -> str:
    return str(prompt if prompt is not None else adapter or "--model")
