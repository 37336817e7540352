"""Which rows of a suite a run was trained on, by their normalised text."""

import hashlib
import logging
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.shots import Shown
from debias.data.sources import kept_examples
from debias.errors import InputError
from debias.runs.names import CONFIG
from debias_eval.reading.as_read import as_read
from debias_eval.reading.suite import Suite
from debias_eval.scores.intervals import Bools

logger = logging.getLogger(__name__)

Keys = NDArray[np.uint64]  # sorted, of normalised texts


class TrainingRows:
    """The rows that a run was trained on, and chosen on, read once for all suites that the run is judged on.

    `base` is the folder that the config's data paths are relative to. `chooses`: whether something of the model was
    chosen by its validation rows, a checkpoint or, in an edit, more.
    """

    def __init__(self, config: RunConfig, base: Path, *, chooses: bool = False) -> None:
        self.config = config
        self.base = base
        self.chooses = config.data.validation is not None and (chooses or config.selection != "last")
        self._keys: dict[tuple[str, tuple[int, ...]], Keys] = {}

    @classmethod
    def of(cls, run: Path, config: RunConfig | None = None) -> "TrainingRows | None":
        """Of a run's folder; None where it has no config, or one that cannot be read any more (with a notice)."""
        path = run / CONFIG
        if config is None and not path.is_file():
            return None
        try:
            return cls(config or load_config(path), path.resolve().parent)
        except InputError as error:
            logger.info("%s: overlap with the training data not checked: %s", run, error)
            return None

    def contain(self, examples: Sequence[Example], suite: Suite) -> Bools | None:
        """`[N]`: whether an example's normalised texts are a row of the training data, as it was read.

        They are looked for as they are, and without what the suite wrote into them. A cue or a swap of the run's own
        is not written into the rows that it is compared with. None, with a notice, where the data cannot be read any
        more.
        """
        return self._within("train", examples, suite)

    def chosen_on(self, examples: Sequence[Example], suite: Suite) -> Bools | None:
        """`[N]`: whether an example is one of the validation rows that something was chosen by; None as above."""
        if not self.chooses:
            return np.zeros(len(examples), dtype=np.bool_)
        return self._within("validation", examples, suite)

    def _within(self, role: str, examples: Sequence[Example], suite: Suite) -> Bools | None:
        own, text_fields = self.config.data.text_fields, suite.text_fields
        by_name = sorted(own) == sorted(text_fields)
        order = tuple(own.index(name) for name in text_fields) if by_name else tuple(range(len(own)))
        try:
            keys = self._in_order(role, order)
        except InputError as error:
            logger.info("%s: overlap with the %s data not checked: %s", self.base, _WORDS[role], error)
            return None
        found_N, rows = _within(examples, keys), as_read(suite, examples)
        return found_N if rows is examples else found_N | _within(rows, keys)

    def _in_order(self, role: str, order: tuple[int, ...]) -> Keys:
        if (role, order) not in self._keys:
            texts = ([example.texts[i] for i in order] for example in self._examples(role))
            self._keys[role, order] = keys_of(texts)
        return self._keys[role, order]

    def _examples(self, role: str) -> Sequence[Example]:
        data = self.config.data
        source = data.train if role == "train" else data.validation
        return () if data.pictures or source is None else kept_examples(source, data, base=self.base)


_WORDS = {"train": "training", "validation": "validation"}


def refuse_rows_of(suite: Suite, examples: Sequence[Example], shown: Shown) -> None:
    """InputError if an example in context is a row of the suite, after `normalised`: its answer would stand there."""
    both = (examples,) if as_read(suite, examples) is examples else (examples, as_read(suite, examples))
    rows = keys_of(sorted(map(normalised, example.texts)) for some in both for example in some)
    known = [one for one in shown.examples if np.isin(_key(sorted(map(normalised, one.texts))), rows)]
    if known:
        raise InputError(
            f"shots: {len(known)} of {len(shown.examples)} examples of {shown.source} are rows of the suite "
            f"{suite.name} (first: {known[0].id}); give other rows with --shots-from, or another --shots-seed"
        )


def overlapping(test: Sequence[Example], train: Iterable[Sequence[str]]) -> Bools:
    """`[N]`: whether all texts of an example together are those of one training row, after `normalised`.

    `train` yields the texts of each row in the order of the test's text fields and is read once; eight bytes of each
    are held. Near copies count as different. Labels are not compared: a row seen with another label is contaminated
    too.
    """
    return _within(test, keys_of(train))


def keys_of(rows: Iterable[Sequence[str]]) -> Keys:
    """Digests of the rows' normalised texts, each once.

    Of ten million training rows and a million test rows, one in two million times two that differ have the same.
    """
    return np.unique(np.fromiter(map(_key, rows), dtype=np.uint64))


def _within(examples: Sequence[Example], keys: Keys) -> Bools:
    asked_N = np.fromiter((_key(example.texts) for example in examples), dtype=np.uint64, count=len(examples))
    if not len(keys):
        return np.zeros(len(examples), dtype=np.bool_)
    place_N = np.minimum(np.searchsorted(keys, asked_N), len(keys) - 1)
    return np.asarray(keys[place_N] == asked_N)


def _key(texts: Sequence[str]) -> np.uint64:
    told = repr([*map(normalised, texts)]).encode("utf-8", "surrogatepass")
    return np.uint64(int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little"))


def normalised(text: str) -> str:
    """Unicode's compatibility form (NFKC) in lower case, without punctuation and white space.

    White space goes too, not only runs of it, so that a tokenised text (`do n't .`) equals the natural one. A text of
    nothing else keeps its punctuation, or all such texts would be the same.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_dropped()) or "".join(folded.split())


@cache
def _dropped() -> dict[int, None]:
    """Punctuation, free-standing accents such as the backquote, white space and control characters."""
    kinds = ((code, unicodedata.category(chr(code))) for code in range(sys.maxunicode + 1))
    return {code: None for code, kind in kinds if kind[0] in "PZ" or kind in ("Sk", "Cc", "Cf")}
