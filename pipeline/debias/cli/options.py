"""Options that verbs which load any model share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str | None, typer.Option(help="Any model: a hub id, a folder, package:minilm.")]
Adapter = Annotated[str | None, typer.Option(help="A PEFT adapter, by folder or hub id.")]
PromptFile = Annotated[
    Path | None, typer.Option(help="How to ask: a recipe, a run's config.yaml, or a file of template, verbalizers.")
]
Labels = Annotated[str | None, typer.Option(help="A classifier's labels in order, with commas, if it names none.")]
Sheet = Annotated[str | None, typer.Option(help="Configuration of a hub dataset, sheet of a workbook.")]
Delimiter = Annotated[str | None, typer.Option(help="Of a .csv or .tsv, if not a comma or a tab.")]
Quotes = Annotated[
    bool | None, typer.Option("--quotes/--no-quotes", help="Whether quotes hold fields of a .csv or .tsv together.")
]
Tokenizer = Annotated[str | None, typer.Option(help="Another than the adapter's own, or the model's.")]
Bf16 = Annotated[bool | None, typer.Option("--bf16/--float32", help="Default: bf16 on a GPU.")]
FourBit = Annotated[bool | None, typer.Option("--load-in-4bit/--no-load-in-4bit")]
DeepSpeed = Annotated[str | None, typer.Option(help="zero3: the weights spread over the ranks of torchrun.")]
Normalize = Annotated[str, typer.Option(help="Score of an answer: none (the sum), tokens, characters.")]
Calibrate = Annotated[str, typer.Option(help="Prior of the labels taken off: none, contextual, pmi.")]

Suites = Annotated[
    list[str] | None, typer.Option("--suite", help="A suite, a collection (nli, all, ...) or a YAML file; repeat.")
]
ResultsOut = Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results of --model.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge a random subset of this size of each suite.")]
SubsetSeed = Annotated[int, typer.Option(min=0, help="Draws the subset.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Most examples of a batch; default: by tokens.")]
EndpointUrl = Annotated[
    str | None, typer.Option(help="A completions server that has --model (vLLM, SGLang); key: DEBIAS_API_KEY.")
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Questions at once to --endpoint; default: 8.")]
Timeout = Annotated[float | None, typer.Option(min=0.1, help="Its longest silence in seconds; default: 120.")]
Overlap = Annotated[str, typer.Option(help="Rows that are in the training data: count, exclude, ignore.")]
BaseOut = Annotated[
    Path | None, typer.Option("--base", metavar="FOLDER", help="Also judge the runs' base, into here, and compare.")
]
ShotsNumber = Annotated[
    int | None, typer.Option("--shots", min=1, help="Examples in context before each prompt of --model or --base.")
]
ShotsFrom = Annotated[str | None, typer.Option(help="A file of rows to draw them from; default: a run's own data.")]
ShotsSeed = Annotated[int | None, typer.Option(min=0, help="Draws them, labels balanced; default: 0.")]


def layout_of(name: str | None, delimiter: str | None, quotes: bool | None) -> dict[str, Any]:
    """What was said of how a file is laid out, as settings beside `source`."""
    given = {"name": name, "delimiter": delimiter, "quotes": quotes}
    return {key: value for key, value in given.items() if value is not None}
