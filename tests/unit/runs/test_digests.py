"""Digests of weights: other numbers anywhere in a tensor are other weights, another place is not."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from debias.runs.digests import sha256_of, weights_digest, weights_of_run

SIZES = {"small": (3, 4), "large": (700, 700), "empty": (0, 4), "tail": (5,)}  # 2 MB: not all of it is read


def weights(folder: Path, **moved: float) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {name: torch.zeros(size) + moved.get(name, 0.0) for name, size in SIZES.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_the_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    first = weights(tmp_path / "a")
    (first / "adapter_config.json").write_text("{}")
    shutil.copytree(first, tmp_path / "b")
    (tmp_path / "b" / "adapter_config.json").write_text('{"base": "elsewhere"}')
    assert weights_digest(first) == weights_digest(tmp_path / "b") is not None


@pytest.mark.parametrize("name", [name for name, size in SIZES.items() if 0 not in size])
def test_a_tensor_that_was_trained_makes_other_weights(tmp_path: Path, name: str) -> None:
    before = weights_digest(weights(tmp_path / "a"))
    assert weights_digest(weights(tmp_path / "b", **{name: 1e-7})) != before
    assert weights_digest(weights(tmp_path / "a", **{name: 1e-7})) != before  # in its place: nothing old is told


def test_both_ends_of_a_large_tensor_are_read(tmp_path: Path) -> None:
    digests = set()
    for place in (0, -1, None):
        tensor = torch.zeros(400_000)
        if place is not None:
            tensor[place] = 1.0
        save_file({"one": tensor}, weights(tmp_path / str(place)) / "adapter_model.safetensors")
        digests.add(weights_digest(tmp_path / str(place)))
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_files_that_cannot_be_taken_apart_are_read_in_parts(tmp_path: Path, name: str) -> None:
    found = set()
    for size, end in ((3_000_000, b"a"), (3_000_000, b"b"), (3_000_001, b"a")):
        (tmp_path / name).write_bytes(b"x" * size + end)
        found.add(weights_digest(tmp_path))
    assert len(found) == 3


def test_no_weights_have_no_digest(tmp_path: Path) -> None:
    assert weights_digest(tmp_path) is weights_of_run(tmp_path) is None
    weights(tmp_path / "adapter")
    assert weights_of_run(tmp_path) == weights_digest(tmp_path / "adapter") is not None


def test_what_lies_beside_the_weights_changes_nothing(tmp_path: Path) -> None:
    """Other formats of the same model, and what a trainer leaves there, are not loaded."""
    before = weights_digest(weights(tmp_path))
    for name in ("training_args.bin", "optimizer.pt", "consolidated.00.pth", "adapter_model.bin", "openvino_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    assert weights_digest(tmp_path) == before


def test_weights_that_cannot_be_read_have_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be anything: who reads results beside them goes on."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab")
    assert weights_digest(tmp_path) is None
    weights(tmp_path)

    def refused(self: Path, *words: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    assert weights_digest(tmp_path) is None


def test_of_all_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 10)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 10).hexdigest()
