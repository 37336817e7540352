"""The verbs that judge: nothing here trains."""

import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli_print import AsJson, print_table


def add_to(app: typer.Typer) -> None:
    """Give the command line the verbs of this file."""
    app.command(name="eval")(evaluate)
    app.command()(report)


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    suite: Annotated[list[str], typer.Option("--suite", help="A suite's name or its YAML file; may be repeated.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Judge a random subset of this size.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a run on suites; writes RUN/eval/NAME.json and the predictions beside it."""
    from debias_eval.evaluate import evaluate_run
    from debias_eval.predict import load
    from debias_eval.report import terminal_table
    from debias_eval.suite import load_suite

    for name in suite:
        load_suite(name)  # all names are known before the model is loaded
    predictor = load(run)
    results = [evaluate_run(run, name, limit=limit, batch_size=batch_size, predictor=predictor) for name in suite]
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        print_table(terminal_table([run]))


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page that compares runs."""
    from debias_eval.report import write_report

    typer.echo(write_report(runs, out))
