"""How a model that no run of ours made is asked: a run's settings or a recipe, or a file of template and answers."""

import string
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from debias.config.data import Strict
from debias.config.reading import load_config, parse, read_yaml
from debias.config.run import RunConfig

LONGEST = 512  # tokens, where neither prompt file nor model says


class PromptFile(Strict):
    """A short `--prompt` file: the text fields are those of the template, the labels those that have an answer."""

    template: str = Field(min_length=1)
    verbalizers: dict[str, str] = Field(min_length=2)
    chat: bool = False
    max_length: int | None = Field(None, ge=4)


@dataclass(frozen=True)
class Shots:
    """Examples in context: how many are shown, which `seed` draws them, from which file of rows (None: the run's)."""

    number: int
    seed: int = 0
    source: str | None = None


def is_short(path: Path) -> bool:
    """Whether a file has a template and answers of its own, and is no run's."""
    return bool({"template", "verbalizers"} & set(read_yaml(path)))


def asked_as(path: Path, model: str) -> RunConfig:
    """The settings under which `model` is asked as a short file says. InputError for what is wrong in it."""
    file = parse(PromptFile, read_yaml(path), str(path))
    fields = [name for _, name, _, _ in string.Formatter().parse(file.template) if name]
    data = {"train": "generated", "text_fields": list(dict.fromkeys(fields)), "labels": list(file.verbalizers)}
    prompt = file.model_dump(include={"template", "verbalizers", "chat"})
    values = {"model": model, "head": "causal_lm", "prompt": prompt, "data": data, "output_dir": "none"}
    return parse(RunConfig, {**values, "max_length": file.max_length or LONGEST}, str(path))


def how_asked(path: Path, model: str) -> RunConfig:
    """The same of either kind of file; a run's own model is replaced."""
    return asked_as(path, model) if is_short(path) else load_config(path).model_copy(update={"model": model})
