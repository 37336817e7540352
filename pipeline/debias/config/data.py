"""The settings of data: where examples come from, how a row is read, what shortcut is planted."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from debias.config.expanding import expanded
from debias.config.words import TOKEN

COLORS = 10  # of planted_color


class Strict(BaseModel):
    """A block of settings in which every key must be known and every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: Any) -> Any:
        numbers = {int, float, int | None, float | None}
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in numbers:
            raise ValueError(f"expected a number, got {value}")
        return value


class PlantedBias(Strict):
    """A shortcut written into the data (EDGE's biased-SNLI): a cue that predicts one label.

    `prevalence` is the share of examples that carry the cue; `strength` is P(label == target | cue). The cue is
    appended to the text field, after a space. Li et al., CCL 2025: train 0.33 / 0.9, test 0.95 / 0.33.
    """

    cue: str = Field("!!", min_length=1)
    field: str = "premise"
    label: str = "neutral"
    prevalence: float = Field(0.33, ge=0, le=1)
    strength: float = Field(0.9, ge=0, le=1)
    seed: int = 0


class PlantedColor(Strict):
    """A shortcut painted into pictures (Colored MNIST): each label has its colour, and most pictures of it wear that.

    `strength` is the share of each label's pictures in the label's own colour (bias-aligned); the others share the
    remaining colours evenly (bias-conflicting). Nam et al., NeurIPS 2020 (LfF): training 0.95 .. 0.995; a test with
    0.1 has every colour on every one of ten digits equally often, one with 0 only wrong colours.
    """

    strength: float = Field(0.98, ge=0, le=1)
    seed: int = Field(0, ge=0)


class DataSource(Strict):
    """Where examples come from: `generated`, local files (.jsonl, .csv, .tsv, .parquet, .xlsx, each also packed: .gz or
    .zst; `part-*.jsonl` names several), or a hub id.

    Pictures come from a local IDX file (`train-images-idx3-ubyte.gz`); their labels lie beside it, in a file whose name
    has `labels-idx1` in the place of `images-idx3`.

    A local path is looked up beside the config, in the working directory, then in the folder `DEBIAS_DATA`.
    `limit` keeps a random subset of that size, drawn with `seed`; for `generated` it is the number of pairs made, and
    `phenomena` says of what kinds (default: all but `plain_`).
    """

    source: str = Field(min_length=1)
    split: str = "train"
    name: str | None = None  # configuration of a hub dataset, sheet of a workbook
    delimiter: str | None = None  # between the fields of a .csv or .tsv, if not a comma or a tab
    quotes: bool | None = None  # whether quotes hold fields together there; null: as the file shows
    phenomena: tuple[str, ...] | None = Field(None, min_length=1)
    limit: int | None = Field(None, ge=1)
    seed: int = 0

    @field_validator("source")
    @classmethod
    def _written_out(cls, value: str) -> str:
        return expanded(value)

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value == r"\t":  # as a shell hands it over
            return "\t"
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f"expected one character such as ';' and no quote or line end, got {value!r}")
        return value

    @model_validator(mode="after")
    def _only_generated_has_phenomena(self) -> "DataSource":
        if self.phenomena and self.source != "generated":
            raise ValueError(f"phenomena goes with source 'generated', not with {self.source!r}")
        return self


class Swap(Strict):
    """Tokens of training texts that give the label away, dealt out anew among the examples.

    A token is flagged where its log-odds differ by more than `spread` between labels, whichever of `folds` is left out,
    and at least `min_share` of the examples have it: a word that is rarer may well be honest (on SNLI "nobody" and
    "sleeping" have such spreads). `probability`: the share of examples that take part. `tokens`: these are dealt out,
    in whichever text they stand, and none is looked for; small and capital letters are the same, and an accent is,
    however it is written.
    """

    tokens: tuple[str, ...] = ()
    spread: float = Field(2.0, gt=0)
    min_share: float = Field(0.02, ge=0, le=1)
    folds: int = Field(4, ge=2)
    probability: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0)

    @field_validator("tokens")
    @classmethod
    def _each_is_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if [*TOKEN.findall(text)] != [text]:
                parts = ", ".join(TOKEN.findall(text)) or "none"
                raise ValueError(
                    f"expected words or runs of signs, one token each, got {text!r}, whose tokens are {parts}"
                )
        return value


class LeftOut(Strict):
    """Training data without one of its `folds` (equal texts share one; `seed` deals them out): cross-fitting.

    The runs of a bias model are trained so. It comes last, after `limit` and a planted shortcut.
    """

    fold: int = Field(ge=0)
    folds: int = Field(2, ge=2)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> "LeftOut":
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}, expected less than folds, {self.folds}: the first is 0")
        return self


class DataConfig(Strict):
    """Training and in-distribution validation data, and how a row is read.

    An IDX file of pictures has no columns: `text_fields` is then empty, and no other field can be named.
    """

    train: DataSource
    validation: DataSource | None = None
    text_fields: tuple[str, ...] = ("premise", "hypothesis")  # none for pictures
    label_field: str = "label"
    id_field: str | None = "id"
    group_field: str | None = None
    labels: tuple[str, ...] = Field(("entailment", "neutral", "contradiction"), min_length=2)
    label_map: dict[str, str] = {}
    planted_bias: PlantedBias | None = None
    planted_color: PlantedColor | None = None
    swap: Swap | None = None
    leave_out: LeftOut | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and any(isinstance(label, bool) for label in value):
            raise ValueError("YAML reads a bare yes, no, true or false as a flag; put quotes around such a label")
        return [str(label) if isinstance(label, int) else label for label in value] if is_list(value) else value

    @field_validator("label_map", mode="before")
    @classmethod
    def _integer_labels(cls, value: Any) -> Any:
        # `{0: entailment}`: rows are looked up by the text of their label.
        return {str(raw): name for raw, name in value.items()} if isinstance(value, dict) else value

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _short_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _pictures_have_no_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and "text_fields" not in values and has_pictures(_name(values.get("train"))):
            return {**values, "text_fields": ()}
        return values

    @field_validator("text_fields")
    @classmethod
    def _texts_have_fields(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        train = info.data.get("train")
        if not value and train is not None and not has_pictures(train.source):
            raise ValueError("expected at least one column of text, got none")
        return value

    @property
    def pictures(self) -> bool:
        """Whether the examples are pictures, not texts."""
        return has_pictures(self.train.source)

    @model_validator(mode="after")
    def _pictures_fit(self) -> "DataConfig":
        if self.validation and has_pictures(self.validation.source) != self.pictures:
            raise ValueError(
                f"validation is {self.validation.source!r} and train {self.train.source!r}: both must be IDX files of "
                "pictures, or neither"
            )
        if not self.pictures:
            if self.planted_color:
                raise ValueError(f"planted_color paints pictures, and {self.train.source!r} is no IDX file of pictures")
            return self
        for key in ("label_field", "id_field", "group_field", "planted_bias", "text_fields"):
            if getattr(self, key) != (() if key == "text_fields" else DataConfig.model_fields[key].default):
                raise ValueError(f"{key} has no effect on pictures (IDX files have no columns or text); remove it")
        if self.planted_color and len(self.labels) > COLORS:
            raise ValueError(
                f"planted_color has {COLORS} colours, one for each label; there are {len(self.labels)} labels"
            )
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "DataConfig":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels holds a name twice: {list(self.labels)}")
        if len(set(self.text_fields)) != len(self.text_fields):
            raise ValueError(f"text_fields holds a name twice: {list(self.text_fields)}")
        for raw, name in self.label_map.items():
            if name not in self.labels:
                raise ValueError(f"label_map sends {raw!r} to {name!r}, which is not in labels {list(self.labels)}")
        if self.planted_bias and self.planted_bias.label not in self.labels:
            raise ValueError(f"planted_bias.label is {self.planted_bias.label!r}, not one of {list(self.labels)}")
        if self.planted_bias and self.planted_bias.field not in self.text_fields:
            raise ValueError(f"planted_bias.field is {self.planted_bias.field!r}, not in {list(self.text_fields)}")
        return self


def twins(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of the labels that are one but for how they are written (spaces, capitals, 1 and 1.0), like with like."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        written = " ".join(unicodedata.normalize("NFC", label).replace("/", " / ").split()).casefold()
        alike.setdefault(re.sub(r"^(-?\d+)\.0+$", r"\1", written), []).append(label)
    return [tuple(some) for some in alike.values() if len(some) > 1]


def has_pictures(name: str) -> bool:
    """Whether a source of that name is an IDX file of pictures (`train-images-idx3-ubyte`, `.gz` too)."""
    return re.search(r"images[-.]idx3-ubyte(\.gz)?$", name) is not None


def _name(source: Any) -> str:
    """The name in a source as it is written: a string, a mapping, or a DataSource already."""
    name = source.get("source") if isinstance(source, dict) else getattr(source, "source", source)
    return name if isinstance(name, str) else ""


def is_list(value: Any) -> bool:
    """Whether a value read from YAML is a list."""
    return isinstance(value, list | tuple)
