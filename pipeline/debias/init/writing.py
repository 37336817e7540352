"""The YAML file of a first run: asked for where it must be, commented, checked as `train` checks it, never over one."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from debias.audit.first_rows import Found, allowed_of, artifacts_in
from debias.audit.guessing import Columns, Table, label_of, texts_of
from debias.audit.labels import LabelColumn
from debias.config.reading import parse, yaml_value
from debias.config.run import RunConfig
from debias.data.prompt import check_template
from debias.errors import InputError
from debias.init.guessing import LABEL_FIELD, guess_group, guess_id, labels_in, others, read_table
from debias.init.lengths import length_of
from debias.runs.outputs import check_files

logger = logging.getLogger(__name__)
Ask = Callable[[str, str], str]  # what is asked, and what an empty answer means
HEADS = tuple(head for head in get_args(RunConfig.model_fields["head"].annotation) if head != "image_classification")
MODEL = "package:minilm"


@dataclass(frozen=True)
class Wanted:
    """What was said of the run; None or nothing: to be guessed, or asked for. `layout`: settings beside `source`."""

    data: str | None = None
    model: str | None = None
    head: str | None = None
    text_fields: tuple[str, ...] = ()
    label_field: str | None = None
    group_field: str | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None  # None: what corrects for artifacts, of a classifier; else edge


def write_first(wanted: Wanted, out: Path, ask: Ask | None = None) -> Path:
    """Write the YAML file of a run on somebody's data, with a comment for each choice; returns `out`.

    `ask` is called for what neither is given nor can be told from the rows; without it that is an InputError in one
    line, which names the flag. Nothing that is there is written over.
    """
    check_files({"--out": out})
    if os.path.lexists(out):
        raise InputError(f"--out: {out} is there already and is left as it is; give another file")
    wanted = _asked(wanted, ask)
    assert wanted.data is not None
    table = read_table(wanted.data, wanted.label_field, wanted.layout)
    wanted, known_by = _with_columns(wanted, table, ask), wanted.label_field or LABEL_FIELD
    if wanted.label_field != known_by:  # then the names of classes that were read are another column's
        table = read_table(str(wanted.data), wanted.label_field, wanted.layout)
    text = _text(wanted, table, out)
    parse(RunConfig, yaml_value(text), str(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror or error}") from None
    return out


def _asked(wanted: Wanted, ask: Ask | None) -> Wanted:
    if ask is None:
        for flag in ("data", "model"):
            if getattr(wanted, flag) is None:
                raise InputError(f"--{flag} is missing")
        head = wanted.head or HEADS[0]
    else:
        data = wanted.data or ask("Training data (a .csv, .tsv, .jsonl, .parquet, .xlsx, or a hub id)", "")
        model = wanted.model or ask("Model (a hub id, a folder, package:minilm)", MODEL)
        head = wanted.head or ask(f"Head ({' or '.join(HEADS)})", HEADS[0])
        wanted = replace(wanted, data=data, model=model)
    if head not in HEADS:
        raise InputError(f"--head is {head!r}, not one of {', '.join(HEADS)}")
    return replace(wanted, head=head)


def _with_columns(wanted: Wanted, table: Table, ask: Ask | None) -> Wanted:
    """The columns, as given, else as guessed, else as asked for; InputError for one that is not there."""
    label = wanted.label_field or _guessed(lambda: label_of(table, Columns()), "Column of the label", ask)
    texts = wanted.text_fields or _guessed(
        lambda: ",".join(texts_of(table, Columns(), label)), "Columns of text, with a comma between two", ask
    )
    if isinstance(texts, str):
        texts = tuple(name.strip() for name in texts.split(",") if name.strip())
    group = wanted.group_field or guess_group(table, (label, *texts))
    for flag, names in (
        ("--label-field", [label]),
        ("--text-field", texts),
        ("--group-field", [group] if group else []),
    ):
        if missing := [name for name in names if name not in table.header]:
            raise InputError(f"{flag}: no column {missing[0]!r}; the columns are {', '.join(table.header)}")
    if label in texts:
        raise InputError(f"--text-field: {label!r} is the label; a model that reads it learns nothing")
    if wanted.head == HEADS[0] and len(texts) > 2:
        raise InputError(f"--text-field: a classification head takes one or two texts, got {len(texts)}")
    return replace(wanted, label_field=label, text_fields=texts, group_field=group)


def _guessed(guess: Callable[[], str], question: str, ask: Ask | None) -> str:
    try:
        return guess()
    except InputError as error:
        if ask is None:
            raise
        return ask(f"{error}\n{question}", "")


def _text(wanted: Wanted, table: Table, out: Path) -> str:
    assert wanted.data is not None
    assert wanted.label_field is not None
    column = labels_in(table, wanted.label_field)
    label_map = column.label_map
    labels = tuple(sorted({label_map.get(label, label) for label in column.labels}))
    if len(labels) < 2:
        raise InputError(f"{table.name}: {column.about_twins()[0]}, and there is no other")
    place = _place(wanted.data, out)
    found, where = _found(wanted, table, labels, label_map)
    used = (*wanted.text_fields, wanted.label_field, *([wanted.group_field] if wanted.group_field else []))
    unused = others(table, used)
    length = length_of(table, wanted.text_fields, str(wanted.model), causal=wanted.head == "causal_lm")
    lines = [
        _comment(f"# A first run. debias train {out} begins it; add max_steps=2 to try it."),
        "# Every setting: launch/SETTINGS.md. A setting that is not here has its default.",
        f"model: {_yaml(wanted.model)}",
        f"head: {wanted.head}",
        f"output_dir: {_yaml(f'runs/{out.stem}')}",
        *_method_lines(wanted, found, where, out),
        "",
        "data:",
        f"  train: {_yaml({'source': place, **wanted.layout} if wanted.layout else place)}",
        "  # validation: dev.csv  # rows like these that are not trained on; then eval_strategy: epoch below",
        f"  text_fields: {_yaml(list(wanted.text_fields))}  # columns that the model reads, in this order",
        f"  label_field: {_yaml(wanted.label_field)}",
        *_label_lines(column, labels, _seen(table)),
        f"  id_field: {_yaml(guess_id(table, used))}",
        _group_line(wanted, unused),
        *_swap_lines(found),
        "",
        *(_prompt_lines(wanted.text_fields, labels) if wanted.head == "causal_lm" else []),
        f"max_length: {length.tokens}  # {length.said()}",
        "lora_r: 8",
        "learning_rate: 3e-4",
        "num_train_epochs: 1",
        "per_device_train_batch_size: 32",
        "seed: 0  # a claim needs five: debias sweep",
        "# eval_strategy: epoch",
    ]
    return "\n".join(lines) + "\n"


def _seen(table: Table) -> str:
    return f"{'all' if table.whole else 'the first'} {len(table.rows):,} rows"


def _label_lines(column: LabelColumn, labels: Sequence[str], seen: str) -> list[str]:
    """The labels, and what somebody should know of them; those that are written in several ways are made one."""
    for line in column.about_marks():
        logger.warning("%s", line)
    lines = [_comment(f"  # {line}.") for line in column.about_marks()]
    occurs = "else occurs" if column.unlabelled or column.empty else "occurs"
    lines.append(f"  labels: {_yaml(list(labels))}  # what {occurs} in {seen}")
    if made_one := column.label_map:
        logger.warning("%s: written in several ways, and made one in label_map: %s", column.field, made_one)
        lines.append(f"  label_map: {_yaml(made_one)}  # written in several ways; without this each is its own label")
    return lines


def _found(
    wanted: Wanted, table: Table, labels: Sequence[str], label_map: Mapping[str, str]
) -> tuple[Found | None, str]:
    """The single features that give the label away, and in which rows they were looked for; None where a rule was asked
    for, or the head is no classifier's.
    """
    if wanted.method is not None or wanted.head != HEADS[0]:
        return None, ""
    assert wanted.label_field is not None
    found, searched = artifacts_in(table, wanted.text_fields, wanted.label_field, labels, label_map)
    return found, _seen(table) if searched == len(table.rows) else f"{searched:,} of {_seen(table)}"


def _method_lines(wanted: Wanted, found: Found | None, where: str, out: Path) -> list[str]:
    """The rule that was asked for; or, of a classifier, what leaves artifacts of the data unlearned."""
    if found is None:
        rule = _yaml(wanted.method or "edge")
        return [f"method: {rule}  # debias methods lists them; erm is plain fine-tuning, the baseline"]
    plain = " ".join(["bias_model=null loss=cross_entropy", *(["data.swap=null"] if found.signs else [])])
    return [
        "# The next three leave unlearned what single words give away.",
        "method: erm  # the rule; debias methods lists them",
        *_artifact_lines(found, where, allowed_of(found, wanted.text_fields)),
        "loss: {name: logit_correction, prior: labels}  # leaves them unlearned; without any it is plain fine-tuning",
        _comment(f"# The baseline beside it: {plain} output_dir=runs/{out.stem}_plain"),
    ]


def _artifact_lines(found: Found, where: str, allowed: Sequence[str]) -> list[str]:
    """The bias model `artifacts`, what it finds in the rows that were read, and what of it the task may hang on."""
    told = [f"{one.name} explains {100 * one.explains:.1f} % of the labels" for one in found.features]
    block = f"{{name: artifacts, allowed: {_yaml(list(allowed))}}}" if allowed else "{name: artifacts}"
    lines = [_comment(f"# Found in {where}: {one}.") for one in told]
    if not found.features:
        lines.append(f"# Nothing of the kind was found in {where}.")
    if allowed:
        lines.append("# Take out of `allowed` what a label should not hang on: the rest is left to the task.")
    return [
        *lines,
        f"bias_model: {block}  # words that give the label away by themselves; the log names them",
        "# `relations: [overlap, length, negation, form]` looks at these, too, where a label should not hang on them.",
    ]


def _swap_lines(found: Found | None) -> list[str]:
    """Signs that were found change places with those of other rows: then nothing is left to be corrected for them."""
    if found is None or not found.signs:
        return []
    return [
        "  # Signs that change places with those of other rows; to be removed where a label may hang on them.",
        f"  swap: {{tokens: {_yaml(list(found.signs))}}}",
    ]


def _group_line(wanted: Wanted, unused: Sequence[str]) -> str:
    if wanted.group_field:
        return (
            f"  group_field: {_yaml(wanted.group_field)}  # subpopulations: for group_dro, resampled, bias model groups"
        )
    some = f"; not used: {', '.join(unused)}" if unused else ""
    return _comment(f"  # group_field: a column of subpopulations, if there is one{some}")


def _prompt_lines(fields: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The question put to a causal model, to be put better by who knows the data."""
    asked = "\n".join(f"{field.replace('{', '{{').replace('}', '}}')}: {{{field}}}" for field in fields)
    check_template(asked, fields)
    answers = {label: f" {label}" for label in labels}
    return [
        "prompt:  # how the model is asked: put this in words that fit the data",
        f"  template: {_yaml(f'{asked}{chr(10)}Label:')}",
        f"  verbalizers: {_yaml(answers)}",
        "",
    ]


def _place(data: str, out: Path) -> str:
    """The name of the data as the YAML file finds it: beside it by a short name, elsewhere by the whole one."""
    place = Path(data).expanduser()
    if not os.path.exists(place):  # a pattern, a hub id, or below DEBIAS_DATA
        return data
    whole, folder = Path(os.path.abspath(place)), Path(os.path.abspath(out.parent))
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)


def _yaml(value: Any) -> str:
    """A value on one line, quoted where YAML would read something else."""
    lines = isinstance(value, str) and "\n" in value  # which in double quotes alone stay on one
    style: dict[str, Any] = {"default_style": '"' if lines else None, "default_flow_style": True, "sort_keys": False}
    dumped = yaml.safe_dump([value], allow_unicode=True, width=10**9, **style)
    return dumped.strip()[1:-1]


def _comment(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)
