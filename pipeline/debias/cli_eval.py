"""The verbs that judge: nothing here trains."""

import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli_print import AsJson, print_table
from debias.errors import InputError


def add_to(app: typer.Typer) -> None:
    """Give the command line the verbs of this file."""
    app.command(name="eval")(evaluate)
    app.command()(report)
    # `--against B B2` takes any number of folders, which an option cannot: the words are read as they come.
    app.command(context_settings={"ignore_unknown_options": True})(compare)


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


def compare(
    folders: Annotated[
        list[str], typer.Argument(metavar="A [A2 ...] [--against] B [B2 ...]", help="Runs, or folders of runs.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say which of two methods is better, where, by how much, with intervals and the number of seeds.

    Two folders (`A B`) give B minus A; `A A2 --against B B2` gives the A's minus the B's. A folder of the runs of
    exactly two methods does as well. The runs of one side must differ in their seed alone.
    """
    import dataclasses

    from debias_eval.compare import compare_folders, comparison_table

    mine, against = folders, []
    if "--against" in folders:
        cut = folders.index("--against")
        mine, against = folders[cut + 1 :], folders[:cut]
        if not mine or not against:
            raise InputError("--against: expected folders of runs before it and after it")
    comparison = compare_folders([Path(one) for one in mine], [Path(one) for one in against])
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(comparison), indent=2))
    else:
        print_table(comparison_table(comparison))
        typer.echo(comparison.verdict)
