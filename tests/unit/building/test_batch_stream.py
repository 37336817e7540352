"""The stream of batches that a seed gives: token ids, facts and order, as digests that were taken once and stay."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from debias.building.examples import training_examples, validation_examples
from debias.building.method import build_order
from debias.building.task import build_task
from debias.config.run import RunConfig
from debias.data import generate
from debias.data.digests import digests_of

SIZE, STEP, BATCHES = 4, 8, 6  # samples of a micro-batch and of a step; micro-batches that are looked at
CAUSAL = {"head": "causal_lm", "prompt": tiny_runs.PROMPT}
PLANTED = {"cue": "!!", "field": "premise", "label": "neutral", "prevalence": 0.33, "strength": 0.9, "seed": 5}
FILE = {"source": "rows.jsonl", "limit": 150, "seed": 3}
GENERATED = {"source": "generated", "limit": 160}
# Settings of a run, and the digest of its stream.
STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "pairs": ({"data": {"train": GENERATED}}, "9cdb8ad8fa8cf28cc373dedbfd968e36"),
    "pairs_cut": ({"data": {"train": GENERATED}, "max_length": 12}, "fb0831eafce9e191ac4af432affa1ced"),
    "one_text": ({"data": {"train": FILE, "text_fields": ["hypothesis"]}}, "198ff3051066246c431da709621ddcd7"),
    "file_with_all": (
        {
            "data": {"train": FILE, "group_field": "kind", "id_field": "key", "validation": {**FILE, "limit": 9}},
            "bias_weight": {"source": "file", "column": "w"},
        },
        "464993280ccf6f99543e1d464d1ce61f",
    ),
    "whole_file": ({"data": {"train": "rows.csv"}}, "d1e4e9d4d6a04e92965a6feb96a658af"),
    "planted": (
        {"data": {"train": FILE, "planted_bias": PLANTED, "validation": "rows.jsonl"}},
        "93d22904a8d8b77d948a137958ef1c8e",
    ),
    "swapped": (
        {"data": {"train": FILE, "planted_bias": PLANTED, "swap": {"probability": 0.7}}},
        "5ca5ff5704b4339ced2981fdd276a2fe",
    ),
    "left_out": ({"data": {"train": FILE, "leave_out": {"fold": 1, "folds": 3}}}, "e3c45e4045a7afc43bbe6e639acfb408"),
    "all_at_once": (
        {"data": {"train": FILE, "planted_bias": PLANTED, "swap": {}, "leave_out": {"fold": 0, "folds": 2, "seed": 4}}},
        "f9a019645c5da6fe64468b470ef5c491",
    ),
    "resampled": (
        {"data": {"train": GENERATED}, "order": {"name": "resampled", "by": "label"}},
        "751fcb86c82924f50381fb022ab3d2c1",
    ),
    "prompts": ({**CAUSAL, "data": {"train": GENERATED}}, "3acc299f758f15d347c7b97f9d5f6848"),
    "prompts_cut": (
        {**CAUSAL, "data": {"train": FILE, "planted_bias": PLANTED}, "max_length": 20},
        "3e3622b3c42722a292a38211ebd92ac4",
    ),
    "packed": ({**CAUSAL, "data": {"train": FILE}, "packing": True}, "029c3263e6529c26f51fa43a13468ea8"),
    "probabilities": (
        {
            "data": {"train": FILE},
            "bias_model": {"name": "column", "columns": ["p0", "p1", "p2"]},
            "loss": "logit_correction",
        },
        "c779160c8d0353c61bc0b316e90d2268",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of the same 240 rows, some without a gold label, a group or an id of their own."""
    place = tmp_path_factory.mktemp("rows")
    rows = generate("train", 240, 2)
    for number, row in enumerate(rows):
        row["label"] = "-" if number % 17 == 3 else row["label"]
        row |= {"kind": ["a", "b", "ü"][number % 3], "w": number / 7, "p0": 0.5, "p1": 0.125, "p2": 0.375}
        row["key"] = None if number % 5 == 1 else f"own {number}"
        row["hypothesis"] += " maybe" * (number % 9)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = ("premise", "hypothesis", "label")
    lines = [",".join(f'"{row[field]}"' for field in fields) for row in rows]
    (place / "rows.csv").write_text("\n".join([",".join(fields), *lines]) + "\n")
    return place


def pieces(config: RunConfig, folder: Path) -> Iterator[Any]:
    """All that is seen of the data, in order."""
    words = tiny_runs.tokenizer(causal=config.head == "causal_lm")
    if config.head == "causal_lm":
        words.pad_token, words.padding_side = words.eos_token, "left"
    task, examples = build_task(config, words), training_examples(config, folder)
    encoded = task.encode(examples, with_answer=True)
    encoded.order = build_order(config)
    yield [len(examples), [example.id for example in examples], [example.bias_p for example in examples]]
    yield digests_of(examples).tolist()
    yield {name: [str(fact.dtype), fact.tolist()] for name, fact in encoded.facts.items()}
    sampler = encoded.sampler(STEP, config.seed)
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        yield order
        for start in range(0, BATCHES * SIZE, SIZE):
            yield told(task.collate([encoded[place] for place in order[start : start + SIZE]]))
    held_out = validation_examples(config, folder)
    yield digests_of(held_out).tolist()
    if held_out:
        scored = task.encode(held_out, with_answer=False)
        yield told(task.collate([scored[place] for place in range(SIZE)]))


def told(batch: Mapping[str, Mapping[str, torch.Tensor]]) -> Any:
    return {
        half: {name: [str(tensor.dtype), tensor.tolist()] for name, tensor in sorted(tensors.items())}
        for half, tensors in batch.items()
    }


def stream_of(settings: Mapping[str, Any], folder: Path) -> str:
    judged = {"eval_strategy": "epoch"} if "validation" in settings["data"] else {}
    config = tiny_runs.config_for(folder, folder / "run", **judged, **settings)
    digest = hashlib.sha256()
    for piece in pieces(config, folder):
        digest.update(json.dumps(piece, sort_keys=True).encode())
    return digest.hexdigest()[:32]


@pytest.mark.parametrize("name", STREAMS)
def test_a_seed_gives_the_same_batches_as_ever(name: str, folder: Path) -> None:
    settings, expected = STREAMS[name]
    assert stream_of(settings, folder) == expected
