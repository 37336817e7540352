"""Run folders of two methods and several seeds, simulated: what the report is looked at with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data import Example
from debias_eval.reading.suite import available_suites, load_suite
from debias_eval.results.files import examples_sha256, write_results
from debias_eval.scores.scoring import Judged, score

NLI = ("entailment", "neutral", "contradiction")
HANS = tuple(
    f"{heuristic}/{label}"
    for heuristic in ("lexical_overlap", "subsequence", "constituent")
    for label in ("entailment", "not_entailment")
)
DIAGNOSTIC = tuple(
    f"{area}={name}"
    for area, names in (
        ("Knowledge", ("Common sense", "World knowledge")),
        (
            "Lexical Semantics",
            (
                "Factivity",
                "Lexical entailment",
                "Morphological negation",
                "Named entities",
                "Quantifiers",
                "Redundancy",
                "Symmetry/Collectivity",
            ),
        ),
        (
            "Logic",
            (
                "Conditionals",
                "Conjunction",
                "Disjunction",
                "Double negation",
                "Downward monotone",
                "Existential",
                "Intervals/Numbers",
                "Negation",
                "Non-monotone",
                "Temporal",
                "Universal",
                "Upward monotone",
            ),
        ),
        (
            "Predicate-Argument Structure",
            (
                "Active/Passive",
                "Anaphora/Coreference",
                "Coordination scope",
                "Core args",
                "Datives",
                "Ellipsis/Implicits",
                "Genitives/Partitives",
                "Intersectivity",
                "Nominalization",
                "Prepositional phrases",
                "Relative clauses",
                "Restrictivity",
            ),
        ),
    )
    for name in names
)
SUITES: dict[str, dict[str, Any]] = {
    "biased_snli": {
        "groups": ("bias-aligned", "bias-conflicting"),
        "base": 0.84,
        "hard": 0.42,
        "gain": 0.09,
        "drop": 0.02,
    },
    "hans": {
        "groups": HANS,
        "labels": ("entailment", "not_entailment"),
        "base": 0.95,
        "hard": 0.2,
        "gain": 0.13,
        "drop": 0.03,
    },
    "snli": {"groups": ("partial_easy", "partial_hard"), "base": 0.91, "hard": 0.73, "gain": 0.012, "drop": 0.004},
    "mnli": {"groups": ("partial_easy", "partial_hard"), "base": 0.79, "hard": 0.61, "gain": 0.015, "drop": 0.002},
    "cad_nli": {
        "groups": ("original", "revised_hypothesis", "revised_premise"),
        "base": 0.77,
        "hard": 0.6,
        "gain": 0.03,
        "drop": 0.0,
        "clusters": 3,
    },
    "glue_diagnostic": {"groups": DIAGNOSTIC, "base": 0.52, "hard": 0.24, "gain": 0.04, "drop": 0.01},
    "wanli": {"groups": (), "base": 0.58, "hard": 0.58, "gain": 0.02, "drop": 0.01},
    "breaking_nli": {
        "groups": (
            "antonyms",
            "cardinals",
            "colors",
            "countries",
            "drinks",
            "instruments",
            "materials",
            "nationalities",
            "ordinals",
            "planets",
            "plants",
            "rooms",
            "synonyms",
            "vegetables",
        ),
        "base": 0.86,
        "hard": 0.46,
        "gain": 0.06,
        "drop": 0.01,
    },
}
HARD = (
    "conflicting",
    "not_entailment",
    "hard",
    "revised",
    "planets",
    "instruments",
    "drinks",
    "nationalities",
    "egation",
    "onotone",
    "Factivity",
    "scope",
    "Ellipsis",
)

Texts = Callable[[str, int], Sequence[tuple[str, str]]]


def synthetic_texts(suite: str, n: int) -> list[tuple[str, str]]:
    """Pairs that need no data."""
    people = ("doctor", "lawyer", "president", "student", "tourist")
    return [
        (
            f"The {people[i % 5]} near the {people[(i + 2) % 5]} believed story {i}.",
            f"The {people[(i + 2) % 5]} believed.",
        )
        for i in range(n)
    ]


def simulate(
    folder: Path,
    methods: Sequence[str] = ("erm", "edge"),
    seeds: int = 5,
    suites: Sequence[str] = tuple(SUITES),
    n: int = 1200,
    texts: Texts = synthetic_texts,
    **config: Any,
) -> list[Path]:
    """Finished run folders `METHOD_seedS`, each judged on every suite; the same arguments give the same folders."""
    runs = []
    for rank, method in enumerate(methods):
        for seed in range(seeds):
            run = folder / f"{method}_seed{seed}"
            (run / "adapter").mkdir(parents=True, exist_ok=True)
            _write_run(run, method, seed, config)
            for suite in suites:
                _write_suite(run, suite, rank, seed, n, texts)
            runs.append(run)
    return runs


def _write_run(run: Path, method: str, seed: int, config: dict[str, Any]) -> None:
    settings = {
        "model": "package:minilm",
        "data": {"train": "snli/train.jsonl.gz"},
        "output_dir": str(run),
        "max_steps": 2000,
        "learning_rate": 1e-3,
        "method": method,
        "seed": seed,
    }
    (run / "config.yaml").write_text(dump_config(RunConfig.model_validate(settings | config)))
    info = {
        "status": "finished",
        "seed": seed,
        "seconds": 1834.2 + seed,
        "steps": 2000,
        "selection": "last",
        "commit": "3f9c2a71be04",
        "command": f"debias train launch/recipes/minilm_{method}.yaml seed={seed}",
        "train_examples": 549367,
        "parameters": {"trainable": 1327104, "all": 24042243, "four_bit": 0},
        "versions": {
            "python": "3.11.7",
            "debias": "0.1.0",
            "torch": "2.9.0",
            "transformers": "5.24.0",
            "peft": "0.21.2",
        },
        "gradients": "single_pass",
        "acts_on": {"tensors": 72, "elements": 1327104},
        "machine": {"device": "cpu"},
    }
    (run / "run.json").write_text(json.dumps(info))
    random = np.random.default_rng(seed)
    lines = [_line(step, method, random) for step in range(10, 2001, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _line(step: int, method: str, random: np.random.Generator) -> dict[str, Any]:
    late = step / 2000
    line = {
        "step": step,
        "loss": 0.55 + 0.6 * np.exp(-4 * late) + (0.03 if method != "erm" else 0) + random.normal(0, 0.03),
        "cosine": 0.98 - 0.35 * late + random.normal(0, 0.03),
    }
    if method != "erm":
        line["removed_share"] = float(np.clip(0.15 + 0.5 * late + random.normal(0, 0.03), 0, None))
        layers = {str(i): float(np.clip(0.1 + 0.1 * i * late + random.normal(0, 0.02), 0, None)) for i in range(6)}
        line["removed_share_by_layer"] = layers
        line["cosine_by_layer"] = {name: 1 - 1.6 * value for name, value in layers.items()}
    return {key: value if isinstance(value, dict | int) else float(value) for key, value in line.items()}


def _write_suite(run: Path, suite: str, rank: int, seed: int, n: int, texts: Texts) -> None:
    spec = SUITES[suite]
    labels, groups = spec.get("labels", NLI), spec["groups"]
    shared = np.random.default_rng(len(suite))  # the same examples, and the same easy ones, in every run
    gold_N = shared.integers(len(labels), size=n)
    ease_N = shared.random(n)
    group_N = [groups[i % len(groups)] if groups else None for i in range(n)]
    if suite == "hans":
        gold_N = np.array([int("/not_" in str(name)) for name in group_N])
    level = {name: _level(spec, name, rank, seed) for name in {*group_N}}
    own = np.random.default_rng([seed, rank, len(suite)])
    right_N = 0.75 * ease_N + 0.25 * own.random(n) < np.array([level[name] for name in group_N])
    wrong_N = (gold_N + own.integers(1, len(labels), size=n)) % len(labels)
    prediction_N = np.where(right_N, gold_N, wrong_N)
    sure_N = np.clip(
        np.where(right_N, own.beta(6, 1.6, size=n), own.beta(4, 2.2, size=n)) + (0.1 - 0.07 * rank),
        1 / len(labels) + 0.01,
        0.995,
    )
    probabilities_NC = np.repeat(((1 - sure_N) / (len(labels) - 1))[:, None], len(labels), axis=1)
    probabilities_NC[np.arange(n), prediction_N] = sure_N
    clusters = tuple(f"c{i // spec['clusters']}" for i in range(n)) if "clusters" in spec else ()
    judged = Judged(tuple(labels), gold_N, prediction_N, probabilities_NC, tuple(group_N), clusters)
    examples = [
        Example(f"{suite}-{i}", pair, int(gold_N[i]), group_N[i], cluster=clusters[i] if clusters else None)
        for i, pair in enumerate(texts(suite, n))
    ]
    write_results(run, _result(suite, spec, judged, examples), examples, judged)


def _version(suite: str) -> int:
    return load_suite(suite).version if suite in available_suites() else 1


def _level(spec: dict[str, Any], name: str | None, rank: int, seed: int) -> float:
    hard = any(word in str(name) for word in HARD)
    fixed = np.random.default_rng(sum(map(ord, str(name)))).normal(0, 0.05)
    moved = np.random.default_rng([seed, rank, sum(map(ord, str(name)))]).normal(0, 0.02)
    change = rank * (spec["gain"] if hard else -spec["drop"])
    return float(np.clip((spec["hard"] if hard else spec["base"]) + fixed + moved + change, 0.01, 0.99))


def _result(suite: str, spec: dict[str, Any], judged: Judged, examples: Sequence[Example]) -> dict[str, Any]:
    aligned = [name for name in spec["groups"] if "aligned" in name or "/entailment" in name or "easy" in name]
    conflicting = [
        name for name in spec["groups"] if "conflicting" in name or "/not_" in name or "partial_hard" in name
    ]
    numbers = score(judged, aligned, conflicting)
    correct_N = judged.prediction_N == judged.gold_N
    sure_N = judged.probabilities_NC[np.arange(len(correct_N)), judged.prediction_N]
    bins = []
    for k in range(15):
        mask = (sure_N > k / 15) & (sure_N <= (k + 1) / 15)
        known = (
            {"confidence": float(sure_N[mask].mean()), "accuracy": float(correct_N[mask].mean())} if mask.any() else {}
        )
        bins.append({"low": k / 15, "high": (k + 1) / 15, "n": int(mask.sum()), **known})
    floor = numbers["majority_accuracy"] + 0.04
    more: dict[str, Any] = {}
    if judged.clusters:
        whole = [all(correct_N[i : i + 3]) for i in range(0, len(correct_N), 3)]
        share = sum(whole) / len(whole)
        more["consistency"] = {"n": len(whole), "accuracy": share, "ci95": [max(0, share - 0.04), min(1, share + 0.04)]}
        more["clusters"] = len(whole)
    return (
        numbers
        | more
        | {
            "suite": suite,
            "version": _version(suite),
            "task": "nli",
            "description": f"Simulated pairs in the shape of {suite}.",
            "available": len(examples),
            "limit": None,
            "macro_f1": numbers["accuracy"] - 0.01,
            "reliability": bins,
            "partial_input": {
                "n": len(examples),
                "accuracy": floor,
                "ci95": [floor - 0.03, floor + 0.03],
                "fields": ["hypothesis"],
                "how": "TF-IDF and logistic regression, fitted on snli/train.jsonl.gz",
            },
            "overlap": {"rows": 12 if suite == "snli" else 0, "excluded": False},
            "judge": {
                "how": "classification",
                "dtype": "float32",
                "batch": "by tokens",
                "adapter_changes_logits": True,
            },
            "examples_sha256": examples_sha256(examples),
        }
    )
