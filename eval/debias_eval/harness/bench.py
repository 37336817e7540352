"""Samples judged in a second: debias beside lm-evaluation-harness, one model in memory, the same prompts, in turn.

Shapes: N examples, C labels.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from debias.config.data import Strict
from debias.config.reading import parse
from debias.config.run import RunConfig
from debias.data import Example
from debias.errors import InputError
from debias_eval.harness.export import Task, task_name, task_of, write
from debias_eval.reading.suite import load_suite
from debias_eval.scores.scoring import Floats

Judge = Callable[[int | None], Floats]  # scores of so many examples, of all without a number
log = logging.getLogger("debias.bench.step")  # shown as the command line shows the lines of debias
LABELS = ("entailment", "neutral", "contradiction")
MODEL = "package:smollm2"
TEMPLATE = "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:"
BATCH_SIZES = ("1", "8", "16", "32")
WORDS = (" True", " Neither", " False")
INSTRUCTION = """Say of each pair of sentences whether the second one is true if the first one is.

A man in a hat plays the violin in the street.
Question: A man is making music. True, False or Neither?
Answer: True

Two dogs are running along the beach.
Question: The dogs are asleep. True, False or Neither?
Answer: False

"""
# Template and answers. With answers of one token each both judges need one pass; longer ones cost the harness a pass
# for each label. A model that was not trained for a task is told it and shown examples, with which all prompts begin.
KINDS = {
    "one token": (TEMPLATE, WORDS),
    "sentence": (TEMPLATE, (" Yes, that follows", " It may be so or not", " No, that is wrong")),
    "one token, shown": (INSTRUCTION + TEMPLATE, WORDS),
}


class JudgeSetting(Strict):
    """One benchmark: `trial` examples choose the harness's batch size among `batch_sizes`, `limit` are timed.

    `auto` looks for the largest batch that the memory holds. On a CPU that is always 64, after five passes of 64 rows.
    """

    model: str | None = None  # package:smollm2, or the prompt's
    suite: str = "snli"
    limit: int = 300
    rounds: int = 3
    threads: int = 1
    bf16: bool | None = None  # the prompt's, or float32
    seed: int = 0
    trial: int = 96
    batch_sizes: tuple[str, ...] | None = None  # 1, 8, 16, 32, and on a GPU auto
    kinds: tuple[str, ...] = tuple(KINDS)  # of those built in


@dataclass(frozen=True)
class Timed:
    """One pass over `n` examples: scores `[N, C]`, seconds on the clock and of the processor."""

    scores_NC: Floats
    wall: float
    cpu: float

    def speed(self, clock: str) -> float:
        """Examples per second of the clock `wall` or `cpu`."""
        return len(self.scores_NC) / float(getattr(self, clock))


def bench_judge(setting: JudgeSetting, prompt: RunConfig | None = None) -> dict[str, Any]:
    """Samples per second of both, median and range over `rounds` interleaved pairs, and whether they answer alike.

    Without `prompt` (a run's settings) `kinds` of prompts and answers are timed. `fewer_products`: by how much fewer
    multiplications our passes have than the harness's, padding apart; what is gained beyond that is gained elsewhere.
    What is timed is
    the scoring with its tokenization; loading, what is looked at once in a model, and the harness's own rendering of
    prompts and aggregation are left out.
    """
    if find_spec("lm_eval") is None:
        raise InputError("bench judge compares with lm-evaluation-harness; pip install 'debias[harness]'")
    import torch

    torch.set_num_threads(setting.threads)
    asked = _configs(setting, prompt)
    suite = load_suite(setting.suite)
    tasks = {name: task_of(suite, config, limit=setting.limit, seed=setting.seed) for name, config in asked.items()}
    loaded = _load(next(iter(asked.values())))
    rows = []
    for name, config in asked.items():
        log.info("answers: %s", name)
        # A processor without bf16 of its own gets a float32 model, and both judges with it.
        same = config.model_copy(update={"bf16": loaded.config.bf16})
        judges = _Judges(loaded.model, same, tasks[name])
        rows.append({"answers": name, "model": config.model, **_measure(judges, setting)})
    versions = {name: version(name) for name in ("torch", "transformers", "lm_eval")}
    return {"setting": setting.model_dump(), "versions": versions, "rows": rows}


def _configs(setting: JudgeSetting, prompt: RunConfig | None) -> dict[str, RunConfig]:
    """By kind of answers: how the model is asked."""
    changes = {key: value for key in ("model", "bf16") if (value := getattr(setting, key)) is not None}
    if prompt:
        return {"as prompted": prompt.model_copy(update=changes)}
    if odd := [kind for kind in setting.kinds if kind not in KINDS]:
        raise InputError(f"--kind: {odd[0]!r} is none of {', '.join(map(repr, KINDS))}")
    asked = {}
    for name in setting.kinds:
        template, answers = KINDS[name]
        words = dict(zip(LABELS, answers, strict=True))
        values: dict[str, Any] = {
            "head": "causal_lm",
            "data": {"train": "generated", "labels": LABELS},
            "output_dir": "none",
        }
        values |= {"prompt": {"template": template, "verbalizers": words}, "max_length": 1024, "model": MODEL}
        asked[name] = parse(RunConfig, {**values, **changes}, where="bench judge")
    return asked


def _load(config: RunConfig) -> Any:
    from debias.inference.answers import Scoring
    from debias.inference.loading import load

    return load(config, config.model, None, Scoring())


class _Judges:
    """The two judges of one task, over one model, each with a tokenizer of its own."""

    def __init__(self, model: Any, config: RunConfig, task: Task) -> None:
        from debias.building.task import build_task
        from debias.models.load import load_tokenizer

        self.model, self.config, self.task = model, config, task
        self.device = next(model.parameters()).device.type
        self.ours = build_task(config, load_tokenizer(config.model, config.head))
        self.tokenizer = load_tokenizer(config.model, config.head)
        self.requests = _requests(task)

    def debias(self) -> Judge:
        """Ours, with nothing remembered of another pass, and what it looks at once in a model and a suite done."""
        import torch

        from debias.inference.predictor import Predictor

        predictor = Predictor(self.model, self.ours, self.config)
        fields = len(self.config.data.text_fields)
        predictor.label_scores([Example("", (f"warming {word}",) * fields, 0) for word in ("up", "engines", "words")])
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.config.bf16):
            predictor.answers.look_at(self._prompts())
        return lambda most: np.asarray(predictor.label_scores(self.task.examples[:most]))

    def _prompts(self) -> list[tuple[int, ...]]:
        """The tokens of each distinct prompt."""
        encoded = self.ours.encode(self.task.examples, with_answer=False).features
        return list(dict.fromkeys(tuple(feature["input_ids"]) for feature in encoded))

    def fewer_products(self) -> float:
        """Multiplications of the harness's passes over those of ours, in linear layers, without padding."""
        from torch import nn

        from debias.inference.predictor import Predictor

        scorer, prompts = Predictor(self.model, self.ours, self.config).answers, self._prompts()
        readout: Any = self.ours.readout
        answers = [len(ids) for ids in readout.verbalizer_ids]
        head = self.model.get_output_embeddings()
        layers = (one for one in self.model.modules() if isinstance(one, nn.Linear) and one is not head)
        of_token, of_logits = sum(one.weight.numel() for one in layers), head.weight.numel()
        passes = [0] if max(answers) == 1 else [length - 1 for length in answers]  # it shares one that is the same
        theirs = sum(len(ids) + more for ids in prompts for more in passes) * (of_token + of_logits)
        tokens, kept = scorer.passed(prompts)
        return float(theirs / (tokens * of_token + kept * of_logits))

    def harness(self, batch_size: str) -> Judge:
        """The Hugging Face backend of the harness, with this batch size or `auto`."""
        from lm_eval.models.huggingface import HFLM

        labels = len(self.config.data.labels)
        backend = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=batch_size)

        def judge(most: int | None) -> Floats:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints the batch sizes that it tries
                answers = backend.loglikelihood(self.requests[: most and most * labels], disable_tqdm=True)
            return np.array([score for score, _ in answers]).reshape(-1, labels)

        return judge


def _requests(task: Task) -> list[Any]:
    """The harness's own requests for an exported task: for each example one for each answer."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    name = task_name(task.suite)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        write([task], Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        asked = manager.load([name])["tasks"][name]
        asked.set_config(key="num_fewshot", value=0)
        asked.build_all_requests(rank=0, world_size=1)
    return sorted(asked.instances, key=lambda one: (one.doc_id, one.idx))


def _measure(judges: _Judges, setting: JudgeSetting) -> dict[str, Any]:
    """The row of one prompt: batch sizes tried, then both in turn, each first in every second round."""
    clock = "cpu" if judges.device == "cpu" else "wall"  # a CPU may be shared, and its processor's time is ours alone
    judges.harness("1")(2)
    sizes = setting.batch_sizes or (*BATCH_SIZES, *(("auto",) if clock == "wall" else ()))
    tried = {size: _timed(judges.harness(size), setting.trial) for size in sizes}
    best = max(tried, key=lambda size: tried[size].speed(clock))
    ways: list[tuple[str, Callable[[], Judge]]] = [
        ("harness", partial(judges.harness, best)),
        ("debias", judges.debias),
    ]
    runs: dict[str, list[Timed]] = {name: [] for name, _ in ways}
    for turn in range(setting.rounds):
        for name, ready in ways if turn % 2 == 0 else reversed(ways):
            runs[name].append(_timed(ready()))
            log.info("round %d: %s %.2f a second", turn + 1, name, runs[name][-1].speed(clock))
    pairs = list(zip(runs["harness"], runs["debias"], strict=True))
    clocks = ("wall", "cpu") if clock == "cpu" else ("wall",)
    return {
        "examples": len(judges.task.examples),
        "device": judges.device,
        "dtype": str(judges.model.dtype).removeprefix("torch."),
        "harness_batch_size": best,
        "harness_trials": {size: round(one.speed(clock), 3) for size, one in tried.items()},
        **{name: {way: _spread([one.speed(way) for one in timed]) for way in clocks} for name, timed in runs.items()},
        "ratio": {way: _spread([ours.speed(way) / theirs.speed(way) for theirs, ours in pairs]) for way in clocks},
        "fewer_products": round(judges.fewer_products(), 3),
        **_agreement(pairs[0][0].scores_NC, pairs[0][1].scores_NC),
    }


def _timed(judge: Judge, most: int | None = None) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    scores_NC = judge(most)
    return Timed(scores_NC, time.perf_counter() - wall, time.process_time() - cpu)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def _agreement(theirs_NC: Floats, ours_NC: Floats) -> dict[str, Any]:
    return {
        "same_answer": float((theirs_NC.argmax(1) == ours_NC.argmax(1)).mean()),
        "largest_difference": float(f"{np.abs(theirs_NC - ours_NC).max():.3g}"),
    }


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_judge` returned."""
    from rich.table import Table

    setting, rows = result["setting"], result["rows"]
    clock = "samples / CPU s" if rows[0]["device"] == "cpu" else "samples / s"
    table = Table(
        title=f"{rows[0]['model']} on {rows[0]['examples']} of {setting['suite']}, {rows[0]['dtype']}, "
        f"{rows[0]['device']}, {setting['threads']} thread(s), {setting['rounds']} interleaved rounds; {clock}"
    )
    headings = ("answers", "harness, best batch", "debias", "x harness (min .. max)", "on the clock")
    for heading in (
        *headings,
        "fewer products",
        "same answer",
        "largest difference",
        f"harness by batch size ({setting['trial']} examples)",
    ):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    for row in rows:
        way = "cpu" if row["device"] == "cpu" else "wall"
        table.add_row(
            row["answers"],
            f"{_shown(row['harness'][way], 1)} @ {row['harness_batch_size']}",
            _shown(row["debias"][way], 1),
            _shown(row["ratio"][way], 2),
            _shown(row["ratio"]["wall"], 2),
            f"{row['fewer_products']:.2f}",
            f"{row['same_answer']:.1%}",
            f"{row['largest_difference']:.1e}",
            ", ".join(f"{size}: {speed:.1f}" for size, speed in row["harness_trials"].items()),
        )
    return table


def _shown(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} .. {spread['max']:.{digits}f})"
