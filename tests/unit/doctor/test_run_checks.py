"""What the doctor says of a run: its config, files, data, adapter, memory and disk."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import tiny_runs
import yaml
from fake_hub import fake_hub

from debias.doctor import examination, run_checks
from debias.doctor.check import Check, fine

PAIR = {"premise": "a", "hypothesis": "b", "label": "entailment"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def patient(bert, tmp_path, monkeypatch):
    """The run of a config file with changes."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_NODES", "DEBIAS_DATA"):
        monkeypatch.delenv(name, raising=False)

    def make(*overrides, gpu_memory=None, **changes):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**tiny_runs.settings_for(bert, tmp_path / "out"), **changes}))
        return run_checks.read(path, overrides, None, gpu_memory)

    return make


def by_name(patient) -> dict[str, Check]:
    return {check.name: check for check in run_checks.checks(patient)}


def test_a_run_that_is_healthy(patient):
    found = by_name(patient(gpu_memory=10**9))
    assert [check.line for check in found.values() if not check.ok] == []
    assert found["training data"].found == "generated: 64 rows read; entailment 21, neutral 21, contradiction 22"
    assert found["adapter"].found.startswith("lora: ")
    assert "of 1.0 GB a GPU" in found["memory"].found


@pytest.mark.parametrize("kind", ["lora", "dora", "beft"])
def test_the_adapters_size_is_that_of_training(patient, kind):
    from debias.adapters.survey import describe
    from debias.building.model import build_model

    here = patient(adapter=kind)
    trains = describe(build_model(here.run))["trainable"]
    assert by_name(here)["adapter"].found.startswith(f"{kind}: {trains:,} parameters in ")
    assert here.bytes_written() == 4 * trains  # nothing is saved on the way
    kept = patient(save_strategy="epoch", save_total_limit=2, adapter=kind)
    assert kept.bytes_written() == 4 * trains * (1 + 3 * 3)


def test_targets_that_match_nothing(patient):
    check = by_name(patient(adapter={"targets": ["q_prj"]}))["adapter"]
    assert check.stops
    assert "q_prj" in check.found


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_r": 6}, "weight_penalty.adapters is 4, expected a divisor of the rank 6"),
        ({"adapter": "dora"}, "has LoRA of another form"),
        ({"adapter": "ia3"}, "weight_penalty pego needs linear layers with LoRA"),
    ],
    ids=str,
)
def test_a_weight_penalty_that_the_adapter_does_not_go_with(settings, says, patient):
    check = run_checks.adapter
    (found,) = run_checks.guarded("adapter", lambda: check(patient(weight_penalty="pego", **settings)))
    assert found.stops
    assert says in found.found
    assert check(patient(weight_penalty="pego", lora_r=8)).ok


@pytest.mark.slow
def test_a_run_that_does_not_fit(patient):
    check = by_name(patient(gpu_memory=10**8))["memory"]
    assert check.stops
    assert "of 0.1 GB a GPU" in check.found
    assert check.cure


@pytest.mark.slow
def test_a_run_whose_first_stage_does_not_fit_or_has_no_targets(patient):
    """The run's own memory and adapter are fine."""
    stage = {"keep": "errors", "settings": {"per_device_train_batch_size": 2000, "max_steps": 2}}
    limit = {"gpu_memory": 75 * 10**7}
    assert by_name(patient(**limit))["memory"].found.startswith("the plan is 0.")
    check = by_name(patient(**limit, first_stage=stage, order="upsampled"))["memory"]
    assert check.stops
    assert check.found.startswith("the plan of stages/1 is ")
    assert by_name(patient(gpu_memory=10**10, first_stage=stage, order="upsampled"))["memory"].ok
    stage["settings"] = {"adapter": {"targets": ["q_prj"]}, "max_steps": 2}
    check = by_name(patient(first_stage=stage, order="upsampled"))["adapter"]
    assert check.stops
    assert "stages/1: " in check.found
    assert "q_prj" in check.found


def test_without_a_gpu_there_is_nothing_to_compare(patient):
    check = by_name(patient())["memory"]
    assert check.ok
    assert "--gpu-memory" in check.found


def test_a_folder_that_is_no_whole_model(patient, bert, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_bytes((bert / "config.json").read_bytes())
    check = by_name(patient(model=str(part)))["model"]
    assert check.stops
    assert check.found == f"{part} lacks weights (model.safetensors), a tokenizer (tokenizer.json)"


def test_weights_that_are_cut_short(patient, bert, tmp_path):
    made = shutil.copytree(bert, tmp_path / "model")
    weights = made / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    check = by_name(patient(model=str(made)))["model"]
    assert check.stops
    assert check.found.startswith(f"{made}: model.safetensors has ")
    assert check.cure == "copy or save it again"


def rows(path: Path, labels) -> Path:
    text = "".join(json.dumps({**PAIR, "label": label}) + "\n" for label in labels)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_label_that_only_comes_late_is_found(patient, tmp_path):
    labels = ["entailment"] * 2500 + ["neutral"] * 2500 + ["contradiction"]
    check = by_name(patient(data={"train": str(rows(tmp_path / "sorted.jsonl.gz", labels))}))["training data"]
    assert check.ok
    assert check.found.endswith("2,002 rows read; entailment 2,000, neutral 1, contradiction 1")


def test_null_hides_no_label_that_is_called_none(patient, tmp_path):
    data = {"train": str(rows(tmp_path / "late.jsonl", [None, "Hate"] * 1500 + ["None"])), "labels": ["None", "Hate"]}
    check = by_name(patient(data=data))["training data"]
    assert check.found.endswith("1,001 rows read; None 1, Hate 1,000")


def test_a_label_that_never_comes(patient, tmp_path):
    for labels in (["entailment", "neutral"] * 5, ["entailment", "neutral"] * 1500):
        check = by_name(patient(data={"train": str(rows(tmp_path / "two.jsonl", labels))}))["training data"]
        assert check.stops
        assert "no row is labelled contradiction" in check.found
        assert "data.label_map" in check.cure


def test_a_label_that_is_not_mapped(patient, tmp_path):
    check = by_name(patient(data={"train": str(rows(tmp_path / "other.jsonl", ["entail"]))}))["training data"]
    assert check.stops
    assert "row 1: label 'entail' is not in labels" in check.found


def test_data_that_is_not_there(patient):
    check = by_name(patient(data={"train": "nowhere.jsonl"}))["training data"]
    assert check.stops
    assert "nowhere.jsonl: no such file" in check.found


def test_validation_data_counts_only_where_it_is_read(patient, tmp_path):
    data = {"train": {"source": "generated", "limit": 64}, "validation": str(tmp_path / "nowhere.jsonl")}
    assert "validation data" not in by_name(patient(data=data))
    assert by_name(patient(data=data, eval_strategy="epoch"))["validation data"].stops


@pytest.fixture
def hub_of(bert, tmp_path, monkeypatch):
    from huggingface_hub import constants

    with fake_hub(models__tiny__bert=bert) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_what_the_hub_has_is_not_downloaded(patient, hub_of):
    check = by_name(patient(model="tiny/bert"))["model"]
    assert check.ok
    assert "tiny/bert is not in the cache; 127.0.0.1" in check.found
    assert hub_of.downloads() == []
    nothing = by_name(patient(model="tiny/nothing"))["model"]
    assert nothing.stops
    assert nothing.found.startswith("model 'tiny/nothing' is not on 127.0.0.1")


def test_a_hub_that_cannot_be_reached(patient, hub_of):
    hub_of.shutdown()
    hub_of.server_close()
    check = by_name(patient(model="tiny/bert"))["model"]
    assert check.stops
    assert "does not answer" in check.found


def test_offline_the_cache_must_be_whole(patient, hub_of, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = by_name(patient(model="tiny/bert"))
    assert found["model"].stops
    assert "HF_HUB_OFFLINE is set" in found["model"].found
    assert "debias fetch" in found["model"].cure
    assert found["adapter"].ok
    assert "not looked at" in found["adapter"].found
    assert hub_of.asked == []


def test_packages_that_the_run_asks_for(patient, monkeypatch):
    monkeypatch.setattr(run_checks, "find_spec", lambda name: None)
    run = patient(deepspeed="zero2", load_in_4bit=True).run
    assert [check.cure for check in run_checks.packages(run)] == [
        "pip install 'debias[deepspeed]'",
        "pip install 'debias[quant]'",
    ]
    assert run_checks.packages(patient().run) == [fine("packages", "all that the run asks for")]


def test_a_batch_that_deepspeed_would_not_take(patient, tmp_path, monkeypatch):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": 64}))
    run = patient(deepspeed=str(file)).run
    alone = run_checks.engine_config(run)
    assert (alone.ok, alone.stops) == (False, False)  # how many ranks there will be is not known here
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert run_checks.engine_config(run).stops
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run_checks.engine_config(run) == fine("DeepSpeed configuration", "mine.json, stage 2")


@pytest.mark.parametrize(
    ("environment", "here", "gpus_and_nodes"),
    [
        ({}, 0, (1, 1)),
        ({}, 8, (8, 1)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 8, (8, 2)),
        ({"WORLD_SIZE": "4", "SLURM_STEP_NUM_NODES": "4"}, 8, (8, 4)),
        ({"WORLD_SIZE": "8", "SLURM_STEP_NUM_NODES": "2"}, 0, (4, 2)),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "8"}, 8, (8, 2)),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "two", "SLURM_STEP_NUM_NODES": "2"}, 0, (4, 2)),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "", "SLURM_STEP_NUM_NODES": ""}, 8, (8, 1)),
        ({"LOCAL_WORLD_SIZE": "0", "SLURM_STEP_NUM_NODES": "0"}, 8, (8, 1)),
    ],
)
def test_gpus_and_nodes(environment, here, gpus_and_nodes, monkeypatch):
    import torch

    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    assert run_checks.gpus_and_nodes() == gpus_and_nodes


def test_a_config_that_does_not_parse_is_one_bad_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: x\nlearning_rte: 1\n")
    found = {check.name: check for check in examination.examine(path)}
    assert found["config"].stops
    assert found["config"].found.endswith("learning_rte: unknown key")
    assert found["config"].cure == "did you mean learning_rate?"
    assert "model" not in found
    assert found["disk"]
    assert {check.name: check for check in examination.examine(tmp_path / "nowhere.yaml")}["config"].stops


def test_which_engines_are_watched(patient):
    assert examination._engines(None, False) == []
    assert examination._engines(None, True)[0] is None
    assert examination._engines(patient(), False) == []
    assert examination._engines(patient(deepspeed="zero3_offload_all"), False) == ["zero3"]
    assert examination._engines(patient(deepspeed="zero3"), True) == [None, "zero3"]
