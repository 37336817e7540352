"""The command line: verbs and nothing else."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune language models that do not learn the data's shortcuts.",
)
bench_app = typer.Typer(no_args_is_help=True, help="Measure cost.")
app.add_typer(bench_app, name="bench")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
) -> None:
    """Train a model: LoRA, QLoRA, BitFit or full, with a method's update."""
    from debias.config import load_config

    config = _recipe(config)
    settings = load_config(config, overrides or [])
    from debias.train import train as run

    folder = run(settings, base=config.resolve().parent)
    if _first_rank():
        typer.echo(folder)


@app.command(name="eval")
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
        _print(terminal_table([run]))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page that compares runs."""
    from debias_eval.report import write_report

    typer.echo(write_report(runs, out))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the two runs and the report.")] = Path("demo"),
) -> None:
    """Train MiniLM twice on generated data with a planted shortcut, plainly and with EDGE, and compare."""
    from debias.demo import run_demo

    table, page = run_demo(out)
    _print(table)
    typer.echo(f"report: {page}")


@bench_app.command("step")
def bench_step(
    model: Annotated[
        str, typer.Option(help="package:minilm, package:smollm2, a folder or a hub id.")
    ] = "package:minilm",
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    length: Annotated[int | None, typer.Option(min=4)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds.")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    load_in_4bit: Annotated[bool | None, typer.Option("--load-in-4bit")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16")] = None,
    memory: Annotated[bool, typer.Option(help="Also measure peak memory, in processes of their own.")] = True,
    as_json: AsJson = False,
) -> None:
    """Time a training step: plain LoRA, the published procedure, two_pass, shared_forward, single_pass."""
    from debias.bench import bench_step as measure
    from debias.bench import setting_for, table_of

    changes: dict[str, Any] = {"batch": batch, "length": length, "rounds": rounds, "threads": threads}
    setting = setting_for(model, **changes, load_in_4bit=load_in_4bit, bf16=bf16)
    result = measure(setting, memory=memory)
    typer.echo(json.dumps(result, indent=2)) if as_json else _print(table_of(result))


def _print(table: Any) -> None:
    from rich.console import Console

    # Piped output keeps its columns: nothing is folded to a terminal that is not there.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _recipe(path: Path) -> Path:
    """The file itself, or the recipe of that name that comes with the package."""
    here = Path(__file__).parent
    shipped = [
        folder / path.with_suffix(".yaml").name for folder in (here / "recipes", here.parents[1] / "launch/recipes")
    ]
    return next((place for place in (path, *shipped) if place.is_file()), path)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _quiet() -> None:
    """Our log lines, and of the libraries only errors: their load reports bury what a run has to say."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("debias").setLevel(logging.INFO if _first_rank() else logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)


def main() -> None:
    """Entry point: InputError becomes one line on stderr and exit code 2."""
    _quiet()
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
