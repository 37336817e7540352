"""`debias train` with `deepspeed:`: results as without, checkpoints for any number of ranks, kills and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rank_pool import ROOT, environment, on_two_ranks
from safetensors.torch import load_file
from tables import EXAMPLES, settings_of
from tiny_runs import PROMPT, adapter_of, largest_difference, save_bert, save_llama, settings_for
from train_many import on_ranks

from debias.config import deepspeed_file as zero_config
from debias.config.run import RunConfig
from debias.engines.checkpoints import RULE_STATE
from debias.errors import InputError
from debias.runs.folder import look

pytest.importorskip("deepspeed")
CONFIGS = sorted(zero_config.shipped())
STEP = 12  # samples a step, on one, two or three ranks


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    save_bert(folder / "bert")
    save_llama(folder / "llama")
    return folder


def settings(place, name, world=1, **changes):
    return settings_for(
        place / "bert", place / name, per_device_train_batch_size=STEP // world, **{"deepspeed": "zero3", **changes}
    )


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_every_shipped_configuration_trains_what_one_process_trains(place):
    """Two ranks, accumulation 2; fp32 by the adapter, the 4-bit one by its loss."""
    shared = {"max_steps": 2, "gradient_accumulation_steps": 2}
    whole = [name for name in CONFIGS if name != "zero3_qlora"]
    assert len(whole) == 5
    quantized = {
        **settings_for(place / "llama", place / "qlora", head="causal_lm", prompt=PROMPT, load_in_4bit=True, bf16=True),
        **shared,
        "per_device_train_batch_size": 3,
    }
    runs = [settings(place, name, 4, deepspeed=name, **shared) for name in whole]
    on_ranks(2, [*runs, {**quantized, "deepspeed": "zero3_qlora"}])
    alone = settings(place, "alone", 2, deepspeed=None, **shared)
    quantized_alone = {**quantized, "output_dir": str(place / "qlora_alone"), "per_device_train_batch_size": 6}
    on_ranks(1, [alone, quantized_alone])
    for name in whole:
        assert largest_difference(adapter_of(place / name), adapter_of(place / "alone")) < 1e-6, name
        assert losses(place / name) == pytest.approx(losses(place / "alone"), abs=1e-6)
    assert losses(place / "qlora") == pytest.approx(losses(place / "qlora_alone"), rel=0.02)
    summary = json.loads((place / "zero3" / "run.json").read_text())
    assert summary["gradients"] == "single_pass"
    assert summary["parameters"]["trainable"] < summary["parameters"]["all"]


# The usual rule, and the one that keeps all that a rule can, beside all else that a run keeps: memory, where weights
# started and were, where they are held, and which elements were chosen, go on with weights and moments.
KEEPING = {"weight_projection": "spd", "gradient_mask": {"name": "saft", "share": 0.5}}
GOING_ON = [EXAMPLES[0], max(EXAMPLES, key=lambda rule: (len(rule.looks_at), rule.memory))]


@pytest.mark.slow
def test_a_run_goes_on_at_any_number_of_ranks(place):
    """The same number bit for bit, another one to 1e-6; over stages too, for the state is saved whole."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}

    def folder(rule, name):
        return place / f"{rule.name}_{name}"

    def rules(name):
        """The usual rule keeps nothing that the other does not keep as well: it goes on at one number of ranks."""
        return GOING_ON if name in ("two", "two_to_two") else GOING_ON[1:]

    def whole(world, name):
        more = {rule: {"method": settings_of(rule), **({} if rule.is_stateless else KEEPING)} for rule in rules(name)}
        return [settings(place, folder(r, name).name, world, **more[r], **saving) for r in rules(name)]

    def again(world, name, **changes):
        return [{**run, "resume": True, **changes} for run in whole(world, name)]

    def cut(name, *others):
        """The runs as they were when their second step had been saved."""
        for rule, new in [(rule, other) for other in others for rule in rules(other)]:
            shutil.copytree(folder(rule, name), folder(rule, new))
            shutil.rmtree(folder(rule, new) / "checkpoint-4")
            shutil.rmtree(folder(rule, new) / "adapter")

    on_ranks(2, whole(2, "two"))
    cut("two", "two_to_two", "two_to_three", "two_to_one", "two_to_zero1")
    on_ranks(3, [*whole(3, "three"), *again(3, "two_to_three")])
    engineless = {**whole(1, "without")[0], "deepspeed": None}
    on_ranks(1, [*whole(1, "one"), *again(1, "two_to_one"), engineless])
    cut("one", "one_to_two")
    cut("three", "three_to_two")
    on_two = [*again(2, "two_to_two"), *again(2, "one_to_two"), *again(2, "three_to_two")]
    on_ranks(2, [*on_two, *again(2, "two_to_zero1", deepspeed="zero1")])
    for rule in GOING_ON:
        two = folder(rule, "two")
        assert largest_difference(adapter_of(folder(rule, "two_to_two")), adapter_of(two)) == 0.0
        assert losses(folder(rule, "two_to_two")) == losses(two)
        assert (two / "checkpoint-2" / RULE_STATE).exists() != rule.is_stateless
    rule = GOING_ON[1]
    assert json.loads((folder(rule, "two") / "run.json").read_text())["measured_steps"] == 1
    kept = load_file(folder(rule, "two") / "checkpoint-2" / RULE_STATE)
    assert {key.rpartition("/")[2] for key in kept} >= {"held_at", "mask", "start", "moved_before", "memory"}
    for name in ("without", "one", "three", "two_to_three", "two_to_one", "one_to_two", "three_to_two", "two_to_zero1"):
        run, two = folder(rule, name), folder(rule, "two")
        assert losses(run) == pytest.approx(losses(two), abs=1e-6), run
        assert largest_difference(adapter_of(run), adapter_of(two)) < 2e-6, run


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(place):
    """Two ranks, the signal to one of them: both stop after the same step, and what follows is bit for bit the same."""
    saving = {"save_strategy": "steps", "save_steps": 1000, "lr_scheduler_type": "constant"}
    long = settings(place, "stopped", 2, **{**saving, "max_steps": 100_000})
    metrics = place / "stopped" / "metrics.jsonl"

    def stop_one(pool):
        wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, pool.process)
        os.kill(pool.pid(1), signal.SIGTERM)

    output = on_two_ranks([long], 120, stop_one)
    assert output.count("stopped by SIGTERM") == 2
    summary = json.loads((place / "stopped" / "run.json").read_text())
    assert summary["status"] == "interrupted"
    assert (place / "stopped" / f"checkpoint-{summary['steps']}").is_dir()
    assert not (place / "stopped" / "adapter").exists()
    end = {**saving, "max_steps": summary["steps"] + 2}
    on_ranks(2, [{**long, **end, "resume": True}, {**long, **end, "output_dir": str(place / "undisturbed")}])
    assert largest_difference(adapter_of(place / "stopped"), adapter_of(place / "undisturbed")) == 0.0


@pytest.mark.slow
def test_sigterm_exits_with_a_code_to_requeue_on(place):
    """A whole process with an engine; of one without, `test_whole_sweeps.py` stops one and `launch local` two."""
    command = [Path(sys.executable).with_name("debias"), "train", place / "cli.yaml"]
    (place / "cli.yaml").write_text(json.dumps(settings(place, "cli", max_steps=100_000)))
    process = subprocess.Popen(list(map(str, command)), env=environment(), stderr=subprocess.PIPE, text=True)
    metrics = place / "cli" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors[-3000:]
    assert "go on with resume=true" in errors.splitlines()[-1]


@pytest.mark.slow
def test_sigterm_without_an_engine_is_the_same_code(place, debias):
    """The command line in this process, to which a thread sends the signal as soon as there is a step."""
    (place / "plain.yaml").write_text(json.dumps(settings(place, "plain", deepspeed=None, max_steps=100_000)))
    metrics, over = place / "plain" / "metrics.jsonl", threading.Event()

    def stop():
        while not (metrics.exists() and metrics.read_text()):
            if over.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    done = debias("train", place / "plain.yaml")
    over.set()
    thread.join()
    assert done.code == 75, done.err[-3000:]
    assert "go on with resume=true" in done.err.splitlines()[-1]


KILLS = int(os.environ.get("KILLS", "10"))


@pytest.mark.slow
def test_kills_leave_a_run_that_ends_as_if_nothing_had_happened(place):
    run = settings(
        place, "killed", 3, save_strategy="steps", save_steps=1, save_total_limit=2, lr_scheduler_type="constant"
    )
    (place / "killed.json").write_text(json.dumps(run))
    command = [sys.executable, str(ROOT / "tests/killed_many.py"), str(place / "killed.json"), str(KILLS)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["steps"]) == KILLS
    assert found["steps"] == sorted(found["steps"]), "a kill lost a checkpoint"
    assert found["steps"][-1] > KILLS / 3
    assert largest_difference(adapter_of(place / "killed"), adapter_of(place / "killed-undisturbed")) == 0.0


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_checkpoint_of_another_batch_is_refused(tmp_path, monkeypatch):
    run = RunConfig.model_validate(settings(tmp_path, "run", 2))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(run.model_dump(mode="json")))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"machine": {"world_size": 2}}))
    monkeypatch.setenv("WORLD_SIZE", "3")
    fits = run.model_copy(update={"resume": True, "per_device_train_batch_size": STEP // 3})
    look(fits)
    with pytest.raises(InputError, match=r"6 samples x 1 micro-batches x 3 ranks are 18 samples a step.*with 12"):
        look(run.model_copy(update={"resume": True}))
    with pytest.raises(InputError, match="deepspeed is None"):
        look(fits.model_copy(update={"deepspeed": None}))


def test_what_is_saved_is_never_empty(place):
    """An adapter of zeros looks like one that learned nothing."""
    from safetensors.torch import save_file

    from debias.runs.whole import check_tensors

    folder = place / "saved"
    folder.mkdir()
    import torch

    for tensors, message in (
        ({}, "no tensor"),
        ({"a": torch.zeros(0, 3)}, "empty"),
        ({"a": torch.zeros(2, 3)}, "zeros"),
    ):
        save_file(tensors, str(folder / "adapter_model.safetensors"))
        with pytest.raises(RuntimeError, match=message):
            check_tensors(folder)
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, str(folder / "adapter_model.safetensors"))
    check_tensors(folder, [(2,), (2,)])
    with pytest.raises(RuntimeError, match=r"lacks what was trained: 1 of shape \[2\]"):
        check_tensors(folder, [(2,)] * 3)
    assert load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_every_kind_of_run(place):
    """Full, BitFit, causal with recomputation, evaluation between, plain, bf16, two passes, a finished run resumed."""
    judged = {
        "data": {
            "train": {"source": "generated", "limit": 64},
            "validation": {"source": "generated", "split": "validation", "limit": 20},
        },
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    saved = {"save_strategy": "steps", "save_steps": 3}
    answers = {"head": "causal_lm", "prompt": PROMPT, "gradient_checkpointing": True, "loss_mean": "tokens"}
    kinds = {
        "full": {"adapter": "full", "learning_rate": 1e-3},
        "bitfit": {"adapter": "bitfit"},
        "dora": {"adapter": "dora"},
        "beft": {"adapter": {"type": "beft", "targets": ["query", "value"]}},
        "judged": judged,
        "causal": {"model": str(place / "llama"), **answers},
        # Plain training, and the rule that keeps most; `world2` has each of the others at every stage.
        **{rule.name: {"method": settings_of(rule)} for rule in EXAMPLES if rule.is_plain or rule == GOING_ON[1]},
        "bf16": {"bf16": True},
        "two_pass": {"gradients": "two_pass"},
        "finished": saved,
    }

    def of(engine):
        return {kind: changes for kind, changes in kinds.items() if engine != "zero2" or kind in few}

    few = ("full", "dora", "judged", "causal", "bf16", "two_pass", "finished", GOING_ON[1].name)  # of the second engine

    def runs(world, engine):
        # SGD: AdamW makes full-size steps out of the rounding that is a key bias's whole gradient.
        shared = {"deepspeed": engine, "max_steps": 3, "optim": "sgd"}
        chosen = of(engine).items()
        made = [{**settings(place, f"{kind}_{engine}", world, **shared), **changes} for kind, changes in chosen]
        return [*made, {**made[-1], "resume": True}]

    on_ranks(1, runs(1, None))
    for engine in ("zero2", "zero3"):
        on_ranks(2, runs(2, engine))
        for kind in of(engine):
            difference = largest_difference(*(trained(place / f"{kind}_{name}") for name in (engine, None)))
            assert difference < (1e-3 if kind == "bf16" else 1e-7), (kind, engine)
        judgements = [
            [json.loads(line).get("eval_accuracy") for line in (place / f"judged_{name}" / "metrics.jsonl").open()]
            for name in (engine, None)
        ]
        assert judgements[0] == judgements[1]
        assert json.loads((place / f"finished_{engine}" / "run.json").read_text())["status"] == "finished"


def trained(run):
    """What a run trained; a whole model by way of the loader, which knows older names of the same tensors."""
    if (run / "adapter").exists():
        return adapter_of(run)
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(run / "model").state_dict()


@pytest.mark.slow
def test_the_best_checkpoint_is_selected_as_in_one_process(place):
    """Stages 2 and 3 on two ranks: the same step is kept, with the same weights."""
    data = {
        "train": {"source": "generated", "limit": 64},
        "validation": {"source": "generated", "limit": 40, "split": "validation"},
    }
    each_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    shared = {**each_step, "data": data, "selection": "validation", "learning_rate": 0.1}
    on_ranks(2, [settings(place, f"best_{stage}", 2, deepspeed=stage, **shared) for stage in ("zero2", "zero3")])
    on_ranks(1, [settings(place, "best_alone", deepspeed=None, **shared)])
    alone = json.loads((place / "best_alone" / "run.json").read_text())
    assert alone["selected_step"] < 6, "the last is the best: nothing would be shown"
    for stage in ("zero2", "zero3"):
        found = json.loads((place / f"best_{stage}" / "run.json").read_text())
        assert found["selected_step"] == alone["selected_step"]
        assert found["selected_eval_accuracy"] == pytest.approx(alone["selected_eval_accuracy"])
        kept = adapter_of(place / f"best_{stage}")
        saved = load_file(
            place / f"best_{stage}" / f"checkpoint-{alone['selected_step']}" / "adapter_model.safetensors"
        )
        assert largest_difference(kept, saved) == 0.0
        # A step of AdamW at this rate is 0.1; what rounding makes of two of them is far less.
        assert largest_difference(kept, adapter_of(place / "best_alone")) < 0.01
        layers = [
            line for line in map(json.loads, (place / f"best_{stage}" / "metrics.jsonl").open()) if "loss" in line
        ]
        assert all({"0", "1"} <= set(line["removed_share_by_layer"]) for line in layers)
