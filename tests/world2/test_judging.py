"""Judging on several ranks: scores equal those of one process, whole weights or weights sharded by ZeRO-3."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from covering import covering
from tiny_runs import PROMPT, save_bert, save_llama

from debias.config.run import RunConfig
from debias.data import Example, generate
from debias.inference.answers import Scoring
from debias.inference.loading import load

LABELS = ("entailment", "neutral", "contradiction")
LONG = {**PROMPT, "verbalizers": {"entailment": " yes yes", "neutral": " maybe", "contradiction": " no premise no"}}
# Else a tiny model is hardly sharded: its parameters stay gathered.
SHARD_ALL = """{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
"stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0}}"""


@pytest.fixture(scope="module")
def folder(rank, tmp_path_factory) -> Path:
    """A folder that all ranks share: the first one's."""
    shared = [str(tmp_path_factory.mktemp("judging")) if rank == 0 else None]
    dist.broadcast_object_list(shared)
    return Path(shared[0])


def once(rank: int, make, path: Path) -> Path:
    """What the first rank makes."""
    if rank == 0 and not path.exists():
        make(path)
    dist.barrier()
    return path


def saved_adapter(model: Path, target: Path, *, causal: bool) -> None:
    """A LoRA that changes something, with the classifier's head in it."""
    from tiny_models import randomize_lora

    from debias.adapters.lora import add_lora
    from debias.models.load import load_model

    torch.manual_seed(3)
    base = load_model(str(model), "causal_lm" if causal else "classification", LABELS)
    adapted = add_lora(
        base, r=3, alpha=6, dropout=0.0, targets="auto", classification=not causal, fresh=base.fresh_modules
    )
    randomize_lora(adapted)
    adapted.save_pretrained(target)


def settings(model: Path, causal: bool) -> RunConfig:
    values = {"model": str(model), "data": {"train": "generated"}, "output_dir": "none", "max_length": 60}
    return RunConfig.model_validate({**values, **({"head": "causal_lm", "prompt": LONG} if causal else {})})


def examples(number: int) -> list[Example]:
    """Pairs of many lengths; every third has the premise of the one before."""
    rows = generate("validation", number, 3)
    texts = [(rows[i - (i % 3 == 1)]["premise"], row["hypothesis"]) for i, row in enumerate(rows)]
    return [Example(str(i), pair, 0) for i, pair in enumerate(texts)]


def alone(predictor, pairs) -> np.ndarray:
    """Every rank all by itself: each computes everything."""
    with torch.inference_mode():
        predictor.model.eval()
        raw = predictor._raw(pairs, everywhere=True)
        return raw if predictor._answers is None else predictor._answers.adjusted(raw)


# A single example is fewer than there are ranks.
ROWS = covering({"kind": ["bert adapter", "llama", "llama adapter"], "number": [1, 25], "deepspeed": [None, "zero3"]})


@pytest.mark.parametrize(("kind", "number", "deepspeed"), [tuple(row.values()) for row in ROWS])
def test_ranks_together_give_the_scores_of_one(rank, folder, kind, number, deepspeed, monkeypatch):
    monkeypatch.setattr(
        "debias.inference.batches.TOKENS", {"cpu": 150, "cuda": 150}
    )  # several batches a rank, an uneven number
    causal = kind.startswith("llama")
    model = once(rank, save_llama if causal else save_bert, folder / kind.split()[0])
    adapter = None
    if kind.endswith("adapter"):
        path = folder / f"{kind.split()[0]}_adapter"
        adapter = str(once(rank, lambda to: saved_adapter(model, to, causal=causal), path))
    file = once(rank, lambda path: path.write_text(SHARD_ALL), folder / "shard_all.json")
    config, scoring = settings(model, causal), Scoring("tokens", "contextual") if causal else Scoring()
    pairs = examples(number)
    want = alone(load(config, config.model, adapter, scoring), pairs)
    predictor = load(config, config.model, adapter, scoring, str(file) if deepspeed else None)
    if deepspeed:
        weights = [p for p in predictor.model.parameters() if hasattr(p, "ds_numel")]
        assert weights
        assert all(p.numel() == 0 for p in weights)  # each rank holds its shard alone
    got = predictor.label_scores(pairs)
    assert got.shape == (number, 3)
    assert np.abs(got - want).max() <= 1e-6 * max(1.0, np.abs(want).max())
    assert predictor.description["ranks"] == dist.get_world_size()
    assert predictor.description.get("one_pass") in ({True} if causal else {None})
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, got.tobytes())
    assert len(set(everyone)) == 1


def test_only_the_first_rank_writes(rank, folder, monkeypatch):
    from debias_eval.judging.judge import Judging
    from debias_eval.judging.models import judge_given

    monkeypatch.setenv("RANK", str(rank))
    model = once(rank, save_llama, folder / "llama")
    prompt = once(rank, _write_prompt, folder / "prompt.yaml")
    out = folder / "out" if rank == 0 else folder / "not_written"
    outcome = judge_given(
        out, ["generated"], {"model": str(model), "prompt": prompt}, judging=Judging(limit=20, overlap="ignore")
    )
    assert (out / "eval" / "generated.json").exists() == (rank == 0)
    accuracies = [None] * dist.get_world_size()
    dist.all_gather_object(accuracies, outcome.results[0]["accuracy"])
    assert len(set(accuracies)) == 1


def test_ranks_show_the_same_examples_in_context(rank, folder, monkeypatch):
    """Drawn by each rank for itself, from rows that one of them has read; the scores are those of one process."""
    from debias.config.prompt_file import Shots
    from debias_eval.judging.judge import Judging
    from debias_eval.judging.models import judge_given

    monkeypatch.setenv("RANK", str(rank))
    model = once(rank, save_llama, folder / "llama")
    prompt = once(rank, _write_prompt, folder / "prompt.yaml")
    rows = once(rank, _write_rows, folder / "rows.jsonl")
    outcome = judge_given(
        folder / f"shown{rank}",
        ["generated"],
        {"model": str(model), "prompt": prompt},
        shots=Shots(3, 1, str(rows)),
        judging=Judging(limit=20, overlap="ignore"),
    )
    told = [None] * dist.get_world_size()
    result = outcome.results[0]
    dist.all_gather_object(told, (result["judge"]["shots"]["sha256"], result["brier"], result["accuracy"]))
    assert len(set(told)) == 1


def _write_rows(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in generate("train", 30, 5)))


def test_judging_that_is_cut_off_goes_on_with_what_the_first_rank_kept(rank, folder, monkeypatch):
    from debias.inference.predictor import Predictor
    from debias_eval.judging import pieces
    from debias_eval.judging.judge import Judging
    from debias_eval.judging.models import judge_given

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(pieces, "PIECE", 8)
    model = once(rank, save_llama, folder / "llama")
    prompt = once(rank, _write_prompt, folder / "prompt.yaml")
    asked, real = [], Predictor.label_scores

    def judged(name, dies_after=99):
        """Each rank has a folder of its own, as on nodes that share no disk."""

        def label_scores(self, examples, batch_size=None):
            if len(asked) == dies_after:
                raise KeyboardInterrupt
            asked.append(len(examples))
            return real(self, examples, batch_size)

        asked.clear()
        monkeypatch.setattr(Predictor, "label_scores", label_scores)
        out, given = folder / f"{name}{rank}", {"model": str(model), "prompt": prompt}
        return judge_given(out, ["generated"], given, judging=Judging(limit=30, overlap="ignore")).results[0]

    whole = judged("whole")
    assert asked == [8, 8, 8, 6]
    with pytest.raises(KeyboardInterrupt):
        judged("cut", 2)
    again = judged("cut")
    assert asked == [16, 8, 6]  # what was kept once more: of so few all are looked at
    assert judged_alike(again) == judged_alike(whole)


def judged_alike(result):
    return {key: value for key, value in result.items() if key not in ("seconds", "predictions_sha256")}


def _write_prompt(path: Path) -> None:
    import yaml

    path.write_text(yaml.safe_dump(LONG))
