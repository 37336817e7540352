"""Very large dropout on ranks, against one process that draws the masks of every rank's micro-batches again."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gradient_checks import answer_loss, text_loss, weights_for
from tiny_models import answer_batch, bert, llama, randomized, text_batch, with_lora

from debias.engines import attach
from debias.methods import Edge
from debias.models.head_dropout import drop_before_adapters, drop_before_head

pytest.importorskip("deepspeed")

from zero_runs import (
    SAMPLES,
    assert_same_run,
    ds_config,
    engine_of,
    feed,
    largest_difference,
    optimizer_of,
    parts_of,
    sharded,
)

STEPS, ACCUMULATE = 2, 2


def adapted(kind: str, p: float) -> Any:
    """A model as a run attaches it; of a causal one the head has an adapter of its own."""
    causal = kind == "llama"
    model = llama() if causal else bert(layers=1)
    if p:
        drop_before_head(model, p, causal=causal)
    targets = ["q_proj", "lm_head"] if causal else ["query", "value"]
    found = with_lora(model, task_type="CAUSAL_LM" if causal else "SEQ_CLS", target_modules=targets)
    drop_before_adapters(found)
    return randomized(found).train()


def batch_of(kind: str, seed: int) -> Any:
    return answer_batch(SAMPLES, seed=seed) if kind == "llama" else text_batch(SAMPLES, seed=seed)


def with_its_own_mask(kind: str) -> Any:
    """The loss of a micro-batch whose mask is drawn by what is in it, on whichever rank and in whichever order."""

    def loss(model: Any, part: Any) -> torch.Tensor:
        torch.manual_seed(int(part["input_ids"].sum()))
        return answer_loss(model, part) if kind == "llama" else text_loss(model, part)

    return loss


def in_one_process(kind: str, p: float, way: str) -> Any:
    """Every rank by itself, over the micro-batches of all of them in turn."""
    model = adapted(kind, p)
    hook = attach(model, optimizer_of(model), Edge(), way, max_grad_norm=1.0)
    parts = [part for rank in range(dist.get_world_size()) for part in parts_of(rank, ACCUMULATE)]
    reports = []
    for step in range(STEPS):
        loss = with_its_own_mask(kind)
        feed(hook, model, loss, batch_of(kind, step), weights_for(SAMPLES, seed=step), parts)
        reports.append(hook.step())
    hook.detach()
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}, reports


@pytest.mark.parametrize(
    ("stage", "kind", "way"),
    [(3, "bert", "single_pass"), (3, "llama", "single_pass"), (2, "llama", "shared_forward")],
)
def test_ranks_drop_what_one_process_drops(stage: int, kind: str, way: str) -> None:
    """Of the same masks both gradients are those of one process, taken another way; a model that judges drops none."""
    model = adapted(kind, 0.9)
    with engine_of(model, optimizer_of(model), ds_config(stage, ACCUMULATE)) as engine:
        got = sharded(engine, Edge(), with_its_own_mask(kind), lambda seed: batch_of(kind, seed), way, steps=STEPS)
        engine.eval()
        with torch.no_grad():
            judged = with_its_own_mask(kind)(engine, batch_of(kind, 0))
    other = "single_pass" if way == "shared_forward" else "shared_forward"
    want = in_one_process(kind, 0.9, other)
    assert_same_run(got, want, 1e-6)
    assert largest_difference(in_one_process(kind, 0.0, other)[0], want[0])[0] > 1e-3
    undropped = adapted(kind, 0.0).eval()
    undropped.load_state_dict(want[0], strict=False)
    with torch.no_grad():
        torch.testing.assert_close(judged, with_its_own_mask(kind)(undropped, batch_of(kind, 0)), atol=1e-4, rtol=1e-4)
