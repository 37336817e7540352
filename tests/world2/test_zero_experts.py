"""Mixtures of experts at stage 3 of DeepSpeed on two ranks, against one process: adapters on attention and experts."""

import functools

import pytest
from covering import covering
from gradient_checks import answer_loss
from tiny_models import answer_batch, qwen3_moe, with_lora

from debias.adapters.experts import route_experts
from debias.methods import Edge

pytest.importorskip("deepspeed")

from deepspeed.utils import set_z3_leaf_modules
from zero_runs import SAMPLES, alone, assert_same_run, ds_config, engine_of, optimizer_of, sharded

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def build():
    model = with_lora(qwen3_moe(), target_modules=ATTENTION, target_parameters=EXPERTS, task_type="CAUSAL_LM")
    assert len(route_experts(model)) == 2
    return model


def batch(seed):
    return answer_batch(SAMPLES, seed=seed)


@functools.cache
def one_process():
    model = build()
    return alone(model, optimizer_of(model), Edge(), answer_loss, batch, "two_pass", steps=2)


ROWS = covering({"leaf": [True, False], "checkpointing": [False, True], "way": ["single_pass", "two_pass"]})


@pytest.mark.parametrize(("leaf", "checkpointing", "way"), [tuple(row.values()) for row in ROWS])
def test_stage_3_is_one_process(way, checkpointing, leaf):
    model = build()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if leaf:
        blocks = [module for module in model.modules() if type(module).__name__ == "Qwen3MoeSparseMoeBlock"]
        set_z3_leaf_modules(model, [type(blocks[0])])
    with engine_of(model, optimizer_of(model), ds_config(3, 2)) as engine:
        got = sharded(engine, Edge(), answer_loss, batch, way, steps=2)
    assert_same_run(got, one_process(), 1e-6)
