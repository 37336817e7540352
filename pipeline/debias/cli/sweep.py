"""The verbs for many runs: train and judge a grid of them, and choose among them."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.cli.printing import AsJson, print_table
from debias.errors import InputError
from debias.sweep.runner import Judge


def add_to(app: typer.Typer) -> None:
    """Give the command line the verbs of this file."""
    app.command()(sweep)
    app.command()(select)


def sweep(
    recipes: Annotated[list[Path], typer.Argument(help="Runs' YAML files, or names of shipped recipes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The sweep's folder; runs are RECIPE/SETTINGS/seedN in it.")],
    seeds: Annotated[str, typer.Option(help="How many, from 0, or a list: 3,7,11.")] = "5",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=V1,V2", help="A grid over a setting; may be repeated.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="Judge each run on a suite, a collection or a suite's file.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge a random subset of this size.")] = None,
    new_data: Annotated[bool, typer.Option("--new-data", help="Seeds also draw planted bias and subset.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    launcher: Annotated[str, typer.Option(help="In the place of python, such as 'torchrun --nproc-per-node 2'.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train anew what was trained with other settings.")
    ] = False,
    only: Annotated[list[int] | None, typer.Option(min=0, help="Only the K-th run, from 0; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    print_commands: Annotated[bool, typer.Option("--print-commands", help="A command a run, for a job array.")] = False,
) -> None:
    """Train and judge recipes x settings x seeds; the same command again goes on where it stopped.

    Exit code 1 if a run failed (the others go on), 75 if a signal stopped the sweep.
    """
    from debias.runs.outputs import check_output
    from debias.sweep.grid import parse_grid, parse_seeds, plan_sweep
    from debias.sweep.runner import Sweep
    from debias_eval.judging.missing import Missing

    check_output(out)
    if print_commands and only:
        raise InputError("--print-commands is for all runs; leave out --only")
    planned = plan_sweep(recipes, parse_seeds(seeds), parse_grid(set_ or []), out, new_data=new_data)
    runs = _only(planned, only)
    judge = Missing(suite or [], limit)
    work = Sweep(runs, out, judge, jobs, launcher, overwrite)
    if print_commands:
        for run in runs:
            typer.echo(f"{_this_command()} --only {run.index}  # {run.name}")
        return
    work.check()
    if dry_run:
        print_table(_todo(runs, judge))
        return
    work.run()
    _show([run.folder for run in runs])
    if work.failed:
        sys.stderr.write("".join(f"failed: {name}: {why}\n" for name, why in work.failed.items()))
        raise typer.Exit(1)


def select(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, any folder of runs, or a study's kept runs.")],
    rule: Annotated[str, typer.Option(help="last, validation, worst_class, pseudo_groups or oracle.")] = "validation",
    suite: Annotated[str | None, typer.Option(help="oracle: the suite whose answers it chooses by.")] = None,
    against_suite: Annotated[
        str | None, typer.Option(help="Also say how well the rule ranks all runs by this suite; it chooses nothing.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Of --against-suite; default: conflicting, else worst_group, else all; also aligned."),
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Choose among these arms of a study; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose a configuration of each method by the mean over its seeds; only oracle looks at a suite.

    Of a study's kept runs (its file in .jsonl), and with --arm, one choice is made among the arms.

    With --against-suite: Spearman's correlation of the rule, and of the other figures of validation, with the accuracy
    on a group of that suite.
    """
    from debias_eval.results.ranking import ranking_table, rankings_in
    from debias_eval.results.selection import choice_table, choices_in, remember

    if group is not None and against_suite is None:
        raise InputError("--group goes with --against-suite, whose group it is; give both, or leave it out")
    choices = choices_in(folder, rule, suite, arm or ())
    found = rankings_in(folder, rule, against_suite, group, arm or ()) if against_suite is not None else None
    remember(choices)
    if as_json:
        told: Any = [choice.as_dict() for choice in choices]
        told = told if found is None else {"choices": told, "ranking": found.as_dict()}
        typer.echo(json.dumps(told, indent=2))
        return
    print_table(choice_table(choices))
    if found is not None:
        print_table(ranking_table(found))


def _only(planned: list[Any], only: Sequence[int] | None) -> list[Any]:
    if only is None or not only:
        return planned
    if bad := [k for k in only if k >= len(planned)]:
        raise InputError(f"--only {bad[0]}: the sweep has {len(planned)} runs, 0 to {len(planned) - 1}")
    return [planned[k] for k in dict.fromkeys(only)]


def _this_command() -> str:
    words = [word for word in sys.argv[1:] if word != "--print-commands"]
    return shlex.join(["debias", *words])


def _todo(runs: Sequence[Any], judge: Judge) -> Any:
    from rich.table import Table

    from debias.sweep.grid import changed_settings, state_of

    table = Table(caption=f"{len(runs)} runs")
    for name in ("#", "run", "training", "still to be judged on"):
        table.add_column(name, overflow="fold")
    for run in runs:
        state = state_of(run.folder)
        if changed_settings(run) is not None:
            state = "anew: its settings or its data have changed"
        elif state == "begun":
            state = "begun, to go on"
        suites = judge.missing(run.folder)
        table.add_row(str(run.index), run.name, state, ", ".join(suites) or "–")
    return table


def _show(folders: Sequence[Path]) -> None:
    """The table of what has been judged, whatever may have failed."""
    from debias.runs.names import EVAL
    from debias_eval.reporting.tables import terminal_table

    judged = [folder for folder in folders if any((folder / EVAL).glob("*.json"))]
    if judged:
        print_table(terminal_table(judged))
