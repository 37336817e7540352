"""Suites as tasks of lm-evaluation-harness: a YAML file and our own examples as JSON lines for each.

Written for the format of lm-eval 0.4.13 (`lm_eval/config/task.py`); nothing here imports it. `samples` brings
the harness's logged samples back.
"""

import hashlib
import json
import logging
import re
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, TemplateError

from debias.config.run import PromptConfig, RunConfig
from debias.data import Example
from debias.errors import InputError
from debias.runs.whole import write_or_say
from debias_eval.harness.asked import Asked
from debias_eval.harness.tokens import check_tokens
from debias_eval.judging.predict import in_model_order, suite_labels
from debias_eval.reading.collection import choose
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.suite import Suite

log = logging.getLogger(__name__)
LOADER = Path(__file__).parent / "templates" / "debias_tasks.py"
TAG = "debias"
DATE = re.compile(r"\d{1,2} [A-Z][a-z]{2,8} \d{4}|[A-Z][a-z]{2,8} \d{1,2}, \d{4}|\d{4}-\d\d-\d\d")
ORIGIN, TARGET = "debias", "debias_target"  # columns beside the texts


@dataclass(frozen=True)
class Origin:
    """What each exported row says of where it is from; `label` is the suite's, `labels` and `answers` the model's.

    `rows` examples were exported, drawn with `limit` and `seed`. `chat`: the harness must apply a chat template;
    `prompt_sha256` is of the prompt before it, `chat_sha256` of the prompt in it (empty: no tokenizer was at hand).
    `weights`: the digest of what was trained, where that lay in a folder here.
    """

    suite: str
    version: int
    text_fields: tuple[str, ...]
    labels: tuple[str, ...]
    answers: tuple[str, ...]
    rows: int
    limit: int | None
    seed: int
    chat: bool
    id: str = ""
    label: str = ""
    group: str | None = None
    cluster: str | None = None
    prompt_sha256: str = ""
    chat_sha256: str = ""
    weights: str | None = None

    @property
    def export(self) -> "Origin":
        """What all rows of one task have in common."""
        return replace(self, id="", label="", group=None, cluster=None, prompt_sha256="", chat_sha256="")


@dataclass(frozen=True)
class Task:
    """A suite as the harness reads it: the YAML's settings, the rows, and the prompt and example of each row.

    The examples have their texts in the model's order.
    """

    suite: Suite
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    prompts: list[str]
    examples: list[Example]


@dataclass(frozen=True)
class Exported:
    """The tasks that were written, and for suites of a collection that were left out the reason why.

    `files`: those of suites that are not built in.
    """

    folder: Path
    tasks: tuple[str, ...]
    left_out: dict[str, str]
    files: tuple[str, ...] = ()


def export(
    names: Sequence[str],
    config: RunConfig,
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    compare_tokens: bool = True,
    adapter: str | None = None,
    tokenizer: str | None = None,
    weights: str | None = None,
) -> Exported:
    """Write `debias_NAME.yaml` and `.jsonl` into `out` for suites and collections, and the loader that tasks share.

    `limit` exports a random subset drawn with `seed`, the one that `debias eval --limit` judges. InputError in one line
    for a suite that cannot become a task: labels or fields that the model lacks, a prompt that the harness misreads;
    a collection leaves such a suite out. `compare_tokens` loads the tokenizer (`tokenizer`, else the adapter's own,
    else the model's) and sees to it that the harness scores the tokens that debias scores. `weights`: the digest of
    what is to be judged, by which samples of other weights are known.
    """
    tasks: dict[str, Task] = {}
    left_out: dict[str, str] = {}
    for one in choose(names):
        try:
            tasks[one.suite.name] = task_of(one.suite, config, limit=limit, seed=seed)
        except InputError as error:
            if one.by_name:
                raise
            left_out[one.suite.name] = str(error)
    if not tasks:
        raise InputError(f"no suite can be exported; {next(iter(left_out.values()))}")
    sent = None
    if adapter is not None:
        from debias.adapters.loading import check_start

        check_start(adapter)
    if compare_tokens:
        sent = check_tokens(config, [prompt for task in tasks.values() for prompt in task.prompts], adapter, tokenizer)
    in_chat = sent if _prompt_of(config).chat else None
    write([_stamped(task, weights, in_chat) for task in tasks.values()], out)
    suites = [task.suite for task in tasks.values()]
    files = tuple(str(suite.file) for suite in suites if suite.file is not None)
    return Exported(out, tuple(map(task_name, suites)), left_out, files)


def _stamped(task: Task, weights: str | None, in_chat: Callable[[str], str] | None) -> Task:
    """The task whose rows say what is to be judged, and what the harness is to send."""
    stamps = ({"chat_sha256": chat_sha256(in_chat(prompt)) if in_chat else ""} for prompt in task.prompts)
    rows = [
        {**row, ORIGIN: {**row[ORIGIN], **stamp, "weights": weights}}
        for row, stamp in zip(task.rows, stamps, strict=True)
    ]
    return replace(task, rows=rows)


def write(tasks: Sequence[Task], out: Path) -> None:
    """The tasks' files, each whole or not at all, and the loader they share."""
    for task in tasks:
        name = task_name(task.suite)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in task.rows)
        write_or_say(out / f"{name}.jsonl", _utf8(lines, task.suite))
        write_or_say(out / f"{name}.yaml", _yaml(task.settings).encode())
    write_or_say(out / LOADER.name, LOADER.read_bytes())


def command_line(exported: Exported, asked: Asked) -> str:
    """The call of `lm_eval` that judges the model on what was exported, and the one that brings it back.

    The harness hands `load_in_4bit` on to transformers, which takes it no longer: a model that was trained in 4 bits is
    judged there in 16, with a notice.
    """
    chat = " --apply_chat_template" if _prompt_of(asked.config).chat else ""
    logged, run = exported.folder / "logged", asked.run or exported.folder / "run"
    call = ["lm_eval", "--model", "hf", "--model_args", _model_args(asked)]
    call += ["--include_path", str(exported.folder), "--tasks", ",".join(exported.tasks)]
    call += ["--batch_size", "16", "--log_samples", "--output_path", str(logged)]
    back = ["debias", "import-harness", str(logged), "-o", str(run)]
    back += [word for file in exported.files for word in ("--suite", file)]
    return f"{shlex.join(call)}{chat}\n{shlex.join(back)}"


def _model_args(asked: Asked) -> str:
    """`key=value,...`; as JSON, which the harness reads too, where a value has a comma or an equals sign in it."""
    from debias.adapters.words import tokenizer_source
    from debias.models.source import resolve_model

    config = asked.config
    if config.load_in_4bit:
        log.warning("lm_eval cannot load a model in 4 bits with this transformers: it judges the base in bfloat16")
    base = resolve_model(config.model)
    settings = {"pretrained": str(asked.whole) if asked.whole else base.path}
    settings["dtype"] = "bfloat16" if config.bf16 or config.load_in_4bit else "float32"
    if asked.adapter:
        settings["peft"] = resolve_model(asked.adapter).path
    words = tokenizer_source(base, asked.adapter, asked.tokenizer)
    if words.path != base.path:
        settings["tokenizer"] = words.path
    if any(set(value) & set(",=") for value in settings.values()):
        return json.dumps(settings)
    return ",".join(f"{key}={value}" for key, value in settings.items())


def task_name(suite: Suite) -> str:
    """What the harness calls the suite."""
    return f"debias_{suite.name}"


def task_of(suite: Suite, config: RunConfig, *, limit: int | None = None, seed: int = 0) -> Task:
    """The suite as a task that asks as `config` does; InputError where the two do not fit."""
    if suite.task == "vision":
        raise InputError(f"suite {suite.name}: shows pictures, and the harness's multiple choice reads text")
    prompt, labels, fields = _prompt_of(config), config.data.labels, config.data.text_fields
    suite_label_M = suite_labels(suite, labels).tolist()
    # The harness takes the form of the first row's target for that of all: a list for each, or a number for each.
    several = len(set(suite_label_M)) < len(labels)
    examples = suite_examples(suite, limit, seed)
    template = jinja_template(prompt.template, dict(zip(fields, column_names(fields), strict=True)))
    render = environment().from_string(template).render
    answers = tuple(prompt.verbalizers[label] for label in labels)
    origin = Origin(
        suite.name, suite.version, fields, labels, answers, len(examples), limit=limit, seed=seed, chat=prompt.chat
    )
    rows, prompts = [], []
    in_order = in_model_order(examples, suite.text_fields, fields, suite.name)
    for example, ordered in zip(examples, in_order, strict=True):
        texts = dict(zip(column_names(fields), ordered.texts, strict=True))
        prompts.append(render(**texts))
        _check_prompt(prompts[-1], prompt, fields, ordered, suite)
        right = [i for i, label in enumerate(suite_label_M) if label == example.label]
        placed = replace(
            origin,
            id=example.id,
            label=suite.labels[example.label],
            group=example.group,
            cluster=example.cluster,
            prompt_sha256=sha256(prompts[-1]),
        )
        rows.append({**texts, TARGET: right if several else right[0], ORIGIN: asdict(placed)})
    return Task(suite, _settings(suite, template, origin), rows, prompts, in_order)


def _prompt_of(config: RunConfig) -> PromptConfig:
    assert config.prompt is not None  # a RunConfig with a causal head has one, and no other is asked
    return config.prompt


def _settings(suite: Suite, template: str, origin: Origin) -> dict[str, Any]:
    return {
        "task": task_name(suite),
        "tag": TAG,
        "custom_dataset": _Function(f"{LOADER.stem}.load"),
        "dataset_kwargs": {"jsonl": f"{task_name(suite)}.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": template,
        "doc_to_choice": list(origin.answers),  # each with its own leading space
        "target_delimiter": "",
        "doc_to_target": TARGET,
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": suite.version, "description": suite.description, "licence": suite.licence},
    }


def chat_sha256(text: str) -> str:
    """Of a prompt in its chat, on whatever day: some templates say which day it is."""
    return sha256(DATE.sub("DATE", text))


def sha256(text: str) -> str:
    """Hexadecimal digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def column_names(fields: Sequence[str]) -> list[str]:
    """A column for each text field: its own name where Jinja can read that, else `text_1`, `text_2`, ..."""
    spare = (name for i in range(1, 2 * len(fields) + 1) if (name := f"text_{i}") not in fields)
    return [name if _is_variable(name) else next(spare) for name in fields]


def _is_variable(name: str) -> bool:
    if name in (ORIGIN, TARGET):
        return False
    try:
        return environment().from_string("{{" + name + "}}").render(**{name: "as it is"}) == "as it is"
    except (TemplateError, TypeError):  # no name, or one of Jinja's own: `sentence-1`, `if`, `self`
        return False


def jinja_template(template: str, columns: Mapping[str, str]) -> str:
    """A prompt template with `{field}` in Python's format as a Jinja template over `columns`, character for character.

    Jinja would read `{{`, `{%` and `{#` of the template itself as its own, and turn carriage returns into newlines.
    """
    pieces = []
    for literal, field, _, _ in string.Formatter().parse(template):
        for character in literal:
            pieces.append({"{": "{{ '{' }}", "\r": r"{{ '\r' }}"}.get(character, character))
        if field is not None:
            pieces.append("{{" + columns[field] + "}}")
    return "".join(pieces)


def environment() -> Environment:
    """Jinja as `lm_eval.utils` sets it up; the result is a model's input, so nothing in it is escaped."""
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True)


def _check_prompt(text: str, prompt: PromptConfig, fields: Sequence[str], example: Example, suite: Suite) -> None:
    expected = prompt.template.format(**dict(zip(fields, example.texts, strict=True)))
    if text != expected:
        raise ValueError(f"the harness would read {text!r}, debias reads {expected!r}")
    if text.isdigit():
        raise InputError(
            f"suite {suite.name}: {example.id}: the prompt is {text!r}, and the harness takes digits alone for a "
            "number; add a word to prompt.template"
        )


class _Function(str):
    """A function's name, written with the tag that makes the harness import it."""


class _Dumper(yaml.SafeDumper):
    """Safe YAML and `!function`."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _utf8(text: str, suite: Suite) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start : error.end]
        raise InputError(f"suite {suite.name}: its texts hold {bad!r}, half of a character; repair the data") from None
