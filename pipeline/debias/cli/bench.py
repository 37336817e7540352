"""The verbs of `debias bench`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.cli.printing import AsJson, print_table

app = typer.Typer(no_args_is_help=True, help="Measure cost.")


@app.command("step")
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
    way: Annotated[
        list[str] | None, typer.Option(help="Only this one (single_pass, ...) and plain ones; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time a training step: plain LoRA, plain runs of ours, the published procedure, each way to two gradients."""
    from debias.bench.step import bench_step as measure
    from debias.bench.step import setting_for, table_of

    changes: dict[str, Any] = {"batch": batch, "length": length, "rounds": rounds, "threads": threads}
    changes["ways"] = tuple(way) if way else None
    setting = setting_for(model, **changes, load_in_4bit=load_in_4bit, bf16=bf16)
    result = measure(setting, memory=memory)
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("zero")
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
    from debias.bench.zero import bench_zero as measure
    from debias.bench.zero import table_of, zero_setting

    sizes: dict[str, Any] = {"layers": layers, "hidden": hidden, "mlp": mlp, "vocab": vocab, "lora_r": lora_r}
    load: dict[str, Any] = {"batch": batch, "length": length, "rounds": rounds, "threads": threads, "bf16": bf16}
    result = measure(zero_setting(stage=stage, world=world, family=family, **sizes, **load))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("combine")
def bench_combine(
    model: Annotated[str | None, typer.Option(help="Whose adapters (Qwen3-8B).")] = None,
    lora_r: Annotated[int | None, typer.Option(min=1)] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Take the share of one of so many ranks.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1)] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Time the combination alone for a large model's adapters, against the floor that memory sets."""
    from debias.bench.combine import bench_combine as measure
    from debias.bench.combine import combine_setting, table_of

    result = measure(combine_setting(model=model, lora_r=lora_r, ranks=ranks, rounds=rounds, threads=threads))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))
    for name, why in result["left_out"].items():
        typer.echo(f"{name} is left out: {why}", err=True)


@app.command("cost")
def bench_cost(
    model: Annotated[list[str] | None, typer.Option(help="One of the table's models; may be repeated.")] = None,
    world: Annotated[list[int] | None, typer.Option(min=1, help="Ranks; may be repeated.")] = None,
    lora_r: Annotated[int, typer.Option(min=1)] = 16,
    as_json: AsJson = False,
) -> None:
    """Compute what two gradients add to a step's communication, from 0.6B to 405B parameters, 2 to 4096 ranks."""
    from debias.bench.cost import bench_cost as compute
    from debias.bench.cost import table_of

    result = compute(model or (), world or (), lora_r)
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("plan")
def bench_plan(
    model: Annotated[
        list[str] | None, typer.Option(help="package:minilm, package:smollm2 or Qwen3-0.6B; may be repeated (all).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold `debias plan` against measured peak memory of training steps on the CPU."""
    from debias.bench.plan import SIZES, cases, table_of, validate

    result = validate(cases(model or SIZES))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("gpu")
def bench_gpu(
    what: Annotated[
        list[str] | None, typer.Option(help="qlora, cap, trl, large, combine or full; may be repeated (all).")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="A carried shape (Qwen3-8B), or tiny.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, or cpu with --shape tiny.")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    length: Annotated[int | None, typer.Option(min=8)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds (3).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Timed in a turn (3).")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Of the whole runs of `full`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time QLoRA of a real shape on one GPU: each way to two gradients, a memory cap, larger shapes, whole runs."""
    from debias.bench.gpu import bench_gpu as measure
    from debias.bench.gpu import gpu_setting, tables_of

    sizes: dict[str, Any] = {"batch": batch, "length": length, "rounds": rounds, "steps": steps, "max_steps": max_steps}
    result = measure(gpu_setting(shape=shape, device=device, **sizes), tuple(what or ()))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for table in tables_of(result):
        print_table(table)


@app.command("growth")
def bench_growth(
    axis: Annotated[
        list[str] | None, typer.Option(help="batch, length, rank or layers; may be repeated (all).")
    ] = None,
    sizes: Annotated[int | None, typer.Option(min=3, max=5, help="Of each axis, the smallest first (5).")] = None,
    hidden: Annotated[int | None, typer.Option(min=16)] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Layers of the model (8).")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds (5).")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="The curves, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit how a step's CPU time and memory grow with batch, length, rank and number of adapted layers."""
    from debias.bench.growth import bench_growth as measure
    from debias.bench.growth import growth_setting, table_of
    from debias.bench.growth_picture import picture_of
    from debias.runs.whole import write_whole

    given: dict[str, Any] = {"sizes": sizes, "hidden": hidden, "depth": depth, "rounds": rounds}
    result = measure(growth_setting(axes=tuple(axis) if axis else None, **given))
    if picture is not None:
        write_whole(picture, picture_of(result))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("quarter")
def bench_quarter(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for JSON of each part and the page.")] = Path(
        "quarter"
    ),
    minutes: Annotated[float | None, typer.Option(min=0.1, max=60, help="For all parts together (11.5).")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="gradients, combination, large, engines, kernels or testbeds; may be repeated (all)."),
    ] = None,
    study: Annotated[Path | None, typer.Option(help="A study's YAML file, for testbeds.")] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny sizes, on the CPU.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Measure nothing: the page of what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """The first quarter of an hour on one GPU: six checks, each written down as it comes, so that a cut loses none."""
    from debias.bench.quarter.page import page_of
    from debias.bench.quarter.session import Session, gathered, run_session
    from debias.runs.whole import write_whole

    given: dict[str, Any] = {"minutes": minutes, "study": None if study is None else str(study)}
    session = Session(out=str(out), rehearse=rehearse, **{key: v for key, v in given.items() if v is not None})
    found = gathered(out) if page else run_session(session, tuple(part or ()))
    text = page_of(found)
    write_whole(out / "quarter.md", text + "\n")
    typer.echo(json.dumps(found, indent=2) if as_json else text)


@app.command("data")
def bench_data(
    rows: Annotated[int | None, typer.Option(min=64, help="Made-up rows of SNLI's length (500000).")] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer reads them (package:minilm).")] = None,
    world: Annotated[int | None, typer.Option(min=1, help="Ranks, which share what is kept (1).")] = None,
    max_length: Annotated[int | None, typer.Option(min=8)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what many rows cost before the first step, read first and again: memory beyond the model, and time."""
    from debias.bench.data import DataSetting, table_of
    from debias.bench.data import bench_data as measure

    given: dict[str, Any] = {"rows": rows, "model": model, "world": world, "max_length": max_length}
    result = measure(DataSetting(**{key: value for key, value in given.items() if value is not None}))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("eval")
def bench_eval(
    rows: Annotated[int | None, typer.Option(min=64, help="Made-up rows of SNLI's length (100000).")] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer reads them (package:minilm).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what judging many rows costs beyond the model, first and again: memory and CPU time."""
    from debias.bench.data import made_rows
    from debias.bench.small import small_classifier
    from debias_eval.judging.many import ManySetting, bench_many, table_of

    given: dict[str, Any] = {"rows": rows, "model": model}
    setting = ManySetting(**{key: value for key, value in given.items() if value is not None})
    result = bench_many(setting, made_rows, small_classifier)
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("pass")
def bench_pass(
    model: Annotated[str | None, typer.Option(help="A classifier's base (package:minilm).")] = None,
    rows: Annotated[int | None, typer.Option(min=2, help="Made-up rows of SNLI's length (640).")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds (3).")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Time a bias model's pass of the base over the training set, beside a plain epoch on the same rows."""
    from debias.bench.asked import AskedSetting, table_of
    from debias.bench.asked import bench_asked as measure

    given: dict[str, Any] = {"model": model, "rows": rows, "rounds": rounds, "threads": threads}
    result = measure(AskedSetting(**{key: value for key, value in given.items() if value is not None}))
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))


@app.command("judge")
def bench_judge(
    model: Annotated[str | None, typer.Option(help="A causal model (package:smollm2, or the prompt's).")] = None,
    suite: Annotated[str | None, typer.Option(help="A suite's name or its YAML file (snli).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples, drawn at random (300).")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds (3).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of both (1).")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16")] = None,
    trial: Annotated[int | None, typer.Option(min=1, help="Examples on which batch sizes are tried (96).")] = None,
    batch_size: Annotated[
        list[str] | None, typer.Option(help="Of the harness, a number or auto; may be repeated, and the best is timed.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="A run's folder or YAML file: its prompt, not those built in.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Of those built in, only this one; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time judging beside lm-evaluation-harness: the same model, examples, prompts and threads, in turn."""
    from debias_eval.harness.asked import read_prompt
    from debias_eval.harness.bench import JudgeSetting, table_of
    from debias_eval.harness.bench import bench_judge as measure

    given: dict[str, Any] = {"model": model, "suite": suite, "limit": limit, "rounds": rounds, "threads": threads}
    given |= {"bf16": bf16, "trial": trial, "batch_sizes": batch_size, "kinds": kind}
    setting = JudgeSetting(**{key: value for key, value in given.items() if value is not None})
    result = measure(setting, read_prompt(prompt) if prompt else None)
    typer.echo(json.dumps(result, indent=2)) if as_json else print_table(table_of(result))
