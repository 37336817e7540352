"""The verb that answers rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from debias.cli.options import (
    Adapter,
    Bf16,
    Calibrate,
    DeepSpeed,
    Delimiter,
    FourBit,
    Labels,
    Model,
    Normalize,
    PromptFile,
    Quotes,
    Sheet,
    Tokenizer,
    layout_of,
)
from debias.errors import InputError
from debias.ranks.garbage import loading

if TYPE_CHECKING:
    from debias.config.data import DataSource


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(predict)


def predict(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]", help="Folder of a run; none with --model or --adapter.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The rows: .jsonl, .csv, .tsv, .parquet, .xlsx, packed too; a pattern; a hub id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .jsonl, .csv, .tsv or .parquet; default: JSON to stdout.")
    ] = None,
    text_field: Annotated[
        list[str] | None, typer.Option(help="A column of text, if not the run's name for it; repeat, in its order.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The column of ids; default: the run's, if it is there.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    prompt: PromptFile = None,
    labels: Labels = None,
    tokenizer: Tokenizer = None,
    bf16: Bf16 = None,
    load_in_4bit: FourBit = None,
    deepspeed: DeepSpeed = None,
    normalize: Normalize = "none",
    calibrate: Calibrate = "none",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most examples of a batch; default: by tokens.")] = None,
    split: Annotated[str, typer.Option(help="Of a hub dataset.")] = "train",
    name: Sheet = None,
    delimiter: Delimiter = None,
    quotes: Quotes = None,
) -> None:
    """Answer rows: of each its number, id, label and every label's probability. The rows need no label of their own."""
    from debias.cli.judge import names_of, refuse_with_run

    given = {"model": model, "adapter": adapter, "prompt": prompt, "labels": names_of(labels), "bf16": bf16}
    given |= {"load_in_4bit": load_in_4bit, "tokenizer": tokenizer}
    run = _one(runs)
    if run is not None:
        refuse_with_run(given)
    elif model is None and adapter is None:
        raise InputError("nothing to ask: give the folder of a run, or --model or --adapter")
    source = _source(data, split=split, **layout_of(name, delimiter, quotes))

    with loading():
        from debias.inference.answers import Scoring
        from debias.inference.any_model import Given
        from debias.inference.predicting import Asked, predict_rows

    asked = Asked(source, tuple(text_field or ()), id_field)
    scoring = Scoring(normalize, calibrate)  # type: ignore[arg-type]
    who = Given(**given, deepspeed=deepspeed) if run is None else run  # type: ignore[arg-type]
    predict_rows(who, asked, out, scoring=scoring, deepspeed=deepspeed, batch_size=batch_size)
    if out is not None:
        typer.echo(out)


def _source(data: str | None, **told: Any) -> "DataSource":
    from debias.config.data import DataSource
    from debias.config.reading import parse

    if data is None:
        raise InputError("--data is missing: a file of rows, a pattern of files, or a hub id")
    return parse(DataSource, {"source": data, **told}, "--data")


def _one(runs: list[Path] | None) -> Path | None:
    if runs and len(runs) > 1:
        raise InputError(f"{len(runs)} runs were given ({', '.join(map(str, runs[:3]))}); predict asks one")
    return runs[0] if runs else None
