"""debias.merging.editing: an edited adapter loads as any, and says what the edit of the dense changes says.

The oracle takes the dense changes from PEFT's own merging, edits them with numpy, and adds them to the base.
"""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from debias.adapters.lora import add_lora
from debias.errors import InputError
from debias.merging import EDITS, editing
from debias.merging.afr_last_layer import AFRLastLayer
from debias.merging.changes import read_adapter
from debias.merging.editing import edit_adapters
from debias.merging.edits import LastLayer
from debias.runs.names import EDITS as EDITS_FILE

HEADS = ("classifier", "score")
PATTERNS = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"k_proj": 1, "up_proj": 20}}


def lora(model: Any, seed: int, **settings: Any) -> Any:
    """As `tiny_models.with_lora`, and what trains whole is off its start too."""
    adapted = tiny_models.with_lora(model, seed=seed, **settings)
    return _off_start(adapted, seed)


def experts(family: str) -> Callable[[int], Any]:
    """Attention, and fused experts of another rank, as a run of ours adapts them."""

    def adapt(seed: int) -> Any:
        model = tiny_models.family(family)
        settings = {"r": 3, "alpha": 6, "dropout": 0.0, "targets": "auto", "classification": False, "experts_r": 2}
        adapted = add_lora(model, **settings)
        tiny_models.randomize_lora(adapted)
        return _off_start(adapted, seed)

    return adapt


def _off_start(adapted: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


# name -> base, adapter on it with a seed
MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "plain": (tiny_models.llama, lambda seed: lora(tiny_models.llama(), seed)),
    "patterns": (tiny_models.llama, lambda seed: lora(tiny_models.llama(), seed, **PATTERNS)),
    "rslora": (tiny_models.llama, lambda seed: lora(tiny_models.llama(), seed, use_rslora=True, **PATTERNS)),
    "head": (tiny_models.bert, lambda seed: lora(tiny_models.bert(), seed, task_type="SEQ_CLS")),
    "conv1d": (
        tiny_models.gpt2,
        lambda seed: lora(tiny_models.gpt2(), seed, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    ),
    "experts": (lambda: tiny_models.family("qwen3_moe"), experts("qwen3_moe")),
    "experts_in_first": (lambda: tiny_models.family("llama4_text"), experts("llama4_text")),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three of each kind."""
    place = tmp_path_factory.mktemp("adapters")
    found: dict[str, list[Path]] = {}
    for name, (_, adapt) in MODELS.items():
        for seed in range(3):
            folder = place / f"{name}{seed}"
            adapt(seed).save_pretrained(folder)
            found.setdefault(name, []).append(folder)
    return found


def dense_changes(name: str, folder: Path) -> dict[str, np.ndarray]:
    """What PEFT's own merging changes of each parameter, float64."""
    base = MODELS[name][0]().double().eval()
    before = {path: parameter.detach().clone() for path, parameter in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return {path: (p.detach() - before[path]).numpy() for path, p in merged.named_parameters()}


def mean(*weights: float) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    def of(changes: Sequence[np.ndarray]) -> np.ndarray:
        shares = [weight / sum(weights) for weight in weights] if weights else [1 / len(changes)] * len(changes)
        return sum(share * change for share, change in zip(shares, changes, strict=True))  # type: ignore[return-value]

    return of


def best(weight: np.ndarray, rank: int) -> np.ndarray:
    if weight.ndim < 2:  # a bias, a norm: not changed
        return weight
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    s[..., rank:] = 0
    return (u * s[..., None, :]) @ vh


def by_energy(weight: np.ndarray, share: float) -> np.ndarray:
    """With the fewest directions that hold the share, of a stack in every expert."""
    if weight.ndim < 2:
        return weight
    squares = np.linalg.svd(weight, compute_uv=False) ** 2
    for rank in range(1, squares.shape[-1] + 1):
        if (squares[..., :rank].sum(-1) >= share * squares.sum(-1)).all():
            return best(weight, rank)
    raise AssertionError


def stock(changes: Sequence[np.ndarray]) -> np.ndarray:
    """Of two, of a stack each by itself."""
    if changes[0].ndim == 3:
        return np.stack([stock(of_one) for of_one in zip(*changes, strict=True)])
    one, two = changes
    lengths = math.sqrt(float((one**2).sum()) * float((two**2).sum()))
    cosine = max(0.0, float((one * two).sum()) / lengths) if lengths else 0.0
    return 2 * cosine / (1 + cosine) * (one + two) / 2


Oracle = Callable[[Sequence[np.ndarray]], np.ndarray]
# name of the edit, settings, how many adapters, what becomes of dense changes, and of what was trained whole
CASES: dict[str, tuple[str, dict[str, Any], int, Oracle, Oracle]] = {
    "soup": ("soup", {}, 3, mean(), mean()),
    "soup of one": ("soup", {}, 1, mean(), mean()),
    "weighted": ("soup", {"weights": [1, 3]}, 2, mean(1, 3), mean(1, 3)),
    "soup, rank 2": ("soup", {"rank": 2}, 2, lambda changes: best(mean()(changes), 2), mean()),
    "greedy_soup": ("greedy_soup", {}, 3, mean(), mean()),  # nothing makes it worse: all are in
    "model_stock": ("model_stock", {}, 2, stock, mean()),
    "truncate": ("truncate", {"keep": 1}, 1, lambda changes: best(changes[0], 1), mean()),
    "whole rank": ("truncate", {"keep": 99}, 1, mean(), mean()),
    "energy": ("truncate", {"energy": 0.8}, 1, lambda changes: by_energy(changes[0], 0.8), mean()),
    "scale": ("scale", {"alpha": 0.25}, 1, lambda changes: 0.25 * changes[0], mean()),
}


def test_every_edit_has_a_case() -> None:
    # No dense change is the oracle of these: below.
    elsewhere = {f"{one}_last_layer" for one in ("afr", "crt", "dfr", "dispel", "gsr")}
    assert {edit for edit, *_ in CASES.values()} | elsewhere == set(EDITS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_an_edited_adapter_is_the_edit_of_dense_changes(
    adapters: dict[str, list[Path]], name: str, case: str, tmp_path: Path
) -> None:
    edit, settings, count, layers, whole = CASES[case]
    given = adapters[name][:count]
    edit_adapters(edit, given, tmp_path / "out", settings, score=lambda folder: 0.5)
    changes = [dense_changes(name, folder) for folder in given]
    wanted = {
        path: (whole if path.startswith(HEADS) else layers)([one[path] for one in changes]) for path in changes[0]
    }
    found = dense_changes(name, tmp_path / "out")
    assert sum(bool(change.any()) for change in changes[0].values()) >= 5
    for path, change in wanted.items():
        np.testing.assert_allclose(found[path], change, atol=1e-6 * (1 + np.abs(change).max()), err_msg=path)
    # As anybody loads it, beside the base with the dense changes added.
    base = MODELS[name][0]().eval()
    dense = copy.deepcopy(base)
    for path, parameter in dense.named_parameters():
        parameter.data += torch.from_numpy(wanted[path]).float()
    edited = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours, theirs = edited(input_ids=ids).logits, dense(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))
    scalings = [layer.scaling["default"] for layer in edited.modules() if isinstance(layer, LoraLayer)]
    assert set(scalings) == {1.0}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_peft_s_change(adapters: dict[str, list[Path]], name: str) -> None:
    """In float64, whatever the ranks, alphas and scalings."""
    folder = adapters[name][0]
    adapter, dense = read_adapter(folder), dense_changes(name, folder)
    for module in adapter.pairs:
        change = adapter.change(module)
        product = (change.b_OR @ change.a_RI).numpy()
        near = [path for path in dense if path.startswith(module.replace(".base_layer", ""))]
        fits = [dense[path] for path in near] + [dense[path].swapaxes(-1, -2) for path in near if dense[path].ndim > 1]
        distances = [np.abs(one - product).max() for one in fits if one.shape == product.shape]
        assert min(distances) < 1e-12, module
        assert adapter.shape(module) == list(product.shape)
    if name == "head":
        assert sorted(adapter.whole) == ["classifier.bias", "classifier.weight"]


def test_heads_are_averaged(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    given = adapters["head"]
    edit_adapters("soup", given, tmp_path / "out")
    key = "base_model.model.classifier.weight"
    heads = [load_file(folder / "adapter_model.safetensors")[key].double() for folder in given]
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")[key]
    assert found.dtype == torch.float32
    assert torch.equal(found, ((heads[0] + heads[1] + heads[2]) / 3).float())


def test_settings_of_the_edited_adapter(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """Ranks that differ have patterns of one module each, and all that is no rank stays."""
    edit_adapters("soup", adapters["rslora"][:2], tmp_path / "out")
    before, after = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (adapters["rslora"][0], tmp_path / "out")
    )
    assert (after["r"], after["lora_alpha"], after["use_rslora"]) == (6, 6, False)
    assert after["rank_pattern"] == after["alpha_pattern"]
    assert sorted(after["rank_pattern"].values()) == [4, 4, 10]
    changed = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"}
    assert {key: value for key, value in before.items() if key not in changed} == {
        key: value for key, value in after.items() if key not in changed
    }
    assert sorted(before["target_modules"]) == sorted(after["target_modules"])
    edit_adapters("scale", [tmp_path / "out"], tmp_path / "again")
    twice = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {**twice, "target_modules": 0} == {**after, "target_modules": 0}


def test_16_bits_are_written_as_32(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """The soup of bfloat16 matrices has more digits than they; a head stays what it is."""
    copies = []
    for number, folder in enumerate(adapters["head"][:2]):
        copies.append(_copy(folder, tmp_path / str(number)))
        tensors = load_file(copies[-1] / "adapter_model.safetensors")
        halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        save_file(halves, copies[-1] / "adapter_model.safetensors", {"format": "pt"})
    edit_adapters("soup", copies, tmp_path / "out", {"weights": [1, 2]})
    kinds = {name: t.dtype for name, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}


def test_fused_parameters_of_one_module_keep_one_rank(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """Where one of them needs fewer directions, zeros stand for the others: the file does not say which is which."""
    source = _copy(adapters["experts"][0], tmp_path / "source")
    stacks = [module for module in read_adapter(source).pairs if module.endswith("experts.base_layer")]

    def flatten(tensors: dict[str, torch.Tensor]) -> None:
        for module in stacks:  # the second direction of every expert
            tensors[f"base_model.model.{module}.lora_A.weight"][1::2] *= 1e-3

    damaged(source, flatten)
    edit_adapters("truncate", [source], tmp_path / "out", {"energy": 0.999})
    before, after = dense_changes("experts", source), dense_changes("experts", tmp_path / "out")
    for path, change in before.items():
        np.testing.assert_allclose(after[path], by_energy(change, 0.999), atol=1e-6, err_msg=path)
    edited = read_adapter(tmp_path / "out")
    assert stacks
    for module in stacks:
        whole, cut = edited.change(module.removesuffix(".base_layer")), edited.change(module)
        assert (whole.rank, cut.rank) == (2, 2)
        assert whole.a_RI[:, 1].abs().max() > 0.01
        assert not cut.a_RI[:, 1].any()


def test_a_start_that_asks_something_of_the_rank(tmp_path: Path) -> None:
    """PEFT draws orthogonal matrices at even ranks alone; an adapter that is there needs no start."""
    source = save(tmp_path / "source", tiny_models.llama(), r=4, init_lora_weights="orthogonal")
    edit_adapters("truncate", [source], tmp_path / "out", {"keep": 3})
    before, after = dense_changes("plain", source), dense_changes("plain", tmp_path / "out")
    for path, change in before.items():
        np.testing.assert_allclose(after[path], best(change, 3), atol=1e-6, err_msg=path)


# The folder.


def _copy(source: Path, target: Path, **changes: Any) -> Path:
    """An adapter's folder with other settings."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    if changes:
        file = target / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return target


def test_the_record(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    given = adapters["plain"][:2]
    made = edit_adapters("soup", given, tmp_path / "out")
    record = json.loads((tmp_path / "out" / EDITS_FILE).read_text())
    assert (record["edit"], record["settings"]) == ("soup", {"weights": None, "rank": None})
    for told, folder in zip(record["adapters"], given, strict=True):
        assert told["folder"] == str(folder)
        weights = (folder / "adapter_model.safetensors").read_bytes()
        assert told["sha256"]["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
        assert set(told["sha256"]) == {"adapter_model.safetensors", "adapter_config.json"}
    assert (record["ranks"], record["modules"]) == ({"before": [3, 3], "after": [6, 6]}, 14)
    changes = [dense_changes("plain", folder) for folder in (*given, tmp_path / "out")]
    norms = [math.sqrt(sum(float((change**2).sum()) for change in one.values())) for one in changes]
    assert record["norm"] == pytest.approx(2 * norms[2] / (norms[0] + norms[1]), rel=1e-5)
    assert record["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made.line == (
        f"{tmp_path}/out: soup of 2 adapters, 14 modules, rank 3 to 6; the change has {record['norm']:.3g} times the"
        " norm it had"
    )
    again = edit_adapters("scale", [tmp_path / "out"], tmp_path / "half", {"alpha": 0.5})
    assert again.norm == pytest.approx(0.5, rel=1e-6)
    assert again.adapters[0]["edits"] == record


def test_words_come_along_and_an_optimizer_does_not(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    source = _copy(adapters["plain"][0], tmp_path / "run" / "adapter")
    words = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "tokenizer.model"}
    words |= {"chat_template.jinja", "merges.txt", "preprocessor_config.json", "labels.json"}
    for name in (*words, "optimizer.pt", "trainer_state.json", "rng_state.pth", "README.md"):
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("tool")
    edit_adapters("scale", [source], tmp_path / "out")
    own = {"adapter_config.json", "adapter_model.safetensors", EDITS_FILE}
    assert {path.name for path in (tmp_path / "out").iterdir()} == words | own | {"additional_chat_templates"}
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "tool"


def test_a_run_is_never_written_into(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    source = _copy(adapters["plain"][0], run / "adapter")
    (run / "config.yaml").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("kept")
    (tmp_path / "file").write_text("")
    for out, message in {
        run: "which is read here",
        source: "which is read here",
        tmp_path: "which is read here",
        run / "soup": "lies in .*run, which was trained",
        source / "soup": "lies in .*adapter, which was trained",
        tmp_path / "full": "is not empty and holds more than an earlier edit's files",
        tmp_path / "file": "is a file, expected a folder",
        tmp_path / "file" / "out": "is a file, expected a folder",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            edit_adapters("scale", [source], out)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [*(path.name for path in source.iterdir()), "config.yaml", "file", "thing"]
    )


def test_what_an_edit_wrote_may_be_replaced_and_nothing_else(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    out, (one, two, _) = tmp_path / "out", adapters["plain"]
    out.mkdir()
    edit_adapters("scale", [one], out)
    assert edit_adapters("soup", [one, two], out).edit == "soup"
    (out / "eval").mkdir()
    with pytest.raises(InputError, match="is not empty and holds more than an earlier edit's files"):
        edit_adapters("scale", [one], out)
    (out / "eval").rmdir()
    (out / EDITS_FILE).write_text("[]")
    with pytest.raises(InputError, match="is not empty"):
        edit_adapters("scale", [one], out)


def test_nothing_is_half_written(
    adapters: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk after the weights: what an earlier edit left stays, and nothing beside it."""
    out, (one, two, _) = tmp_path / "out", adapters["plain"]
    edit_adapters("scale", [one], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(editing, "_copy_words", full)
    with pytest.raises(InputError, match=r"out: cannot be written: No space left on device"):
        edit_adapters("soup", [one, two], out)
    with pytest.raises(InputError, match=r"other: cannot be written: No space left on device"):
        edit_adapters("soup", [one, two], tmp_path / "other")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_greedy_soup_says_what_it_chose_by(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """Candidates are whole adapters, and are gone afterwards; the one that makes it worse is in the record alone."""
    given, seen = adapters["plain"], []

    def score(folder: Path) -> float:
        ranks = {read_adapter(folder).rank(module) for module in read_adapter(folder).pairs}
        seen.append((folder, ranks))
        return [0.6, 0.9, 0.7, 0.8, 0.95][len(seen) - 1]

    made = edit_adapters("greedy_soup", given, tmp_path / "out", score=score)
    assert [ranks for _, ranks in seen] == [{3}, {3}, {3}, {6}, {6}]
    assert not any(folder.exists() for folder, _ in seen)
    assert [(one["folder"], one["alone"], one["together"], one["kept"]) for one in made.tried] == [
        (str(given[1]), 0.9, 0.9, True),
        (str(given[2]), 0.7, 0.8, False),
        (str(given[0]), 0.6, 0.95, True),
    ]
    assert [one["folder"] for one in made.adapters] == [str(given[1]), str(given[0])]
    assert ": greedy_soup of 2 adapters (of 3, chosen on validation rows), 14 modules, rank 3 to 6;" in made.line
    dense = [dense_changes("plain", folder) for folder in (given[0], given[1], tmp_path / "out")]
    for path, change in dense[2].items():
        np.testing.assert_allclose(change, (dense[0][path] + dense[1][path]) / 2, atol=1e-6)
    with pytest.raises(InputError, match="greedy_soup chooses by how candidates do on rows held out; give it a score"):
        edit_adapters("greedy_soup", given, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("setting", "reached", "chosen"),
    [
        ({"keep": [3, 1, 2]}, (0.5, 0.7, 0.6), {"keep": 2, "energy": None}),
        ({"keep": [2, 1]}, (0.5, 0.5), {"keep": 1, "energy": None}),  # of equals the one that cuts most
        ({"energy": [0.9, 0.3]}, (0.5, 0.6), {"keep": None, "energy": 0.9}),
    ],
)
def test_a_rank_is_chosen_over_pseudo_groups(
    adapters: dict[str, list[Path]],
    tmp_path: Path,
    setting: dict[str, Any],
    reached: tuple[float, ...],
    chosen: dict[str, Any],
) -> None:
    given, seen = adapters["plain"][0], []

    def score(folder: Path) -> float:
        ranks = {read_adapter(folder).rank(module) for module in read_adapter(folder).pairs}
        seen.append((folder, max(ranks)))
        return reached[len(seen) - 1]

    made = edit_adapters("truncate", [given], tmp_path / "out", setting, over_pseudo_groups=score)
    assert [rank for _, rank in seen] == sorted(rank for _, rank in seen)  # what cuts most first
    assert not any(folder.exists() for folder, _ in seen)
    assert made.settings == chosen
    assert [one["pseudo_group_accuracy"] for one in made.variants] == list(reached)
    key, value = next((key, value) for key, value in chosen.items() if value is not None)
    every = ", ".join(f"{one:g}" for one in sorted(setting[key]))
    assert f"({key} {value:g} of {every}, chosen over pseudo groups of validation rows)" in made.line
    edit_adapters("truncate", [given], tmp_path / "plain", {key: value})
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    with pytest.raises(InputError, match="truncate chooses by how variants do over pseudo groups; give it a score"):
        edit_adapters("truncate", [given], tmp_path / "other", setting)
    assert not (tmp_path / "other").exists()


def test_a_last_layer_for_which_labels_weigh_the_same(
    adapters: dict[str, list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fitted to the rows that the run trained on unless validation rows are asked for; the rest of it stays."""
    caplog.set_level(logging.INFO, "debias")
    given, generator, asked = adapters["head"][0], np.random.default_rng(1), []
    labels = np.where(np.arange(90) < 80, 0, 1 + np.arange(90) % 2)
    inputs = generator.normal(size=(90, 16)) + 1.5 * np.eye(3, 16)[labels]

    def layer_inputs(folder: Path, layer: str, *, training: bool = False) -> tuple[np.ndarray, np.ndarray, None]:
        asked.append((layer, training))
        return inputs, labels, None

    made = edit_adapters("crt_last_layer", [given], tmp_path / "out", layer_inputs=layer_inputs)
    edit_adapters("crt_last_layer", [given], tmp_path / "two", {"rows": "validation"}, layer_inputs=layer_inputs)
    assert asked == [("classifier", True), ("classifier", False)]
    means = []
    for folder in (given, tmp_path / "out"):
        whole = read_adapter(folder).whole
        said = (inputs @ whole["classifier.weight"].numpy().T + whole["classifier.bias"].numpy()).argmax(axis=1)
        means.append(np.mean([(said == labels)[labels == label].mean() for label in range(3)]))
    assert (made.rows["balanced_before"], made.rows["balanced_after"]) == pytest.approx(means)
    assert means[0] < means[1]
    assert "crt_last_layer: in the mean over labels right on " in caplog.text
    assert "take a smaller gamma" not in caplog.text
    one, two = (dense_changes("head", folder) for folder in (given, tmp_path / "out"))
    for path in one:
        if not path.startswith(HEADS):
            np.testing.assert_allclose(two[path], one[path], atol=1e-6, err_msg=path)


def test_a_last_layer_is_retrained_and_all_else_stays(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    given, asked = adapters["head"][0], []
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(12, 16, generator=generator).numpy(), np.arange(12) % 3

    def layer_inputs(folder: Path, layer: str) -> tuple[np.ndarray, np.ndarray, None]:
        asked.append((folder, layer))
        return inputs, labels, None

    settings = {"gamma": 2.0, "steps": 7, "learning_rate": 0.5}
    made = edit_adapters("afr_last_layer", [given], tmp_path / "out", settings, layer_inputs=layer_inputs)
    assert asked == [(given, "classifier")]
    before, after = read_adapter(given), read_adapter(tmp_path / "out")
    weight, bias = (before.whole[f"classifier.{name}"].double() for name in ("weight", "bias"))
    last = LastLayer(torch.from_numpy(inputs).double(), torch.from_numpy(labels), weight, bias)
    wanted = AFRLastLayer(gamma=2.0, steps=7, learning_rate=0.5).retrained(last)
    torch.testing.assert_close(after.whole["classifier.weight"], wanted.weight_CD.float())
    assert wanted.bias_C is not None
    torch.testing.assert_close(after.whole["classifier.bias"], wanted.bias_C.float())
    assert float((after.whole["classifier.weight"] - before.whole["classifier.weight"]).abs().max()) > 1e-2
    one, two = (dense_changes("head", folder) for folder in (given, tmp_path / "out"))
    for path in one:
        if not path.startswith(HEADS):
            np.testing.assert_allclose(two[path], one[path], atol=1e-6, err_msg=path)
    assert made.settings["steps"] == 7
    right = [
        float(((inputs @ w.T + b).argmax(axis=1) == labels).mean())
        for w, b in (
            (one.whole["classifier.weight"].numpy(), one.whole["classifier.bias"].numpy()) for one in (before, after)
        )
    ]
    assert made.rows == {"count": 12, "right_before": pytest.approx(right[0]), "right_after": pytest.approx(right[1])}
    with pytest.raises(InputError, match="afr_last_layer fits the last layer to rows held out; give it these"):
        edit_adapters("afr_last_layer", [given], tmp_path / "other")
    with pytest.raises(
        InputError, match="plain0 trained no last layer whole, as adapters of classifiers do; there is no"
    ):
        edit_adapters("afr_last_layer", adapters["plain"][:1], tmp_path / "other", layer_inputs=layer_inputs)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("name", "own"), [("dfr_last_layer", {}), ("dispel_last_layer", {"s": [0.8]})])
def test_a_last_layer_fitted_to_balanced_groups(
    adapters: dict[str, list[Path]],
    name: str,
    own: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its figures are those of the layer that was written; without groups it is refused."""
    caplog.set_level(logging.INFO, "debias")
    given, generator = adapters["head"][0], np.random.default_rng(1)
    labels, groups = np.arange(60) % 3, (np.arange(60) % 10 == 0).astype(np.int64)
    inputs = generator.normal(size=(60, 16)) + 6 * np.eye(3, 16)[labels]
    settings = {"c": [1.0], "retrainings": 3, **own}
    asked = {"layer_inputs": lambda folder, layer: (inputs, labels, groups)}
    made = edit_adapters(name, [given], tmp_path / "out", settings, **asked)
    worst = []
    for folder in (given, tmp_path / "out"):
        whole = read_adapter(folder).whole
        said = (inputs @ whole["classifier.weight"].numpy().T + whole["classifier.bias"].numpy()).argmax(axis=1)
        cells = [(labels == label) & (groups == group) for label in range(3) for group in (0, 1)]
        worst.append(min(float((said == labels)[cell].mean()) for cell in cells if cell.any()))
    assert (made.rows["worst_before"], made.rows["worst_after"]) == pytest.approx(worst)
    assert worst[0] < worst[1]
    assert (made.rows["count"], made.rows["c"], made.rows["cells"], made.rows["of_each_cell"]) == (60, 1.0, 6, 2)
    assert "(of 6 pairs)" in caplog.text
    assert "is no better for it" not in caplog.text
    one, two = (dense_changes("head", folder) for folder in (given, tmp_path / "out"))
    for path in one:
        if not path.startswith(HEADS):
            np.testing.assert_allclose(two[path], one[path], atol=1e-6, err_msg=path)
    with pytest.raises(InputError, match=rf"{name} reads groups, and a row held out has none; data.group_"):
        edit_adapters(name, [given], tmp_path / "x", layer_inputs=lambda folder, layer: (inputs, labels, None))
    assert not (tmp_path / "x").exists()


def test_a_last_layer_that_learned_to_be_wrong_is_told(
    adapters: dict[str, list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight rows in ten are right and sure, and two are wrong and sure, where the same is to be seen: these win."""
    caplog.set_level(logging.INFO, "debias")
    head = read_adapter(adapters["head"][0]).whole
    weight = head["classifier.weight"].numpy()
    inputs = np.repeat(20 * weight[:1] / (weight[0] @ weight[0]), 10, axis=0)  # label 0, as the head has it
    settings = {"gamma": 20.0, "steps": 200, "learning_rate": 1.0, "max_norm": 0.0}
    labels = np.array([0] * 8 + [1] * 2)
    given = (adapters["head"][:1], tmp_path / "out", settings)
    made = edit_adapters("afr_last_layer", *given, layer_inputs=lambda folder, layer: (inputs, labels, None))
    assert made.rows == {"count": 10, "right_before": 0.8, "right_after": 0.2}
    assert "afr_last_layer: right on 80.0 % of 10 rows before, on 20.0 % after" in caplog.text
    assert "is right on 20.0 % of its own rows now, the most frequent label would be on 80.0 %" in caplog.text


# What cannot be edited exactly.


def save(folder: Path, model: Any, seed: int = 0, **settings: Any) -> Path:
    lora(model, seed, **settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True, under which a change is not B A alone"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', under which the base is altered too"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.lora_embedding_A is no matrix beside a linear layer"),
    ],
)
def test_variants_are_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter", tiny_models.llama(), **settings)
    for name, edit in (("scale", {}), ("truncate", {"keep": 1}), ("soup", {})):
        with pytest.raises(InputError, match=message) as caught:
            edit_adapters(name, [folder], tmp_path / "out", edit)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_no_peft_here_knows(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """A later PEFT's variant is told by its setting; one that is off is none."""
    copy_ = _copy(adapters["plain"][0], tmp_path / "off", use_newest=None, use_later=False)
    edit_adapters("scale", [copy_], tmp_path / "out")
    copy_ = _copy(adapters["plain"][0], tmp_path / "on", use_newest={"beta": 1})
    with pytest.raises(InputError, match=r"use_newest is \{'beta': 1\}, under which a change is not B A alone"):
        edit_adapters("scale", [copy_], tmp_path / "other")


def test_another_kind_of_adapter(tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    settings = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    get_peft_model(tiny_models.llama(), IA3Config(**settings)).save_pretrained(tmp_path / "ia3")
    with pytest.raises(InputError, match="ia3 is of kind IA3; only the changes of LoRA are edited"):
        edit_adapters("scale", [tmp_path / "ia3"], tmp_path / "out")


def test_fused_parameters_of_several_ranks(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """The file does not say which of the nested matrices are whose."""
    patterns = {"mlp.experts.gate_up_proj": 2, "mlp.experts.down_proj": 1}
    copy_ = _copy(adapters["experts"][0], tmp_path / "adapter", rank_pattern=patterns)
    with pytest.raises(InputError, match=r"layers.0.mlp.experts.*: its parameters have several ranks or alphas"):
        edit_adapters("scale", [copy_], tmp_path / "out")


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return folder


def test_damaged_adapters(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    key = f"base_model.model.{module}.lora_A.weight"
    cases: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
        "nan": (lambda tensors: tensors[key].__setitem__((0, 0), float("nan")), f"{module} is not finite"),
        "alone": (lambda tensors: tensors.pop(key), f"{module} has lora_B alone"),
        "rank": (
            lambda tensors: tensors.__setitem__(key, torch.ones(2, 16)),
            f"{module} has 2 rows of A and 3 columns of B at rank 3",
        ),
        "convolution": (lambda tensors: tensors.__setitem__(key, torch.ones(3, 16, 1, 1)), f"{module} is no linear"),
        "nothing": (lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora_" in name], "holds no LoRA"),
    }
    for name, (change, message) in cases.items():
        folder = damaged(_copy(adapters["plain"][0], tmp_path / name), lambda tensors, change=change: change(tensors))
        with pytest.raises(InputError, match=message):
            edit_adapters("scale", [folder], tmp_path / "out")
    bias = "base_model.model.classifier.bias"
    head = damaged(_copy(adapters["head"][0], tmp_path / "head"), lambda tensors: tensors[bias].fill_(float("inf")))
    with pytest.raises(InputError, match=r"head: classifier.bias is not finite"):
        edit_adapters("soup", [head], tmp_path / "out")
    cut = _copy(adapters["plain"][0], tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(InputError, match="does not fit or cannot be read"):
        edit_adapters("scale", [cut], tmp_path / "out")
    (cut / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        edit_adapters("scale", [cut], tmp_path / "out")
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        edit_adapters("scale", [tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def narrow_head(tensors: dict[str, torch.Tensor]) -> None:
    """One for two labels in place of three."""
    tensors |= {name: tensor[:2].clone() for name, tensor in tensors.items() if "classifier" in name}


def test_soups_of_what_differs(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    plain, head, stack = (adapters[name][0] for name in ("plain", "head", "experts"))
    few = save(tmp_path / "few", tiny_models.llama(), target_modules=["q_proj", "v_proj"])
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    others = {"rank_pattern": dict.fromkeys([*parameters, "mlp.experts.bias"], 2)}
    others["alpha_pattern"] = dict.fromkeys(others["rank_pattern"], 4)
    cases: list[tuple[Path, Path, str]] = [
        (plain, _copy(plain, tmp_path / "base", base_model_name_or_path="/gone/it"), "base was trained on /gone/it, "),
        (plain, _copy(plain, tmp_path / "task", task_type="CAUSAL_LM"), "task_type is 'CAUSAL_LM' in .*task, None in"),
        (plain, few, r"few does not change model.layers.0.\S+, which .*plain0 does"),
        (few, plain, r"few does not change model.layers.0.\S+, which .*plain0 does"),
        (
            plain,
            save(tmp_path / "wider", tiny_models.llama(hidden=32)),
            r"model.layers.0.\S+ has the shape \[\d+, \d+\] in .*wider, \[\d+, \d+\] in .*plain0",
        ),
        (
            head,
            damaged(_copy(head, tmp_path / "two"), narrow_head),
            r"classifier.\w+ has the shape \[2.*\] in .*two, \[3.*\] in .*head0",
        ),
        (
            head,
            damaged(_copy(head, tmp_path / "bare"), lambda tensors: tensors.pop("base_model.model.classifier.bias")),
            "bare does not change classifier.bias, which .*head0 does",
        ),
        (
            stack,
            _copy(stack, tmp_path / "fused", target_parameters=[*parameters, "mlp.experts.bias"], **others),
            "target_parameters is .*mlp.experts.bias.* in .*fused, ",
        ),
    ]
    for one, two, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            edit_adapters("soup", [one, two], tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="truncate is an edit of one adapter, 2 were given"):
        edit_adapters("truncate", adapters["plain"][:2], tmp_path / "out", {"keep": 1})
    assert not (tmp_path / "out").exists()


def test_ranks_may_differ_in_a_soup(adapters: dict[str, list[Path]], tmp_path: Path) -> None:
    """And alphas, scalings, dropout: only the changes are averaged."""
    other = save(tmp_path / "other", tiny_models.llama(), 7, r=5, lora_alpha=11, use_rslora=True)
    edit_adapters("soup", [adapters["plain"][0], other], tmp_path / "out")
    one, two, found = (dense_changes("plain", folder) for folder in (adapters["plain"][0], other, tmp_path / "out"))
    for path in found:
        np.testing.assert_allclose(found[path], (one[path] + two[path]) / 2, atol=1e-6)


@pytest.mark.parametrize(("told", "alike"), [("a", True), ("b", False), (None, True)])
def test_soups_of_runs_on_two_bases_of_one_name(
    adapters: dict[str, list[Path]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    told: str | None,
    alike: bool,
) -> None:
    """A base in a folder that was replaced between two runs; nobody can say where a run kept no digest."""
    runs = []
    for number, digest in enumerate(("a", told)):
        run = tmp_path / f"run{number}"
        _copy(adapters["plain"][0], run / "adapter")
        (run / "run.json").write_text(json.dumps({"base_sha256": digest} if digest else {}))
        (run / "config.yaml").write_text("{")
        runs.append(run / "adapter")
    with caplog.at_level(logging.WARNING):
        edit_adapters("soup", runs, tmp_path / "out")
    assert ("were trained on other weights of a base of one name" in caplog.text) is not alike
