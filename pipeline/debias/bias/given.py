"""A bias model whose probabilities came with the data, as columns of it or in a file. Shapes: N examples, C labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np

from debias.bias.base import BiasModel, Floats, labels_of, rows_digest
from debias.bias.calibration import out_of_fold
from debias.data.examples import Example

OFF_BY = 1e-3  # what a row's sum may be off by: probabilities were rounded when they were written


@dataclass(frozen=True)
class Given(BiasModel):
    """Probabilities that come with the data: a column for each label, or a file of another run.

    `columns`: of the training data, one for each of `data.labels` in their order; each row in [0, 1], summing to 1.
    `file`: what another run kept in `RUN/bias/NAME.npz`, of exactly these rows. Needs probabilities of examples that
    who said them was not fitted on, which nobody can check here. Costs nothing. Fails where they are not calibrated,
    which a warning says; `calibrated: true` fits one temperature to the training labels.

    Source: the precomputed bias-only predictions of Clark et al., EMNLP 2019, arXiv 1909.03683.
    """

    name: ClassVar[str] = "column"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_p"})
    columns: tuple[str, ...] = ()
    file: str | None = None
    calibrated: bool = False

    def __post_init__(self) -> None:
        if bool(self.columns) == bool(self.file):
            raise ValueError("columns: give them, one for each label, or a file; exactly one of the two")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns: {list(self.columns)} has a column twice")

    @property
    def p_columns(self) -> tuple[str, ...]:
        return self.columns

    def check(self, text_fields: Sequence[str]) -> None:
        if self.file is not None and not Path(self.file).is_file():
            raise ValueError(f"bias_model.file: {self.file}: no such file")

    def digest(self, examples: Sequence[Example], labels: int, seed: int) -> str:
        held = hashlib.sha256(Path(self.file).read_bytes()).hexdigest() if self.file else ""
        return held + super().digest(examples, labels, seed)

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        if self.file is None:
            p_NC = np.array([one.bias_p for one in (*examples, *others)], dtype=float)
        else:
            p_NC = _of_file(Path(self.file), examples, labels, "training")
            if others:
                p_MC = _of_file(said_of_validation(Path(self.file)), others, labels, "validation")
                p_NC = np.concatenate([p_NC, p_MC])
        return out_of_fold(p_NC, labels_of(examples), calibrated=self.calibrated)

    def missing(self, others: Sequence[Example]) -> str | None:
        if self.file is None:
            without = [one.id for one in others if one.bias_p is None]
            return f"{list(self.columns)} of the validation data were not read" if without else None
        beside = said_of_validation(Path(self.file))
        if beside.is_file():
            return None
        return f"file: {beside} is not there, where a run that validates keeps what was said of the validation data"


def said_of_validation(file: Path) -> Path:
    """Beside the file of what a bias model said of the training examples, that of the validation examples."""
    return file.with_name(f"{file.stem}.validation{file.suffix}")


def _of_file(file: Path, examples: Sequence[Example], labels: int, what: str) -> Floats:
    """Probabilities [N, C] of the `what` data's examples; ValueError where the file is of others."""
    try:
        with np.load(str(file), allow_pickle=False) as held:
            p_NC, rows = np.exp(np.asarray(held["log_p"], dtype=np.float64)), str(held["rows"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        told = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise ValueError(f"bias_model.file: {file}: not what a run keeps in bias/NAME.npz: {told}") from None
    if p_NC.shape != (len(examples), labels):
        raise ValueError(
            f"bias_model.file: {file} has probabilities of shape {list(p_NC.shape)}, and the {what} data "
            f"{len(examples)} rows and {labels} labels"
        )
    if rows != rows_digest(examples):
        raise ValueError(f"bias_model.file: {file} was said of other rows than the {what} data's")
    if (wrong := first_wrong(p_NC)) is not None:
        raise ValueError(f"bias_model.file: {file}: row {wrong + 1}: {what_is_wrong(p_NC[wrong])}")
    return p_NC


def first_wrong(p_NC: Floats) -> int | None:
    """The first row that is no distribution, if any."""
    fine_N = ((p_NC >= 0) & (p_NC <= 1)).all(axis=1) & (np.abs(p_NC.sum(axis=1) - 1) <= OFF_BY)
    return None if fine_N.all() else int(np.argmin(fine_N))


def what_is_wrong(p_C: Floats) -> str:
    """Why a row is no distribution, in words."""
    outside = [float(p) for p in p_C if not 0 <= p <= 1]
    if outside:
        return f"a probability is {outside[0]:g}, expected a number in [0, 1]"
    return f"the probabilities {[round(float(p), 4) for p in p_C]} sum to {float(p_C.sum()):.4g}, expected 1"
