"""A run means the same from anywhere, and its folder survives a kill at any instant of a save."""

import os
from pathlib import Path

import pytest
from tiny_runs import adapter_of, config_for, largest_difference

from debias.building.arguments import training_arguments
from debias.building.examples import training_examples
from debias.building.model import build_model
from debias.building.task import build_task
from debias.config.places import find_recipe
from debias.config.reading import load_config
from debias.data import generate
from debias.data.encode import Collator
from debias.engines.hf_trainer import DebiasTrainer
from debias.errors import InputError
from debias.losses import Classification
from debias.methods import Edge
from debias.models.load import load_tokenizer
from debias.runs.whole import save_whole
from debias.train import train


def write_rows(path: Path) -> None:
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in generate("train", 48, 0)), encoding="utf-8")


def test_config_of_a_run_holds_paths_that_work_from_anywhere(bert, tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = Path(os.path.relpath(bert, tmp_path))
    config = config_for(relative, tmp_path / "one", data={"train": "rows.jsonl"}, max_steps=2)
    run = train(config, base=tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_config(run / "config.yaml", [f"output_dir={tmp_path / 'two'}"])
    assert largest_difference(adapter_of(run), adapter_of(train(again, base=tmp_path / "elsewhere"))) == 0


def test_data_found_through_the_data_folder_keeps_its_short_name(bert, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.jsonl")
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    run = train(config_for(bert, tmp_path / "run", data={"train": "rows.jsonl"}, max_steps=1))
    assert load_config(run / "config.yaml").data.train.source == "rows.jsonl"


def test_a_trainer_trains_twice(bert, tmp_path):
    config = config_for(bert, tmp_path / "run", max_steps=2)
    tokenizer = load_tokenizer(config.model, config.head)
    trainer = DebiasTrainer(
        model=build_model(config),
        args=training_arguments(config),
        train_dataset=build_task(config, tokenizer).encode(training_examples(config, None), with_answer=True),
        data_collator=Collator(tokenizer),
        rule=Edge(),
        readout=Classification(),
    )
    for _ in range(2):
        trainer.train()
        assert trainer.hook is not None
        assert trainer.hook.gradients == "single_pass"
    assert trainer.state.global_step == 2


def test_a_save_that_fails_at_the_last_rename_keeps_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"

    def fill(part: Path, text: str) -> None:
        part.mkdir()
        (part / "weights").write_text(text, encoding="utf-8")

    save_whole(folder, lambda part: fill(part, "first"))
    rename, calls = os.replace, []

    def fails_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_second)
    with pytest.raises(OSError, match="No space"):
        save_whole(folder, lambda part: fill(part, "second"))
    assert (folder / "weights").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_save_that_was_killed_between_the_renames_is_mended(tmp_path):
    (tmp_path / ".adapter.old").mkdir()
    (tmp_path / ".adapter.old" / "weights").write_text("first", encoding="utf-8")
    with pytest.raises(RuntimeError):
        save_whole(tmp_path / "adapter", lambda part: (_ for _ in ()).throw(RuntimeError("no")))
    assert (tmp_path / "adapter" / "weights").read_text(encoding="utf-8") == "first"


def test_a_recipe_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_recipe(Path("minilm_biased_snli_edge"))
    assert load_config(found).model == "package:minilm"
    assert find_recipe(Path("no/such/file.yaml")) == Path("no/such/file.yaml")
    with pytest.raises(
        InputError, match="no_such_recipe: no such file here, and no recipe of that name; the recipes are"
    ):
        find_recipe(Path("no_such_recipe"))
    with pytest.raises(InputError, match=r"did you mean minilm_generated_edge\?"):
        find_recipe(Path("minilm_genrated_edge"))
