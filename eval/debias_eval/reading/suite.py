"""What a suite is: data only, read from YAML, built in or of a user's own."""

import difflib
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from debias.config.data import DataConfig, DataSource, PlantedBias, PlantedColor, Strict, has_pictures
from debias.config.expanding import VARIABLE
from debias.config.reading import parse, read_yaml
from debias.data.files import SUFFIXES, kind_of
from debias.data.shards import is_pattern
from debias.errors import InputError

BUILT_IN = Path(__file__).parents[1] / "suites"

Task = Literal["nli", "fact_verification", "paraphrase", "sentiment", "toxicity", "vision", "other"]
Stress = Literal["negation", "word_overlap", "length_mismatch"]


class Hub(Strict):
    """The same data on the Hugging Face hub (Parquet: dataset scripts no longer run), read where the file is absent.

    A key that is given replaces the suite's own for the hub's rows; `group_field: null` says that they have no group.
    """

    source: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*/[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
    )
    name: str | None = None
    split: str = Field("test", min_length=1)
    text_fields: tuple[str, ...] | None = Field(None, min_length=1)
    label_field: str | None = None
    id_field: str | None = None
    group_field: str | None = None
    label_map: dict[str, str] | None = None

    @field_validator("label_map", mode="before")
    @classmethod
    def _integer_labels(cls, value: Any) -> Any:
        return _text_keys(value)


class Cluster(Strict):
    """Which examples are related: those for which the first group of `regex` in `field` (or all of it) is the same.

    `field` is `id`, `group`, a text field, any other column of the rows, `texts` (all texts, in any order), or several
    of these, together. `words` keeps only these words of a text and blanks all others, so that sentences of one
    template are the same; `mask` blanks these words and phrases, in upper or lower case, and keeps all others.
    """

    field: tuple[str, ...] = Field(("id",), min_length=1)
    regex: str | None = None
    words: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()

    @field_validator("field", mode="before")
    @classmethod
    def _one_field(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("regex")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups == 0:
                raise ValueError(f"{value!r} has no group in parentheses; the first one names the cluster")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _regex_has_one_field(self) -> "Cluster":
        if self.regex is not None and (len(self.field) > 1 or self.words or self.mask):
            raise ValueError("regex reads one field as it is; remove words, mask and the other fields, or regex")
        if self.words and self.mask:
            raise ValueError("words keeps some words, mask blanks some; remove one")
        return self


class Keep(Strict):
    """The rows that belong to the suite: those whose `field` has one of `values`."""

    field: str = Field(min_length=1)
    values: tuple[str, ...] = Field(min_length=1)


class GroupColumns(Strict):
    """A group from several columns of numbers: the name of the one that is `at_least` so high, `several`, or `none`."""

    names: tuple[str, ...] = Field(min_length=1)
    at_least: float


class PartialInputGroups(Strict):
    """Groups `partial_easy` and `partial_hard`: whether a classifier that sees only `fields` is right.

    The classifier is this project's own (TF-IDF and logistic regression), fitted on the files `train`, or on a seeded
    sample of `hub` where one of them is absent (the groups then differ a little).
    """

    fields: tuple[str, ...] = Field(min_length=1)
    train: tuple[str, ...] = Field(min_length=1)
    hub: Hub | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("train")
    @classmethod
    def _stays_inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(path) for path in value)


class GroupRule(Strict):
    """How the value of `group_field` becomes a group: the part before `keep_before`, then `/` and what else is asked.

    `partial_input` adds how a classifier of a part of the input fares, `by_label` the right label.
    """

    keep_before: str | None = Field(default=None, min_length=1)
    by_label: bool = False
    partial_input: PartialInputGroups | None = None


class Gap(Strict):
    """Groups where the shortcut gives the right answer, and groups where it gives a wrong one."""

    aligned: tuple[str, ...] = Field(min_length=1)
    conflicting: tuple[str, ...] = Field(min_length=1)


class Suite(Strict):
    """One test set with its labels, groups, clusters and gap; `version` changes whenever a number could.

    `label_map` reads the data's labels, `merge` the model's (neutral -> not_entailment); equal names need neither.
    `label_threshold` turns numbers in `label_field` into the second of two labels where they reach it, else the first;
    `group_columns` fill `group_field`; `skip_empty` leaves rows without text out.
    `input_ablation` names the fields that the floor under every number sees: the last of a pair, none of one text.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")  # becomes a file name
    version: int = Field(ge=1)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    task: Task
    source: DataSource | None = None
    hub: Hub | None = None
    text_fields: tuple[str, ...] = Field(default_factory=lambda known: _texts_of(known.get("task")), min_length=1)
    label_field: str = "label"
    id_field: str | None = "id"
    labels: tuple[str, ...] = Field(("entailment", "neutral", "contradiction"), min_length=2)
    label_map: dict[str, str] = Field(default_factory=dict)
    label_threshold: float | None = None
    merge: dict[str, str] = Field(default_factory=dict)
    keep: Keep | None = None
    skip_empty: bool = False
    group_field: str | None = None
    group_columns: GroupColumns | None = None
    group_rule: GroupRule = GroupRule()
    cluster: Cluster | None = None
    consistency: bool = False
    invariant: bool = False
    stress: Stress | None = None
    planted_bias: PlantedBias | None = None
    planted_color: PlantedColor | None = None
    gap: Gap | None = None
    input_ablation: tuple[str, ...] = Field(default_factory=lambda known: _last_of_pair(known.get("text_fields", ())))
    _folder: Path | None = PrivateAttr(None)
    _file: Path | None = PrivateAttr(None)

    @field_validator("source", mode="before")
    @classmethod
    def _short_source(cls, value: Any) -> Any:
        named = value.get("source") if isinstance(value, dict) else value
        if isinstance(named, str):
            _inside(named)  # as it is written, before `~` is
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _stays_inside(cls, value: DataSource | None) -> DataSource | None:
        if value is not None:
            _inside(value.source)
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_names(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if any(isinstance(label, bool) for label in value):
            raise ValueError("YAML reads a bare yes, no, true or false as a flag; put quotes around such a label")
        return [str(label) if isinstance(label, int) else label for label in value]

    @field_validator("label_map", mode="before")
    @classmethod
    def _integer_labels(cls, value: Any) -> Any:
        return _text_keys(value)

    @model_validator(mode="after")
    def _data_is_named(self) -> "Suite":
        if self.source is None and self.hub is None:
            raise ValueError("no data: give source (a file beside the suite or in DEBIAS_DATA), hub, or both")
        named = None if self.source is None else self.source.source
        if self.task == "vision" and (named is None or not has_pictures(named) or self.hub):
            raise ValueError(f"task vision reads an IDX file of pictures (images-idx3-ubyte, .gz too), got {named!r}")
        if (
            named not in (None, "generated")
            and self.task != "vision"
            and not (kind_of(str(named)) or is_pattern(str(named)))
        ):
            raise ValueError(
                f"source is {named!r}, expected a file ({', '.join(SUFFIXES)}, each also .gz or .zst) or generated; "
                "a hub id goes under hub: {source: ...}"
            )
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Suite":
        for model_label, label in self.merge.items():
            if label not in self.labels:
                raise ValueError(f"merge sends {model_label!r} to {label!r}, not one of labels {list(self.labels)}")
        for field in self.input_ablation:
            if field not in self.text_fields:
                raise ValueError(f"input_ablation names {field!r}, not one of text_fields {list(self.text_fields)}")
        if self.hub and self.hub.text_fields and len(self.hub.text_fields) != len(self.text_fields):
            raise ValueError(f"hub.text_fields must be as many as text_fields {list(self.text_fields)}, in their order")
        partial = self.group_rule.partial_input
        if partial and not set(partial.fields) < set(self.text_fields):
            raise ValueError(
                f"group_rule.partial_input.fields is {list(partial.fields)}, expected some but not all of text_fields "
                f"{list(self.text_fields)}"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> "Suite":
        planted = "planted_bias" if self.planted_bias else "planted_color" if self.planted_color else None
        if planted and (self.group_field or self.group_rule != GroupRule()):
            raise ValueError(f"{planted} makes the groups itself; remove group_field and group_rule")
        made = self.group_rule.by_label or self.group_rule.partial_input
        if self.gap and not (planted or self.group_field or made):
            raise ValueError("gap names groups, but the suite has none: give group_field, group_rule or planted_bias")
        if self.gap and (both := [name for name in self.gap.aligned if name in self.gap.conflicting]):
            raise ValueError(f"gap names {both[0]!r} as aligned and as conflicting; a group is on one side of it")
        if self.cluster and self.cluster.words and not set(self.cluster.field) & set(self.text_fields):
            raise ValueError(f"cluster.words blanks text, but cluster.field names none of {list(self.text_fields)}")
        if self.consistency and self.cluster is None:
            raise ValueError("consistency is about clusters, but the suite has none: give cluster")
        if self.invariant and self.cluster is None:
            raise ValueError("invariant is about clusters, but the suite has none: give cluster")
        if self.label_threshold is not None and (len(self.labels) != 2 or self.label_map):
            raise ValueError("label_threshold needs two labels, lower first, and no label_map")
        if self.group_columns and not self.group_field:
            raise ValueError("group_columns fill group_field; give it a name")
        if self.stress and len(self.text_fields) != 2:
            raise ValueError(f"stress changes premise or hypothesis; text_fields are {list(self.text_fields)}, not two")
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of the suite's YAML file, where its data may lie; None for a suite that was not read from one."""
        return self._folder

    @property
    def file(self) -> Path | None:
        """The YAML file of a suite that is not built in, whose name alone does not find it again."""
        return self._file

    @property
    def data_config(self) -> dict[str, Any]:
        """The suite's reading rules as the mapping that a DataConfig takes."""
        fields = ("text_fields", "label_field", "id_field", "group_field")
        shared = (*fields, "labels", "label_map", "planted_bias", "planted_color")
        own = {key: getattr(self, key) for key in shared}
        return {"train": self.source or (self.hub and _source_of(self.hub)), **own}

    def hub_config(self, hub: Hub) -> dict[str, Any]:
        """The same for rows of a hub id: what `hub` says, and the suite's own where it says nothing."""
        changed = {key: getattr(hub, key) for key in hub.model_fields_set - {"source", "name", "split"}}
        return {**self.data_config, "train": _source_of(hub), **changed, "planted_bias": None}


def _source_of(hub: Hub) -> DataSource:
    return DataSource.model_validate(hub.model_dump(include={"source", "name", "split"}))


def _texts_of(task: str | None) -> tuple[str, ...]:
    return () if task == "vision" else ("premise", "hypothesis")


def _last_of_pair(text_fields: tuple[str, ...]) -> tuple[str, ...]:
    return text_fields[-1:] if len(text_fields) > 1 else ()


def _text_keys(value: Any) -> Any:
    """`{0: entailment}`: rows are looked up by the text of their label."""
    return {str(raw): name for raw, name in value.items()} if isinstance(value, dict) else value


def _inside(path: str) -> str:
    """The path itself; ValueError if it could name a file outside the folder it is looked up in."""
    windows = PureWindowsPath(path)
    outside = PurePosixPath(path).is_absolute() or windows.drive or windows.root or path.startswith("~")
    if outside or VARIABLE.search(path) or ".." in windows.parts or "://" in path:
        raise ValueError(
            f"{path!r} leads outside; expected a path below the suite's own folder or DEBIAS_DATA, "
            "relative and without '..' and variables"
        )
    return path


def available_suites() -> list[str]:
    """Names of the built-in suites, sorted."""
    return sorted(path.parent.name for path in BUILT_IN.glob("*/suite.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """A built-in suite by name, or any suite by the path of its YAML file or folder.

    A path has a separator or ends in .yaml / .yml, so a folder that happens to be called like a built-in suite does not
    shadow it. InputError for an unknown name (nearest given), an unknown key, labels and fields that do not exist, or a
    path that leads out of the suite's folder and DEBIAS_DATA.
    """
    path = _suite_file(name_or_path)
    suite = parse(Suite, read_yaml(path), where=str(name_or_path))
    suite._folder = path.parent.resolve()
    suite._file = None if path.resolve().is_relative_to(BUILT_IN.resolve()) else path.resolve()
    parse(DataConfig, suite.data_config, where=str(name_or_path))
    if suite.hub:
        parse(DataConfig, suite.hub_config(suite.hub), where=f"{name_or_path}: hub")
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
