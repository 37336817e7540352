"""The verbs to and from lm-evaluation-harness."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.options import Adapter, Model
from debias.cli.printing import AsJson, print_table

logger = logging.getLogger(__name__)


def add_to(app: typer.Typer) -> None:
    """Give the command line the verbs of this file."""
    app.command()(export_harness)
    app.command()(import_harness)


def export_harness(
    suites: Annotated[list[str], typer.Argument(help="Suites, collections (nli, all, ...) or suites' YAML files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for lm_eval --include_path.")],
    prompt: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run or of `eval --model -o`, a recipe, or with --model a file of template, verbalizers."
        ),
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Export a random subset of this size of each.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the subset.")] = 0,
    compare_tokens: Annotated[
        bool, typer.Option(help="Load the model's tokenizer; see that the harness scores the same tokens.")
    ] = True,
) -> None:
    """Write text suites as tasks of lm-evaluation-harness (0.4.13), with our examples and the model's prompt."""
    from debias.runs.outputs import check_output
    from debias_eval.harness.asked import asked_of
    from debias_eval.harness.export import command_line, export

    check_output(out)
    asked = asked_of(prompt, model, adapter)
    words = {"adapter": asked.adapter, "tokenizer": asked.tokenizer, "weights": asked.weights}
    done = export(suites, asked.config, out, limit=limit, seed=seed, compare_tokens=compare_tokens, **words)
    for name, reason in done.left_out.items():
        logger.warning("left out %s: %s", name, reason)
    typer.echo(command_line(done, asked))


def import_harness(
    samples: Annotated[list[Path], typer.Argument(help="samples_*.jsonl of lm_eval --log_samples, or their folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder; results go to its eval/.")],
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="The YAML file of a suite that is not built in.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn samples that lm-evaluation-harness logged into results: groups, worst group, gap, intervals."""
    from debias_eval.harness.samples import import_samples
    from debias_eval.reporting.tables import terminal_table

    results = import_samples(samples, out, suite or ())
    typer.echo(json.dumps(results, indent=2)) if as_json else print_table(terminal_table([out]))
