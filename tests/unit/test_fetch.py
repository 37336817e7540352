"""`debias fetch` in this process, against a hub of local folders; whole runs are in end_to_end/test_offline.py."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_runs
from fake_hub import FakeHub, fake_hub

from debias import fetch
from debias.config.data import DataSource
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.hub import cache as hub

REPO = "tiny/bert"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model beside what nobody needs."""
    made = tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "consolidated.safetensors", "README.md"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"x" * 100)
    return made


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    with fake_hub(models__tiny__bert=folder) as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def test_what_transformers_loads_is_fetched_once(server: FakeHub, tmp_path):
    item = fetch.fetch_model(REPO)
    assert (item.kind, item.name, item.state) == ("model", REPO, "fetched")
    assert item.place.startswith(str(tmp_path / "hub"))
    names = {path.name for path in Path(item.place).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "tf_model.h5", "consolidated.safetensors", "onnx"}
    assert item.bytes == sum(path.stat().st_size for path in Path(item.place).iterdir())
    count = len(server.downloads())
    again = fetch.fetch_model(REPO)
    assert (again.state, again.bytes, again.place) == ("there already", item.bytes, item.place)
    assert len(server.downloads()) == count


def test_the_parts_that_an_index_names(server: FakeHub, folder, tmp_path):
    made = tmp_path / "sharded"
    made.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (made / name).write_bytes((folder / name).read_bytes())
    for name in ("a.safetensors", "b.safetensors", "unused.safetensors"):
        (made / name).write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    server.folders["models/tiny/bert"] = made
    names = {path.name for path in Path(fetch.fetch_model(REPO).place).iterdir()}
    assert {"a.safetensors", "b.safetensors"} <= names
    assert "unused.safetensors" not in names
    (made / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks b\.safetensors, which its model\.safetensors\.index\.json names"):
        fetch.fetch_model(REPO)


def test_a_shard_that_is_gone_is_missed(folder, tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    (made / "a.safetensors").symlink_to(tmp_path / "blob")
    assert hub.in_folder(made).missing == ("a.safetensors", "a tokenizer (tokenizer.json)")
    assert hub.in_folder(made, tokenizer=False).missing == ("a.safetensors",)
    (tmp_path / "blob").write_bytes((folder / "model.safetensors").read_bytes())
    assert hub.in_folder(made, tokenizer=False).missing == ()
    (made / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="no index of weights"):
        hub.in_folder(made)


def cut(path: Path, by: int = 40) -> None:
    path.write_bytes(path.read_bytes()[:-by])


DAMAGE = {
    "cut short": ("model.safetensors", cut, r"model\.safetensors has [\d,]+ bytes, its header says [\d,]+"),
    "longer": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"0"), "its header says"),
    "no header": ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 64), r"safetensors cannot be read"),
    "half a header": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read"),
    "empty": ("model.safetensors", lambda path: path.write_bytes(b""), "cannot be read"),
    "a list": ("config.json", lambda path: path.write_text("[]"), r"config\.json is not what its name says"),
    "half a config": ("config.json", cut, r"config\.json cannot be read"),
    "no words": ("tokenizer.json", lambda path: path.write_text("{}"), r"tokenizer\.json is not what its name says"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_found(folder, tmp_path, kind):
    name, damage, message = DAMAGE[kind]
    made = shutil.copytree(folder, tmp_path / "model")
    assert hub.in_folder(made).damaged == ()
    damage(made / name)
    with pytest.raises(InputError, match=f"^model: {made}: .*{message}.*; copy or save it again$"):
        fetch.fetch_model(str(made))


def test_a_damaged_shard_is_found(folder, tmp_path):
    made = shutil.copytree(folder, tmp_path / "model")
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(made / "model.safetensors", made / name)
    (made / "model.safetensors").unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    (made / "pytorch_model.bin").unlink()
    assert hub.in_folder(made).damaged == ()
    cut(made / "b.safetensors")
    assert [fault.partition(" ")[0] for fault in hub.in_folder(made).damaged] == ["b.safetensors"]
    (made / "tokenizer.json").write_text("{}")
    assert len(hub.in_folder(made).damaged) == 2
    assert len(hub.in_folder(made, tokenizer=False).damaged) == 1


def test_a_damaged_cache_is_fetched_again_once_deleted(server: FakeHub, monkeypatch):
    from huggingface_hub import constants

    cut((Path(fetch.fetch_model(REPO).place) / "model.safetensors").resolve())
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(InputError, match=r"bert': model\.safetensors has .*; delete .*, and fetch") as caught:
            fetch.fetch_model(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    shutil.rmtree(str(caught.value).partition("delete ")[2].partition(",")[0])
    assert fetch.fetch_model(REPO).state == "fetched"


def test_offline_nothing_is_asked(server: FakeHub, monkeypatch):
    from huggingface_hub import constants

    place = fetch.fetch_model(REPO).place
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert fetch.fetch_model(REPO).state == "there already"
    (Path(place) / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model 'tiny/bert' is not in the cache, and HF_HUB_OFFLINE forbids.*; unset"):
        fetch.fetch_model(REPO)
    assert server.asked == []


def test_no_answer_names_the_id_and_the_host(server: FakeHub):
    server.shutdown()
    server.server_close()
    host = server.url.removeprefix("http://")
    with pytest.raises(
        InputError, match=f"model 'tiny/bert': {host} does not answer .*ConnectError.*HF_ENDPOINT"
    ) as error:
        fetch.fetch_model(REPO)
    assert "\n" not in str(error.value)


def test_an_unknown_model(server: FakeHub):
    with pytest.raises(InputError, match=r"model 'tiny/nothing' is not on .*or is private; check the name"):
        fetch.fetch_model("tiny/nothing")


def test_a_gated_model_says_how_to_log_in(server: FakeHub):
    server.gated.add("models/tiny/bert")
    host = server.url.removeprefix("http://")
    with pytest.raises(InputError, match=f"gated: .*accept them at {host}/tiny/bert, then run `hf auth login`"):
        fetch.fetch_model(REPO)


def test_a_disk_too_small_is_said_before_anything_is_fetched(server: FakeHub, monkeypatch):
    usage = fetch.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InputError, match=r"takes .* GB, and 0\.00 GB are free at .*; free some, or set HF_HOME"):
        fetch.fetch_model(REPO)
    assert server.downloads() == []


def test_a_model_without_weights(server: FakeHub, folder, tmp_path):
    made = tmp_path / "gguf"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.gguf").write_bytes(b"0")
    server.folders["models/tiny/bert"] = made
    with pytest.raises(InputError, match="has no weights that transformers loads"):
        fetch.fetch_model(REPO)


def test_what_is_on_this_machine_stays_where_it_is(folder, tmp_path):
    item = fetch.fetch_model(str(folder))
    assert (item.state, item.place) == ("on this machine", str(folder))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert fetch.fetch_data(DataSource(source="rows.jsonl"), tmp_path) == fetch.Item(
        "data", "rows.jsonl", "on this machine", 3, str(rows)
    )
    assert fetch.fetch_data(DataSource(source="generated")).state == "made here"
    assert fetch.fetch_model("vision:mlp").state == "made here"


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file; looked for"):
        fetch.fetch_data(DataSource(source="nowhere.jsonl"), tmp_path)
    with pytest.raises(InputError, match="not a known package"):
        fetch.fetch_model("package:gpt9")
    with pytest.raises(InputError, match=r"lacks config\.json, weights \(model\.safetensors\), a tokenizer"):
        fetch.fetch_model(str(tmp_path))
    with pytest.raises(InputError, match="no hub id"):
        hub.in_cache("what is this?")


def test_models_of_the_runs_before_a_run_are_fetched_too(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    settings = tiny_runs.settings_for(folder, tmp_path / "run") | {"order": "upsampled"}
    plain = fetch.fetch(RunConfig.model_validate(settings | {"first_stage": {"settings": {"max_steps": 3}}}))
    assert [item.name for item in plain if item.kind == "model"] == [str(folder)]
    stage = {"keep": "errors", "settings": {"model": REPO, "max_steps": 3}}
    found = fetch.fetch(RunConfig.model_validate(settings | {"first_stage": stage}))
    assert [(item.name, item.state) for item in found if item.kind == "model"] == [
        (str(folder), "on this machine"),
        (REPO, "fetched"),
    ]
