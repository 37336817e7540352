"""The command line: verbs and nothing else."""

import logging
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from debias.cli import (
    audit,
    bench,
    doctor,
    edit,
    fetch,
    harness,
    init,
    judge,
    launch,
    merge,
    methods,
    plan,
    predict,
    push,
    study,
    suites,
    sweep,
)
from debias.cli.printing import print_table
from debias.config.expanding import expanded_words
from debias.errors import InputError, Interrupted
from debias.ranks import world
from debias.ranks.failures import record, stopped
from debias.ranks.garbage import end_unsearched, loading

LONGEST_LINE = 4000  # characters of what is said about one fault, whatever a file holds

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every verb below
    help="Fine-tune language models that do not learn the data's shortcuts.",
)
app.add_typer(bench.app, name="bench")
app.add_typer(launch.app, name="launch")
init.add_to(app)
judge.add_to(app)
predict.add_to(app)
push.add_to(app)
suites.add_to(app)
methods.add_to(app)
audit.add_to(app)
sweep.add_to(app)
study.add_to(app)
plan.add_to(app)
doctor.add_to(app)
fetch.add_to(app)
edit.add_to(app)
merge.add_to(app)
harness.add_to(app)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"debias {metadata.version('debias')}")
        raise typer.Exit


@app.callback()
def debias(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune language models that do not learn the data's shortcuts."""


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
) -> None:
    """Train a model: LoRA, QLoRA, BitFit or full, with a method's update."""
    from debias.config.places import find_recipe
    from debias.config.reading import load_config

    config = find_recipe(config)
    with loading():
        settings = load_config(config, overrides or [])
        from debias.train import train as run
    folder = run(settings, base=config.resolve().parent)
    if world.is_first():
        typer.echo(folder)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the two runs and the report.")] = Path("demo"),
) -> None:
    """Train MiniLM on generated data with a planted shortcut, plainly and with two methods, and compare."""
    from debias.demo import run_demo

    table, page = run_demo(out)
    print_table(table)
    typer.echo(f"report: {page}")


def _quiet() -> None:
    """Our log lines, and of the libraries only errors: their load reports bury what a run has to say."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    for name in ("debias", "debias_eval"):
        logging.getLogger(name).setLevel(logging.INFO if world.is_first() else logging.WARNING)
    # A filter, for DeepSpeed sets the level when it is imported; and it prints to stdout, which is ours.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)


@cache
def _built() -> Any:
    """The verbs, read from their signatures once."""
    return typer.main.get_command(app)


def _run() -> NoReturn:
    """The verb; under torchrun a rank leaves the reason of its failure for who looks after all ranks."""
    try:
        code = _built()(standalone_mode=False)
    except typer.Abort:
        raise SystemExit(1) from None
    except Exception as error:
        _say_usage(error)
        if not isinstance(error, Interrupted):
            record(error)
        raise
    raise SystemExit(code or 0)


def _say_usage(error: Exception) -> None:
    """What typer says in a box about an option or a verb, as our one line; nothing for any other error."""
    if not hasattr(error, "format_message"):
        return
    if type(error).__name__ == "NoArgsIsHelpError":  # a group of verbs without one: its help
        error.show()  # type: ignore[attr-defined]
        raise SystemExit(2)
    told = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    raise InputError(f"{told}; {context.command_path if context else 'debias'} -h says what there is") from None


def _refuse(line: str) -> NoReturn:
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split(" "))
    shown = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."
    sys.stderr.write(f"error: {shown}\n")
    raise SystemExit(2) from None


def main() -> None:
    """Entry point: InputError becomes one line on stderr and exit code 2."""
    end_unsearched()
    sys.argv[1:] = world.without_local_rank(sys.argv[1:], os.environ)
    world.adopt_slurm(os.environ)
    try:
        world.check(os.environ)
        _quiet()
        sys.argv[1:] = expanded_words(sys.argv[1:])
        _run()
    except SystemExit as end:
        if not end.code:
            world.leave()
        raise
    except Interrupted as error:
        stopped()
        world.leave()
        sys.stderr.write(f"{error}\n")
        raise SystemExit(Interrupted.exit_code) from None
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:  # of no file: not what a user can mend
            raise
        _refuse(f"{error.filename}: {error.strerror}")
