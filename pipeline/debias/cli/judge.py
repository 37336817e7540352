"""The verbs that judge: nothing here trains."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.cli.options import (
    Adapter,
    BaseOut,
    BatchSize,
    Bf16,
    Calibrate,
    Concurrency,
    DeepSpeed,
    EndpointUrl,
    FourBit,
    Labels,
    Limit,
    Model,
    Normalize,
    Overlap,
    PromptFile,
    ResultsOut,
    ShotsFrom,
    ShotsNumber,
    ShotsSeed,
    SubsetSeed,
    Suites,
    Timeout,
    Tokenizer,
)
from debias.cli.printing import AsJson, print_table
from debias.config.prompt_file import Shots
from debias.errors import InputError
from debias.ranks.garbage import loading
from debias.ranks.world import is_first


def add_to(app: typer.Typer) -> None:
    """Give the command line the verbs of this file."""
    app.command(name="eval")(evaluate)
    app.command()(report)
    app.command()(card)
    # `--against B B2` takes any number of folders, which an option cannot: the words are read as they come.
    app.command(context_settings={"ignore_unknown_options": True})(compare)


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, or a folder of runs (a sweep); none with --model or --adapter."),
    ] = None,
    suite: Suites = None,
    model: Model = None,
    adapter: Adapter = None,
    prompt: PromptFile = None,
    labels: Labels = None,
    tokenizer: Tokenizer = None,
    out: ResultsOut = None,
    bf16: Bf16 = None,
    load_in_4bit: FourBit = None,
    deepspeed: DeepSpeed = None,
    normalize: Normalize = "none",
    calibrate: Calibrate = "none",
    limit: Limit = None,
    seed: SubsetSeed = 0,
    batch_size: BatchSize = None,
    endpoint: EndpointUrl = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    overlap: Overlap = "count",
    base: BaseOut = None,
    shots: ShotsNumber = None,
    shots_from: ShotsFrom = None,
    shots_seed: ShotsSeed = None,
    as_json: AsJson = False,
) -> None:
    """Judge runs, or any model, on suites; writes eval/NAME.json into each folder and the predictions beside it.

    With --base FOLDER also the model that the runs were fine-tuned from, as it is, and how the two differ.
    """
    _check_choices(normalize, calibrate, overlap)
    given = {"model": model, "adapter": adapter, "prompt": prompt, "labels": names_of(labels), "bf16": bf16}
    given |= {"load_in_4bit": load_in_4bit, "tokenizer": tokenizer}
    served = {"endpoint": endpoint, "concurrency": concurrency, "timeout": timeout}
    scoring = {"normalize": normalize, "calibrate": calibrate}
    examples = _shots_of(shots, shots_from, shots_seed)
    pace = (limit, batch_size, seed, overlap)
    if not suite:
        raise InputError("--suite is missing: name a suite or a collection such as nli")
    if runs:
        refuse_with_run({**given, **served}, out)
        found = _judge_runs(runs, suite, deepspeed, scoring, pace, base, examples)
    elif base is not None:
        raise InputError("--base: of runs, whose base it is; give the folder of a run, or -o with --model")
    elif endpoint is not None:
        asked = {**given, "deepspeed": deepspeed, "batch_size": batch_size}
        found = _judge_served(asked, served, out, suite, {**scoring, "shots": examples}, pace)
    else:
        _refuse_without_endpoint(served)
        found = _judge_given({**given, "deepspeed": deepspeed}, out, suite, {**scoring, "shots": examples}, pace)
    # By what was asked for, not by how many runs a folder happens to hold.
    of_one = base is None and (not runs or list(found) == runs[:1])
    _show(found, base, as_json=as_json, of_one=of_one)


Found = dict[Path, list[dict[str, Any]]]


def _shots_of(number: int | None, source: str | None, seed: int | None) -> Shots | None:
    """What was said of examples in context, if they were asked for."""
    if number is None:
        if extra := _options_of({"shots_from": source, "shots_seed": seed}):
            raise InputError(f"{extra}: of --shots alone, the number of examples in context; give it, or leave it out")
        return None
    return Shots(number, seed or 0, source)


def _judge_runs(
    runs: Sequence[Path],
    suite: list[str],
    deepspeed: str | None,
    scoring: Any,
    pace: Any,
    base: Path | None,
    shots: Shots | None,
) -> Found:
    with loading():
        from debias_eval.judging.base import judge_base, runs_base
        from debias_eval.judging.judge import Judging
        from debias_eval.judging.models import judge_run
        from debias_eval.results.runs import run_folders

    if base is None and shots is not None:
        raise InputError(
            "--shots: a run is asked as it was trained; --base FOLDER shows them to its base, --model to any model"
        )
    folders = list(dict.fromkeys(one for path in runs for one in run_folders(path)))
    how = {"deepspeed": deepspeed, "judging": Judging(*pace), **scoring}
    # The base first: what is wrong with its folder or its examples is found before the runs are judged.
    found = {}
    if base is not None:
        asked = runs_base(folders, base, shots, without_training_rows=how["judging"].overlap == "exclude")
        found = {base: judge_base(asked, suite, **how).results}
    return found | {one: judge_run(one, suite, **how).results for one in folders}


def _judge_given(given: dict[str, Any], out: Path | None, suite: list[str], scoring: Any, pace: Any) -> Found:
    with loading():
        from debias_eval.judging.judge import Judging
        from debias_eval.judging.models import judge_given

    folder = _folder_of(given, out)
    return {folder: judge_given(folder, suite, given, judging=Judging(*pace), **scoring).results}


def _judge_served(
    given: dict[str, Any], served: dict[str, Any], out: Path | None, suite: list[str], scoring: Any, pace: Any
) -> Found:
    from debias.served.predictor import Endpoint
    from debias_eval.judging.endpoint import judge_served
    from debias_eval.judging.judge import Judging

    _check_served(given)
    folder = _folder_of(given, out)
    settings = {key: value for key, value in served.items() if value is not None and key != "endpoint"}
    endpoint = Endpoint(served["endpoint"], given["tokenizer"], **settings)
    about = (endpoint, given["model"], given["prompt"])
    return {folder: judge_served(folder, suite, *about, judging=Judging(*pace), **scoring).results}


def _check_served(given: dict[str, Any]) -> None:
    if extra := _options_of({key: given[key] for key in given if key not in ("model", "prompt", "tokenizer")}):
        raise InputError(f"{extra}: the server of --endpoint has loaded its model; leave it out")
    if given["model"] is None:
        raise InputError("--model is missing: the name that the server of --endpoint has for its model")
    if given["prompt"] is None:
        raise InputError("--prompt is missing: a file of template and verbalizers, or a recipe")


def _refuse_without_endpoint(served: dict[str, Any]) -> None:
    if extra := _options_of(served):
        raise InputError(f"{extra}: of --endpoint alone; give it, or leave it out")


def _options_of(given: dict[str, Any]) -> str:
    return ", ".join(f"--{key.replace('_', '-')}" for key, value in given.items() if value is not None)


def _show(found: Found, base: Path | None, *, as_json: bool, of_one: bool) -> None:
    from debias_eval.comparing.compare import against_base, comparison_table
    from debias_eval.reporting.tables import terminal_table

    if not is_first():
        return
    comparisons = [] if base is None else against_base(base, [folder for folder in found if folder != base])
    whole: Any = {str(folder): results for folder, results in found.items()}
    if as_json:
        told = next(iter(whole.values())) if of_one else whole
        pairs = [dataclasses.asdict(one) for one in comparisons]
        typer.echo(json.dumps(told if base is None else {"results": told, "comparisons": pairs}, indent=2))
        return
    print_table(terminal_table(list(found)))
    for one in comparisons:
        print_table(comparison_table(one))
        typer.echo(one.verdict)


def _check_choices(normalize: str, calibrate: str, overlap: str) -> None:
    _one_of("--normalize", normalize, ("none", "tokens", "characters"))
    _one_of("--calibrate", calibrate, ("none", "contextual", "pmi"))
    _one_of("--overlap", overlap, ("count", "exclude", "ignore"))


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{option}: {value!r} is not one of {', '.join(known)}")


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def refuse_with_run(given: dict[str, Any], out: Path | None = None) -> None:
    """InputError for options that say what a run has said itself."""
    if extra := _options_of({**given, "out": out}):
        raise InputError(f"{extra}: a run has its own; leave it out, or give --model instead of the run")


def _folder_of(given: dict[str, Any], out: Path | None) -> Path:
    if given["model"] is None and given["adapter"] is None:
        raise InputError("nothing to judge: give the folder of a run, or --model or --adapter with -o FOLDER")
    if out is None:
        raise InputError("-o is missing: a folder for the results")
    return out


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or a folder of runs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also the tables in Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Also the tables in LaTeX (booktabs).")] = None,
    card: Annotated[bool, typer.Option("--card", help="Also a model card in each run's adapter folder.")] = False,
) -> None:
    """Write one self-contained HTML page that compares runs; the first method (plain fine-tuning) is the reference."""
    from debias.runs.outputs import check_files, check_outside
    from debias_eval.reporting.card import write_cards
    from debias_eval.reporting.report import write_latex, write_markdown, write_report

    files = {"-o": out, "--markdown": markdown, "--latex": latex}
    check_files(files)
    check_outside(files)
    typer.echo(write_report(runs, out))
    _say_what_is_not_judged(runs)
    if markdown:
        typer.echo(write_markdown(runs, markdown))
    if latex:
        typer.echo(write_latex(runs, latex))
    if card:
        _tell(write_cards(runs))


def card(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or a folder of runs.")],
    force: Annotated[bool, typer.Option("--force", help="Replace cards that were edited by hand.")] = False,
) -> None:
    """Write a card, README.md beside each run's adapter or a judged model's results: results, floors, limits."""
    from debias_eval.reporting.card import write_cards

    _tell(write_cards(runs, force=force))


def _say_what_is_not_judged(runs: Sequence[Path]) -> None:
    from debias_eval.results.runs import read_runs

    bare = [run.name for run in read_runs(runs) if not run.results]
    if bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        typer.echo(f"not judged yet: {', '.join(bare[:3])}{more}; debias eval RUN --suite NAME", err=True)


def _tell(cards: Sequence[tuple[Path, str]]) -> None:
    for path, said in cards:
        typer.echo(f"{path}{said and f': {said}'}")


def compare(
    folders: Annotated[
        list[str], typer.Argument(metavar="A [A2 ...] [--against] B [B2 ...]", help="Runs, or folders of runs.")
    ],
    floor: Annotated[
        str | None, typer.Option(help="With --ceiling: a method, recipe or run where the gap begins, such as erm.")
    ] = None,
    ceiling: Annotated[
        str | None, typer.Option(help="And where it ends: how much of it does each method close?")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Of each suite; default: conflicting, else worst_group; aligned, adjusted, all."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Of --floor and --ceiling: as tables.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which of two methods is better, where, by how much, with intervals and the number of seeds.

    Two folders (`A B`) give B minus A; `A A2 --against B B2` gives the A's minus the B's. A folder of the runs of
    exactly two methods does as well. The runs of one side must differ in their seed alone. With --floor and --ceiling:
    how much of the gap between these two each other method closes.
    """
    if floor is not None or ceiling is not None:
        closings(folders, floor, ceiling, group, markdown, as_json)
        return
    if extra := _options_of({"group": group, "markdown": markdown}):
        raise InputError(f"{extra}: of --floor and --ceiling alone; give both, or leave it out")
    from debias_eval.comparing.compare import compare_folders, comparison_table

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


def closings(
    folders: list[str],
    floor: str | None,
    ceiling: str | None,
    group: str | None,
    out: Path | None,
    as_json: bool,
    *,
    arms: bool = False,
) -> None:
    """How much of the gap from floor to ceiling every other method closes."""
    from debias.runs.outputs import check_files
    from debias.runs.whole import write_or_say
    from debias_eval.comparing.closing import closings_in
    from debias_eval.reporting.closing import closing_lines, closing_markdown, closing_tables

    if floor is None or ceiling is None:
        raise InputError(f"--{'floor' if floor is None else 'ceiling'} is missing: the gap lies between both")
    if "--against" in folders:
        raise InputError("--against: not with --floor and --ceiling, which name the methods; leave it out")
    check_files({"--markdown": out} if out else {})
    kept = all(folder.endswith(".jsonl") for folder in folders)  # a study's, whose arms have names
    found = closings_in([Path(one) for one in folders], floor, ceiling, group, arms=arms or kept)
    if out:
        write_or_say(out, closing_markdown(found).encode())
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    for table in closing_tables(found):
        print_table(table)
    typer.echo("\n".join(closing_lines(found)))
