"""The command line: verbs and nothing else."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.errors import InputError, Interrupted

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
def doctor(as_json: AsJson = False) -> None:
    """Look for what would stop or hang a run on this machine; exit code 1 if there is something."""
    import dataclasses

    from debias.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(
                f"{'ok  ' if check.ok else 'BAD '} {check.name}: {check.found}{check.cure and f'; cure: {check.cure}'}"
            )
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


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


@bench_app.command("zero")
def bench_zero(
    stage: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage (3).")] = None,
    world: Annotated[int | None, typer.Option(min=1, help="Ranks, on GPUs where there are any (2).")] = None,
    family: Annotated[str | None, typer.Option(help="qwen3 or llama.")] = None,
    layers: Annotated[int | None, typer.Option(min=1)] = None,
    hidden: Annotated[int | None, typer.Option(min=1)] = None,
    mlp: Annotated[int | None, typer.Option(min=1)] = None,
    vocab: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples of each rank.")] = None,
    length: Annotated[int | None, typer.Option(min=4)] = None,
    lora_r: Annotated[int | None, typer.Option(min=1)] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Interleaved rounds; 0 counts collectives alone.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each rank.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16")] = None,
    as_json: AsJson = False,
) -> None:
    """Time and count a step under DeepSpeed on several ranks: plain LoRA, single_pass, two_pass."""
    from debias.bench_zero import bench_zero as measure
    from debias.bench_zero import table_of, zero_setting

    sizes: dict[str, Any] = {"layers": layers, "hidden": hidden, "mlp": mlp, "vocab": vocab, "lora_r": lora_r}
    load: dict[str, Any] = {"batch": batch, "length": length, "rounds": rounds, "threads": threads, "bf16": bf16}
    result = measure(zero_setting(stage=stage, world=world, family=family, **sizes, **load))
    typer.echo(json.dumps(result, indent=2)) if as_json else _print(table_of(result))


@bench_app.command("combine")
def bench_combine(
    model: Annotated[str | None, typer.Option(help="Whose adapters (Qwen3-8B).")] = None,
    lora_r: Annotated[int | None, typer.Option(min=1)] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Take the share of one of so many ranks.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1)] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Time the combination alone for a large model's adapters, against the floor that memory sets."""
    from debias.bench_combine import bench_combine as measure
    from debias.bench_combine import combine_setting, table_of

    result = measure(combine_setting(model=model, lora_r=lora_r, ranks=ranks, rounds=rounds, threads=threads))
    typer.echo(json.dumps(result, indent=2)) if as_json else _print(table_of(result))


@bench_app.command("cost")
def bench_cost(
    model: Annotated[list[str] | None, typer.Option(help="One of the table's models; may be repeated.")] = None,
    world: Annotated[list[int] | None, typer.Option(min=1, help="Ranks; may be repeated.")] = None,
    lora_r: Annotated[int, typer.Option(min=1)] = 16,
    as_json: AsJson = False,
) -> None:
    """Compute what two gradients add to a step's communication, from 0.6B to 405B parameters, 2 to 4096 ranks."""
    from debias.bench_cost import bench_cost as compute
    from debias.bench_cost import table_of

    result = compute(model or (), world or (), lora_r)
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
    # A filter, for DeepSpeed sets the level when it is imported; and it prints to stdout, which is ours.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
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
    except Interrupted as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(Interrupted.exit_code) from None
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
