"""Examples in context: labelled rows, written out before every prompt of a causal model that is not trained on them.

All prompts show the same examples in the same order, so that where prompts are scored as a tree of tokens the examples
are computed once. Source: few-shot prompting as Brown et al., NeurIPS 2020, have it; labels balanced as in Zhao et al.,
ICML 2021.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from debias.config.prompt_file import Shots
from debias.config.run import RunConfig
from debias.data.examples import Example, labels_of
from debias.errors import InputError

BETWEEN = "\n\n"  # an example and what follows it


@dataclass(frozen=True)
class Shown:
    """The examples before every prompt, `source` in words, and the text that they make with `config`'s prompt."""

    shots: Shots
    source: str
    examples: tuple[Example, ...]

    def text(self, config: RunConfig) -> str:
        """Each example as the prompt asks it, with its answer behind it and a blank line after that."""
        asked = config.prompt
        assert asked is not None
        parts = []
        for one in self.examples:
            filled = asked.template.format(**dict(zip(config.data.text_fields, one.texts, strict=True)))
            parts.append(f"{filled}{asked.verbalizers[config.data.labels[one.label]]}{BETWEEN}")
        return "".join(parts)

    def before(self, config: RunConfig, tokens: int) -> RunConfig:
        """The settings whose template begins with the examples, `tokens` of them, for which there is room on top."""
        text = self.text(config).replace("{", "{{").replace("}", "}}")
        prompt = config.prompt.model_copy(update={"template": text + config.prompt.template})  # type: ignore[union-attr]
        return config.model_copy(update={"prompt": prompt, "max_length": config.max_length + tokens})

    @property
    def told(self) -> dict[str, Any]:
        """For results: how many, drawn how and from where, and the digest of what was drawn."""
        drawn = json.dumps([[*one.texts, one.label] for one in self.examples]).encode()
        about = {"number": self.shots.number, "seed": self.shots.seed, "source": self.source}
        return {**about, "sha256": hashlib.sha256(drawn).hexdigest()}


def draw(examples: Sequence[Example], labels: Sequence[str], shots: Shots, source: str) -> Shown:
    """So many of the examples, of every label equally many (or one more), in an order that the seed shuffles.

    Which labels have one more is drawn, too. InputError where there are too few rows, or too few of a label.
    """
    if shots.number > len(examples):
        raise InputError(f"shots: {shots.number} asked for, and {source} has {len(examples)} labelled rows")
    rng, label_N = Random(f"shots/{shots.seed}"), labels_of(examples)
    order = rng.sample(range(len(labels)), len(labels))
    places: list[int] = []
    for turn, label in enumerate(order):
        wanted = shots.number // len(labels) + (turn < shots.number % len(labels))
        there = np.flatnonzero(label_N == label).tolist()
        if wanted > len(there):
            raise InputError(
                f"shots: {shots.number} with labels balanced take {wanted} rows of {labels[label]}, and {source} has "
                f"{len(there)}"
            )
        places += rng.sample(there, wanted)
    rng.shuffle(places)
    return Shown(shots, source, tuple(examples[place] for place in places))


def refuse_cut(lengths: Sequence[int], room: int, max_length: int) -> None:
    """InputError if prompts of so many tokens, examples and all, do not fit: what is cut would be the examples."""
    over = [length for length in lengths if length > room]
    if over:
        longest = max(over) + max_length - room
        raise InputError(
            f"shots: {len(over)} of {len(lengths)} prompts do not fit into max_length, {max_length} tokens with the "
            f"examples (the longest takes {longest}); show fewer, or give --prompt a file with a larger max_length"
        )
