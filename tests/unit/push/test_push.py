"""`debias push`: what is uploaded of a run, what never is, and the requests, against a hub on a loopback port."""

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import command_line
from fake_hub import fake_hub
from safetensors.torch import save_file

from debias.push.private import is_local, settings_without_paths, shown_base, without_paths

SECRET = "a sentence of the training data"
TRAINED = ["README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json", "tokenizer.json",
           "tokenizer_config.json"]  # fmt: skip


def run_in(folder: Path, model: str = "owner/base") -> Path:
    """A finished run, with all that a run may leave behind, and paths of this machine wherever they come to lie."""
    adapter = folder / "adapter"
    (folder / "checkpoint-4").mkdir(parents=True)
    (folder / "bias").mkdir()
    adapter.mkdir()
    config = {"model": model, "output_dir": str(folder), "method": {"name": "edge", "alpha": 1.0}, "seed": 3}
    data = {"train": {"source": str(folder / "my data" / "train.csv")}, "labels": ["yes", "no"]}
    (folder / "config.yaml").write_text(json.dumps({**config, "data": data, "max_length": 64}))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "steps": 8, "train_examples": 12}))
    (folder / "metrics.jsonl").write_text("")
    for name in ("seen.npz", "bias/lexical.npz", "checkpoint-4/trainer_state.json", "rows.csv"):
        (folder / name).write_text(SECRET)
    save_file({"lora_A": torch.ones(2, 3)}, str(adapter / "adapter_model.safetensors"))
    place = str(folder.parent / "cache" / "models" / "base")
    settings = {"base_model_name_or_path": place, "r": 8, "target_modules": ["query"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "tokenizer_config.json").write_text(json.dumps({"name_or_path": place, "pad_token": "[PAD]"}))
    (adapter / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/usr/lib": 0, "/root/": 1}}}))
    (adapter / "labels.json").write_text(json.dumps({"0": "yes", "1": "no"}))
    for name in ("origin.yaml", "training_args.bin", "optimizer.pt", "edits.json", "notes.txt"):
        (adapter / name).write_text(SECRET)
    return folder


@pytest.fixture
def said(monkeypatch, capsys):
    def run(*arguments):
        done = command_line(monkeypatch, capsys)(*arguments)
        assert done.code == 0, done.err
        return done.out

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    return lambda *arguments: command_line(monkeypatch, capsys)(*arguments).error


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with fake_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield running


def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(hub, tmp_path, monkeypatch, said):
    run = run_in(tmp_path / "edge")
    monkeypatch.delenv("HF_TOKEN")
    lines = said("push", str(run), "--repo", "me/edge", "--dry-run").splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == TRAINED
    weights = (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert lines[2].split()[0] == f"{weights / 1e6:.3f}"
    assert re.fullmatch(r"6 files, [\d.]+ MB, would be uploaded to \S+/me/edge \(public where it is new\)", lines[-1])
    told = json.loads(said("push", str(run), "--repo", "me/edge", "--dry-run", "--json"))
    assert told["files"]["adapter_model.safetensors"] == weights
    assert hub.asked == []


def test_the_files_of_every_tokenizer_go_along_and_what_does_not_is_said(tmp_path, said, caplog):
    run = run_in(tmp_path / "edge")
    (run / "adapter" / "additional_chat_templates").mkdir()
    names = ["additional_chat_templates/tools.jinja", "bpe.codes", "chat_template.jinja", "qwen.tiktoken"]
    names += ["source.spm", "tekken.json", "tokenizer.model", "vocab.json"]
    for name in names:
        (run / "adapter" / name).write_text("{}")
    lines = said("push", str(run), "--repo", "me/edge", "--dry-run").splitlines()
    assert {line.split()[-1] for line in lines[:-1]} == {*TRAINED, *names}
    (warning,) = [line for line in caplog.messages if "not uploaded" in line]
    assert warning.endswith(": notes.txt, optimizer.pt")


@pytest.mark.parametrize("private", [True, False])
def test_what_is_uploaded(hub, tmp_path, private, said):
    run = run_in(tmp_path / "edge")
    said("push", str(run), "--repo", "me/edge", *(["--private"] if private else []))
    there = hub.uploaded["me/edge"]
    assert sorted(there) == TRAINED
    assert hub.private == ({"me/edge"} if private else set())
    assert hub.tokens == {"Bearer hf_of_the_test"}
    for name, content in there.items():
        for private_word in (str(tmp_path), str(Path.home()), SECRET, "my data"):
            assert name == "tokenizer.json" or private_word.encode() not in content, f"{private_word} in {name}"
    assert there["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    assert json.loads(there["tokenizer_config.json"]) == {"pad_token": "[PAD]"}
    card = there["README.md"].decode()
    assert "base_model: owner/base\n" in card
    assert "train.csv" in card  # which file, not where it lies
    assert not (run / "adapter" / "README.md").exists()  # nothing is written here


@pytest.mark.parametrize("model", ["package:minilm", "/models/of mine/base", "./base"])
def test_a_base_that_is_not_on_the_hub(hub, tmp_path, model, said):
    """The hub takes no card that names one; the adapter's settings have its name alone."""
    run = run_in(tmp_path / "edge", model)
    said("push", str(run), "--repo", "me/edge")
    there = hub.uploaded["me/edge"]
    assert "base_model" not in there["README.md"].decode().partition("\n---\n")[0]
    shown = model if ":" in model else "base"
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == shown
    assert "/models" not in there["README.md"].decode()


def test_a_card_by_hand_goes_as_it_is(hub, tmp_path, said, refused):
    run = run_in(tmp_path / "edge")
    card = run / "adapter" / "README.md"
    card.write_text("# My own\nSee https://example.org/a/b and and/or.")
    said("push", str(run), "--repo", "me/edge")
    assert hub.uploaded["me/edge"]["README.md"] == card.read_bytes()
    card.write_text("# My own\nTrained on /data/mine/train.csv.")
    assert "names '/data/mine/train.csv.', a path of this machine; edit the card" in refused(
        "push", str(run), "--repo", "me/edge"
    )


def test_a_public_repository_is_not_taken_for_a_private_one(hub, tmp_path, refused):
    run = run_in(tmp_path / "edge")
    hub.uploaded["me/edge"] = {}
    assert "is there and public; make it private" in refused("push", str(run), "--repo", "me/edge", "--private")
    assert hub.uploaded["me/edge"] == {}


def test_without_a_token_or_a_network(hub, tmp_path, monkeypatch, refused):
    from huggingface_hub import constants

    run = run_in(tmp_path / "edge")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    assert "no token for" in (line := refused("push", str(run), "--repo", "me/edge"))
    assert "hf auth login" in line
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "did not take it" in refused("push", str(run), "--repo", "me/edge")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refused("push", str(run), "--repo", "me/edge")
    assert hub.asked == []


def test_runs_that_have_nothing_to_upload(tmp_path, refused):
    run = run_in(tmp_path / "edge")
    assert "--repo is 'edge', expected OWNER/NAME" in refused("push", str(run), "--repo", "edge", "--dry-run")
    settings = run / "adapter" / "adapter_config.json"
    kept = settings.read_text()
    settings.write_text(json.dumps({"somewhere": "/home/me/secret"}))
    assert "holds '/home/me/secret', a path of this machine" in refused("push", str(run), "--repo", "a/b", "--dry-run")
    settings.write_text(kept[:20])
    assert "is no JSON" in refused("push", str(run), "--repo", "a/b", "--dry-run")
    settings.write_text(kept)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    assert "has no weights" in refused("push", str(run), "--repo", "a/b", "--dry-run")
    (run / "adapter").rename(run / "other")
    assert "has no adapter/ or model/ folder" in refused("push", str(run), "--repo", "a/b", "--dry-run")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("from /data/x/train.csv: 3", "from train.csv: 3"),
        ("~/runs/edge and C:\\\\a\\\\b.csv", "edge and b.csv"),
        ("https://hf.co/a/b, and/or, 1/2/3, ./runs/a", "https://hf.co/a/b, and/or, 1/2/3, ./runs/a"),
        ("'/a/b' and /a", "'b' and /a"),
    ],
)
def test_paths_in_a_text(text, want):
    assert without_paths(text.replace("\\\\", "\\")) == want
    assert without_paths("in /x y/z/data.csv", (Path("/x y/z"),)) == "in data.csv"


def test_names_of_bases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    names = ["a/b", "bert-base", "package:minilm", "mine", str(tmp_path / "mine"), "~/mine"]
    assert [shown_base(name) for name in names] == [
        ("a/b", True), ("bert-base", True), ("package:minilm", False), ("mine", False), ("mine", False), ("mine", False)
    ]  # fmt: skip
    assert [is_local(name) for name in ("/a", "a/b")] == [True, False]
    untouched = b'{"base_model_name_or_path":  "a/b"}'
    assert settings_without_paths(untouched, "c/d") == untouched
