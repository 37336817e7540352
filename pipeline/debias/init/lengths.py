"""How long the rows of a file are in tokens: by the model's own tokenizer where this machine has it, else by words."""

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.audit.guessing import Table
from debias.config.words import words_in
from debias.errors import InputError
from debias.hub.packages import PREFIX, package_folder

LENGTHS = (64, 128, 256, 512)
HELD = 0.95  # of the rows, that a length should hold
TOKENS_A_WORD = 1.5  # of English in the vocabularies of today's models, punctuation counted
TOKENIZED = 2000  # rows, drawn at random, and
CHARACTERS = 1_000_000  # of them at most: a second or two
ANSWER = 4  # tokens that a causal model's answer takes, about
FILE = "tokenizer.json"


@dataclass(frozen=True)
class Length:
    """`max_length`, the share of the rows that it holds, and whether tokens were counted or guessed from words."""

    tokens: int
    holds: float
    counted: bool

    def said(self) -> str:
        """What a comment says of it."""
        how = "the model's tokenizer" if self.counted else "its words"
        share = int(100 * self.holds)
        return f"tokens; by {how} it holds {share} of 100 rows{'' if self.holds >= HELD else ', and others are cut'}"


def length_of(table: Table, text_fields: Sequence[str], model: str, *, causal: bool) -> Length:
    """The least of LENGTHS that holds HELD of the rows, else the largest. Nothing is downloaded."""
    rows = [tuple(str(row.get(field) or "") for field in text_fields) for _, row in table.rows]
    tokenizer = tokenizer_at_hand(model)
    counts = _guessed(rows) if tokenizer is None else _counted(tokenizer, _part(rows), text_fields, causal=causal)
    wanted = sorted(counts)[int(HELD * (len(counts) - 1))]
    tokens = next((length for length in LENGTHS if length >= wanted), LENGTHS[-1])
    return Length(tokens, sum(count <= tokens for count in counts) / len(counts), tokenizer is not None)


def tokenizer_at_hand(model: str) -> Any:
    """The fast tokenizer of a model on this machine (a folder, a package, in the hub's cache); None of another."""
    from tokenizers import Tokenizer

    for place in _places(model):
        if place.is_file():
            with suppress(Exception):  # whatever is wrong with the file is said where the model is loaded
                tokenizer = Tokenizer.from_file(str(place))
                tokenizer.no_truncation()
                tokenizer.no_padding()
                return tokenizer
    return None


def _places(model: str) -> list[Path]:
    if model.startswith(PREFIX):
        with suppress(InputError):
            return [package_folder(model) / FILE]
        return []
    folder = Path(model).expanduser()
    if folder.is_dir():
        return [folder / FILE]
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name of a hub
        if isinstance(found := try_to_load_from_cache(model, FILE), str):
            return [Path(found)]
    return []


def _part(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Some rows, drawn at random: of long texts fewer."""
    drawn = random.Random(0).sample(rows, min(len(rows), TOKENIZED))
    held, part = 0, []
    for row in drawn:
        part.append(row)
        held += sum(map(len, row))
        if held > CHARACTERS:
            break
    return part


def _counted(tokenizer: Any, rows: Sequence[tuple[str, ...]], fields: Sequence[str], *, causal: bool) -> list[int]:
    if causal or len(fields) > 2:
        asked = [
            "\n".join([*(f"{name}: {text}" for name, text in zip(fields, row, strict=True)), "Label:"]) for row in rows
        ]
        return [len(one.ids) + ANSWER for one in tokenizer.encode_batch(asked)]
    return [len(one.ids) for one in tokenizer.encode_batch([row if len(row) > 1 else row[0] for row in rows])]


def _guessed(rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [round(TOKENS_A_WORD * sum(map(words_in, row))) for row in rows]
