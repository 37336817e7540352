"""Examples in context for a model to judge: read, drawn, and put before its prompt."""

from pathlib import Path

from debias.building.examples import training_examples
from debias.config.data import DataSource
from debias.config.prompt_file import Shots, is_short
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data.shots import Shown, draw
from debias.data.sources import kept_examples
from debias.errors import InputError


def shown_to(config: RunConfig, file: Path | None, shots: Shots) -> Shown:
    """The examples that `shots` asks for, of a model that is asked as `config` says, which `file` was read for.

    Without a source they are of the run's own training data, as it trains on them: with a planted shortcut, and tokens
    swapped. InputError in one line for a classifier, for a file that has no data, and for too few rows.
    """
    if config.head != "causal_lm" or config.prompt is None:
        raise InputError(f"--shots: {config.model} has a head of its own and no prompt that could show examples")
    if shots.source is not None:
        data = config.data.model_copy(update={"train": DataSource.model_validate({"source": shots.source})})
        return draw(kept_examples(data.train, data), data.labels, shots, shots.source)
    if file is None or is_short(file):
        raise InputError(f"--shots-from is missing: {file or 'the prompt'} has no data of its own; name a file of rows")
    own = load_config(file)
    return draw(training_examples(own, file.resolve().parent), own.data.labels, shots, own.data.train.source)
