"""What a suite is: data only, read from YAML, built in or of a user's own."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from debias.config import DataConfig, DataSource, PlantedBias, Strict, parse, read_yaml
from debias.data import Example, load_examples, plant, resolve_path
from debias.data.files import kind_of
from debias.errors import InputError

BUILT_IN = Path(__file__).parent / "suites"


class GroupRule(Strict):
    """How the value of `group_field` becomes a group: the part before `keep_before`, then `/label` with `by_label`."""

    keep_before: str | None = Field(default=None, min_length=1)
    by_label: bool = False


class Gap(Strict):
    """Groups where the shortcut gives the right answer, and groups where it gives a wrong one."""

    aligned: tuple[str, ...] = Field(min_length=1)
    conflicting: tuple[str, ...] = Field(min_length=1)


class Suite(Strict):
    """One test set with its labels, groups and gap; `version` changes whenever a number could.

    `label_map` reads the data's labels, `merge` the model's (neutral -> not_entailment); equal names need neither.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")  # becomes a file name
    version: int = Field(ge=1)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    source: DataSource
    text_fields: tuple[str, ...] = Field(("premise", "hypothesis"), min_length=1)
    label_field: str = "label"
    id_field: str | None = "id"
    labels: tuple[str, ...] = Field(("entailment", "neutral", "contradiction"), min_length=2)
    label_map: dict[str, str] = Field(default_factory=dict)
    merge: dict[str, str] = Field(default_factory=dict)
    group_field: str | None = None
    group_rule: GroupRule = GroupRule()
    planted_bias: PlantedBias | None = None
    gap: Gap | None = None

    @field_validator("source", mode="before")
    @classmethod
    def _short_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_exist(self) -> "Suite":
        for model_label, label in self.merge.items():
            if label not in self.labels:
                raise ValueError(f"merge sends {model_label!r} to {label!r}, not one of labels {list(self.labels)}")
        if self.planted_bias and (self.group_field or self.group_rule != GroupRule()):
            raise ValueError("planted_bias makes the groups itself; remove group_field and group_rule")
        if self.gap and not (self.planted_bias or self.group_field or self.group_rule.by_label):
            raise ValueError("gap names groups, but the suite has none: give group_field, group_rule or planted_bias")
        return self

    @property
    def data_config(self) -> dict[str, Any]:
        """The suite's reading rules as the mapping that a DataConfig takes."""
        shared = ("text_fields", "label_field", "id_field", "group_field", "labels", "label_map", "planted_bias")
        return {"train": self.source, **{key: getattr(self, key) for key in shared}}


def available_suites() -> list[str]:
    """Names of the built-in suites, sorted."""
    return sorted(path.parent.name for path in BUILT_IN.glob("*/suite.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """A built-in suite by name, or any suite by the path of its YAML file or folder.

    A path has a separator or ends in .yaml / .yml, so a folder that happens to be called like a built-in suite does not
    shadow it. InputError for an unknown name (nearest given), an unknown key, or labels and fields that do not exist.
    """
    path = _suite_file(name_or_path)
    suite = parse(Suite, read_yaml(path), where=str(name_or_path))
    parse(DataConfig, suite.data_config, where=str(name_or_path))
    beside = path.parent / suite.source.source
    if suite.source.source != "generated" and beside.exists():
        return suite.model_copy(update={"source": suite.source.model_copy(update={"source": str(beside.resolve())})})
    return suite


def _suite_file(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(name_or_path)
        return path / "suite.yaml" if path.is_dir() else path
    names = available_suites()
    if text in names:
        return BUILT_IN / text / "suite.yaml"
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"unknown suite {text!r}; {hint}built in: {', '.join(names)}; or give the path of a suite.yaml")


def suite_examples(suite: Suite, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The suite's examples with their groups; `limit` keeps a random subset of that size, drawn with `seed`.

    The subset is drawn last, so an example has the same text and group under every limit. InputError for data that is
    not found or does not fit, and for a gap whose groups the data does not hold.
    """
    return subset(all_examples(suite), limit, seed)


def all_examples(suite: Suite) -> list[Example]:
    """Every example of the suite, cue planted and groups named."""
    _check_found(suite)
    data = DataConfig.model_validate(suite.data_config)
    examples = load_examples(suite.source, data)
    if suite.planted_bias:
        examples = plant(examples, suite.planted_bias, data)
    elif suite.group_field or suite.group_rule.by_label:
        examples = [_regrouped(example, suite) for example in examples]
    _check_gap(suite, examples)
    return examples


def subset(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples, a simple random sample in the original order."""
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected a number over 0, got {limit}")
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
    return [examples[i] for i in sorted(chosen)]


def _regrouped(example: Example, suite: Suite) -> Example:
    rule = suite.group_rule
    parts = []
    if example.group is not None:
        parts.append(example.group.split(rule.keep_before)[0] if rule.keep_before else example.group)
    if rule.by_label and (parts or suite.group_field is None):
        parts.append(suite.labels[example.label])
    return Example(example.id, example.texts, example.label, "/".join(parts) or None, example.bias_weight)


def _check_found(suite: Suite) -> None:
    source = suite.source.source
    if not kind_of(source):
        return
    try:
        resolve_path(source)
    except InputError:
        folder = os.environ.get("DEBIAS_DATA")
        looked = f"and {folder} lacks it" if folder else "and is not set"
        raise InputError(
            f"suite {suite.name}: no {source}; DEBIAS_DATA names the folder of local data, {looked}"
        ) from None


def _check_gap(suite: Suite, examples: Sequence[Example]) -> None:
    present = {example.group for example in examples if example.group is not None}
    for name in (*suite.gap.aligned, *suite.gap.conflicting) if suite.gap else ():
        if name not in present:
            raise InputError(f"suite {suite.name}: gap names the group {name!r}; the data has {sorted(present)}")
