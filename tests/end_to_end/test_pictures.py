"""Pictures from IDX files to a judged run, through the same doors as texts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Command
from tiny_digits import DIGITS, settings_for, write_digits

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import load_examples, paint
from debias.errors import InputError
from debias.inference.loading import load_run
from debias.train import train
from debias_eval.judging.evaluate import evaluate_run

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 400 digits to train on and 100 to be judged on."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, 400)
    write_digits(folder, 100, split="test", seed=1)
    return folder


def config(digits: Path, output: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(settings_for(digits / "train-images-idx3-ubyte.gz", output, **changes))


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(run.glob("*/*model.safetensors")))


def largest(left: dict[str, Any], right: dict[str, Any]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[key] - right[key]).abs().max()) for key in left)


def suite(digits: Path, folder: Path, **changes: Any) -> Path:
    settings = {
        "name": "mine", "version": 1, "description": "Mine.", "licence": "CC0", "task": "vision",
        "source": {"source": "test-images-idx3-ubyte.gz", "split": "test"}, "labels": DIGITS,
        "planted_color": {"strength": 0.1}, "gap": {"aligned": ["bias-aligned"], "conflicting": ["bias-conflicting"]},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    for path in digits.glob("test-*"):
        shutil.copy(path, folder / path.name)
    (folder / "suite.yaml").write_text(json.dumps({**settings, **changes}))
    return folder / "suite.yaml"


def test_from_files_to_a_table(digits: Path, tmp_path: Path, debias: Command) -> None:
    path = tmp_path / "run.yaml"
    settings = settings_for(digits / "train-images-idx3-ubyte.gz", tmp_path / "run", max_steps=60)
    path.write_text(yaml.safe_dump({**settings, "method": "edge"}))
    code, _, err = debias("train", path)
    assert code == 0, err
    run = tmp_path / "run"
    assert {one.name for one in run.iterdir()} == {"model", "config.yaml", "metrics.jsonl", "run.json", "seen.npz"}
    told = json.loads((run / "run.json").read_text())
    assert (told["status"], told["gradients"], told["train_examples"]) == ("finished", "single_pass", 400)
    assert told["acts_on"]["tensors"] == 6
    code, out, err = debias("eval", run, "--suite", suite(digits, tmp_path / "suite"), "--json")
    assert code == 0, err
    (result,) = json.loads(out)
    assert (result["n"], result["task"], result["partial_input"], result["overlap"]) == (100, "vision", None, None)
    assert {name: part["n"] for name, part in result["groups"].items()} == {"bias-aligned": 10, "bias-conflicting": 90}
    assert result["accuracy"] > 0.5  # bars are easy; chance is 0.1
    code, out, err = debias("report", run, "-o", tmp_path / "page.html")
    assert code == 0, err
    assert "mine" in (tmp_path / "page.html").read_text()


def test_the_result_is_what_the_model_says(digits: Path, tmp_path: Path) -> None:
    """Against a loop of our own over the saved model, one picture at a time."""
    import torch
    from transformers import AutoModelForImageClassification

    run = train(config(digits, tmp_path / "run", max_steps=30))
    result = evaluate_run(run, str(suite(digits, tmp_path / "suite")))
    with pytest.raises(InputError, match="--overlap exclude compares texts, and the suite shows pictures"):
        evaluate_run(run, str(suite(digits, tmp_path / "suite")), overlap="exclude")
    model = AutoModelForImageClassification.from_pretrained(run / "model").eval()
    data = config(digits, tmp_path, data={"train": str(digits / "test-images-idx3-ubyte.gz"), "labels": DIGITS}).data
    from debias.config.data import PlantedColor

    right = []
    for example in paint(load_examples(data.train, data), PlantedColor(strength=0.1), 10):
        pixels = torch.tensor(example.image / 255, dtype=torch.float32).unsqueeze(0)
        with torch.no_grad():
            right.append((int(model(pixel_values=pixels).logits.argmax()) == example.label, example.group))
    assert result["accuracy"] == pytest.approx(np.mean([one for one, _ in right]))
    for name, part in result["groups"].items():
        assert part["accuracy"] == pytest.approx(np.mean([one for one, group in right if group == name]))


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, "single_pass"),
        ({"model": "vision:vit", "adapter": "lora", "lora_r": 2}, "single_pass"),
        ({"model": "vision:vit"}, "shared_forward"),
        ({"model": "vision:vit", "adapter": "bitfit"}, "shared_forward"),
        ({"model": "vision:vit", "gradients": "two_pass"}, "two_pass"),
        ({"model": "vision:vit", "adapter": "lora", "gradient_checkpointing": True, "bf16": True}, "single_pass"),
    ],
    ids=["mlp", "vit-lora", "vit", "vit-bitfit", "vit-two-pass", "vit-checkpointing-bf16"],
)
def test_every_kind_of_run(digits: Path, tmp_path: Path, changes: dict[str, Any], way: str) -> None:
    """Trained, saved, loaded: the loaded model gives the scores that the last evaluation in training had."""
    data = {
        "train": str(digits / "train-images-idx3-ubyte.gz"), "validation": str(digits / "test-images-idx3-ubyte.gz"),
        "labels": DIGITS, "planted_color": {"strength": 0.9},
    }  # fmt: skip
    settings = {"data": data, "eval_strategy": "steps", "eval_steps": 4, **changes}
    run = train(config(digits, tmp_path / "run", **settings))
    assert json.loads((run / "run.json").read_text())["gradients"] == way
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval_loss" in line][-1]
    trained = load_config(run / "config.yaml")
    assert trained.data.validation is not None
    assert trained.data.planted_color is not None
    later = trained.data.planted_color.model_copy(update={"seed": 1})
    examples = paint(load_examples(trained.data.validation, trained.data), later, 10)
    scores = load_run(run).label_scores(examples)
    gold = [example.label for example in examples]
    tolerance = 2e-2 if changes.get("bf16") else 1e-4
    assert evaluated["eval_loss"] == pytest.approx(-scores[range(len(gold)), gold].mean(), rel=tolerance)


def test_the_same_seed_is_the_same_model_and_another_is_not(digits: Path, tmp_path: Path) -> None:
    runs = [train(config(digits, tmp_path / str(i), seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert largest(weights(runs[0]), weights(runs[1])) == 0
    assert largest(weights(runs[0]), weights(runs[2])) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"model": "vision:vit", "adapter": "lora"}], ids=["mlp", "vit-lora"])
def test_a_resumed_run_is_bit_for_bit_the_same(digits: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {**changes, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = train(config(digits, tmp_path / "whole", max_steps=6, **settings))
    part = tmp_path / "part"
    train(config(digits, part, max_steps=3, **settings))
    train(config(digits, part, max_steps=6, resume=True, **settings))
    assert largest(weights(whole), weights(part)) == 0


def test_micro_batches_make_the_same_step(digits: Path, tmp_path: Path) -> None:
    whole = train(config(digits, tmp_path / "whole"))
    parts = train(config(digits, tmp_path / "parts", per_device_train_batch_size=5, gradient_accumulation_steps=4))
    assert largest(weights(whole), weights(parts)) < 1e-5


def test_an_adapter_on_a_drawn_vit_changes_what_it_says(digits: Path, tmp_path: Path) -> None:
    run = train(config(digits, tmp_path / "run", model="vision:vit", adapter="lora", learning_rate=1e-2))
    result = evaluate_run(run, str(suite(digits, tmp_path / "suite")))
    assert result["judge"]["adapter_changes_logits"] is True


def test_two_suites_of_pictures_are_not_mixed_up(digits: Path, tmp_path: Path) -> None:
    """A predictor that keeps scores must know pictures by what is on them."""
    run = train(config(digits, tmp_path / "run", max_steps=30))
    plain = suite(digits, tmp_path / "plain", name="plain", planted_color=None, gap=None)
    color = suite(digits, tmp_path / "color", name="color", planted_color={"strength": 0}, gap=None)
    alone = [evaluate_run(run, str(path))["accuracy"] for path in (plain, color)]
    shared = load_run(run)
    assert [evaluate_run(run, str(path), predictor=shared)["accuracy"] for path in (plain, color)] == alone
    digests = {
        json.loads((run / "eval" / f"{name}.json").read_text())["examples_sha256"] for name in ("plain", "color")
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": "classification"}, "is pictures, which head 'image_classification' reads"),
        ({"max_length": 64}, "max_length has no effect on pictures"),
        ({"data": {"train": "train.jsonl"}}, "data.train 'train.jsonl' is no IDX file of pictures"),
        ({"head": "classification", "data": {"train": "train.jsonl"}}, "model 'vision:mlp' reads pictures"),
    ],
)
def test_settings_that_do_not_fit(digits: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(digits, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_checkpointing": True}, "gradient_checkpointing: a MlpForImageClassification has none"),
        ({"model": "vision:resnet"}, "'vision:resnet' is not built here"),
        ({"load_in_4bit": True, "adapter": "lora"}, "load_in_4bit: 'vision:mlp' has no trained weights"),
        ({"model": "vision:vit", "gradients": "single_pass"}, "single_pass"),
        ({"bias_weight": {"source": "file", "column": "w"}}, "no column 'w'"),
        ({"adapter": {"type": "lora", "targets": ["query"]}}, "'query' matches no linear layer; there are dense_0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    digits: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        train(config(digits, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "test.jsonl"}, "task vision reads an IDX file of pictures"),
        ({"task": "nli"}, "expected a file"),
        ({"hub": {"source": "ylecun/mnist"}}, "task vision reads an IDX file"),
        ({"planted_color": None}, "gap names groups, but the suite has none"),
        ({"group_rule": {"by_label": True}}, "planted_color makes the groups itself"),
        ({"text_fields": ["text"]}, "text_fields has no effect on pictures"),
    ],
)
def test_a_suite_that_does_not_fit(digits: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    from debias_eval.reading.suite import load_suite

    with pytest.raises(InputError, match=said):
        load_suite(suite(digits, tmp_path / "suite", **changes))


def test_a_suite_of_texts_is_no_suite_for_it(digits: Path, tmp_path: Path) -> None:
    run = train(config(digits, tmp_path / "run", max_steps=1))
    with pytest.raises(InputError, match="suite generated: the model answers"):
        evaluate_run(run, "generated")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": "a", "label": one}) + "\n" for one in DIGITS))
    settings = {
        "name": "texts", "version": 1, "description": "Mine.", "licence": "CC0", "task": "sentiment",
        "source": "rows.jsonl", "labels": DIGITS, "text_fields": ["text"],
    }  # fmt: skip
    (folder / "suite.yaml").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="reads pictures, and example"):
        evaluate_run(run, str(folder / "suite.yaml"), overlap="ignore")


@pytest.mark.slow
def test_the_recipe_learns_colours_and_some_digits(tmp_path: Path) -> None:
    """On the published files, with a tenth of the recipe's steps: far above chance, and the shortcut shows."""
    if not (Path(os.environ.get("DEBIAS_DATA", "")) / "mnist" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("no MNIST: set DEBIAS_DATA")
    overrides = ["max_steps=50", f"output_dir={tmp_path / 'run'}", "data.train.limit=20000"]
    run = train(load_config(RECIPES / "colored_mnist_edge.yaml", overrides), base=RECIPES)
    result = evaluate_run(run, "colored_mnist")
    assert result["groups"]["bias-aligned"]["accuracy"] > 0.9
    assert result["gap"] > 0.2
