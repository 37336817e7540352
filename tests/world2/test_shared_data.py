"""Two ranks of one machine read and tokenize together: one does it, and both have the same."""

import json
import logging
from pathlib import Path

import pytest
import tiny_runs
import torch.distributed as dist

from debias.building.examples import training_examples
from debias.building.task import build_task
from debias.data import generate
from debias.data.digests import digests_of


def test_one_rank_tokenizes_for_both(
    rank: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = [str(tmp_path_factory.mktemp("shared")) if rank == 0 else None]
    dist.broadcast_object_list(shared)
    folder = Path(str(shared[0]))
    if rank == 0:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generate("train", 5000, 0)))
    dist.barrier()
    monkeypatch.setenv("DEBIAS_CACHE", str(folder / "cache"))
    caplog.set_level(logging.INFO)
    planted = {"cue": "!!", "strength": 0.8, "prevalence": 0.3}
    config = tiny_runs.config_for(folder, folder / "run", data={"train": "rows.jsonl", "planted_bias": planted})
    examples = training_examples(config, folder)
    encoded = build_task(config, tiny_runs.tokenizer(causal=False)).encode(examples, with_answer=True)
    told = {
        "made": [line for line in caplog.messages if "rows kept in" in line],
        "rows": digests_of(examples).tolist(),
        "tokens": list(encoded.features),
        "order": list(encoded.sampler(8, 0)),
    }
    both: list[dict[str, list[object]]] = [{}, {}]
    dist.all_gather_object(both, told)
    assert len(both[0]["made"]) + len(both[1]["made"]) == 3  # rows, planted rows, tokens
    for name in ("rows", "tokens", "order"):
        assert both[0][name] == both[1][name]
    assert len(told["rows"]) == 5000
