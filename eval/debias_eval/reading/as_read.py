"""A suite's examples as its rows were read, before it wrote words into them: training data is compared with these."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

from debias.data import Example
from debias.data.planted import INDEPENDENT
from debias_eval.reading.stress import DISTRACTIONS
from debias_eval.reading.suite import Suite


def as_read(suite: Suite, examples: Sequence[Example]) -> Sequence[Example]:
    """The examples without the cue and the tautologies of the suite; themselves where it writes no words."""
    return _AsRead(suite, examples) if suite.planted_bias or suite.stress else examples


class _AsRead(Sequence[Example]):
    """Each is made when it is asked for: the examples may lie in a table."""

    def __init__(self, suite: Suite, examples: Sequence[Example]) -> None:
        self.suite = suite
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        found = self.examples[place]
        if isinstance(found, Example):
            return _as_read(self.suite, found)
        return [_as_read(self.suite, one) for one in found]

    def __iter__(self) -> Iterator[Example]:
        return (_as_read(self.suite, one) for one in self.examples)


def _as_read(suite: Suite, example: Example) -> Example:
    """Undone from the last to the first: the cue is written behind the tautology."""
    texts = list(example.texts)
    if suite.planted_bias and example.group != INDEPENDENT:
        place = suite.text_fields.index(suite.planted_bias.field)
        texts[place] = texts[place].removesuffix(f" {suite.planted_bias.cue}")
    if suite.stress:
        place, words = DISTRACTIONS[suite.stress]
        texts[place] = texts[place].removesuffix(words)
    return replace(example, texts=tuple(texts))
