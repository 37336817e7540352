"""A run keeps what it has read, and is not gone on with on anything else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import config_for

from debias.building.facts import check_facts
from debias.data import Example
from debias.data.digests import digests_of
from debias.errors import InputError
from debias.runs.folder import Folder
from debias.runs.names import SEEN
from debias.runs.seen import Seen, read_seen

EXAMPLES = [Example(f"id{i}", (f"a {i}", "b"), i % 3, group="g", bias_weight=0.5) for i in range(9)]
PICTURE = Example("p", (), 0, image=np.arange(12, dtype=np.uint8).reshape(3, 2, 2))


def folder(place: Path, step: int = 3) -> Folder:
    """A run's folder with a checkpoint at that step, or none."""
    place.mkdir(exist_ok=True)
    config = config_for(Path("m"), place, resume=True)
    return Folder(place, config, held=True, checkpoint=place / f"checkpoint-{step}" if step else None)


def began(place: Path, examples: list[Example]) -> None:
    seen = Seen(folder(place, step=0), writes=True)
    check(seen, examples)
    seen.write()


def check(seen: Seen, examples: list[Example]) -> None:
    seen.check("data.train", digests_of(examples), [example.id for example in examples])


CHANGED = {
    "text": ([*EXAMPLES[:4], replace(EXAMPLES[4], texts=("a 4", "b.")), *EXAMPLES[5:]], "9 .* 9 .* example 5 .'id4'"),
    "label": ([replace(EXAMPLES[0], label=1), *EXAMPLES[1:]], "9 .* 9 .* example 1 .'id0'"),
    "group": ([*EXAMPLES[:8], replace(EXAMPLES[8], group="h")], "example 9 .'id8'"),
    "weight": ([EXAMPLES[0], replace(EXAMPLES[1], bias_weight=0.25), *EXAMPLES[2:]], "example 2 .'id1'"),
    "appended": ([*EXAMPLES, EXAMPLES[0]], "10 examples now, 9 when .* example 10 .'id0'"),
    "cut": (EXAMPLES[:6], "6 examples now, 9 when .* example 7, which is gone"),
    "swapped": ([EXAMPLES[1], EXAMPLES[0], *EXAMPLES[2:]], "example 1 .'id1'"),
    "none": ([], "0 examples now, 9 when .* example 1, which is gone"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_data_is_refused_with_what_differs(tmp_path: Path, name: str) -> None:
    began(tmp_path, EXAMPLES)
    examples, says = CHANGED[name]
    with pytest.raises(InputError, match=f"resume: data.train has changed: .*{says}"):
        check(Seen(folder(tmp_path), writes=True), examples)


def test_the_same_data_is_gone_on_with(tmp_path: Path) -> None:
    began(tmp_path, EXAMPLES)
    seen = Seen(folder(tmp_path), writes=True)
    check(seen, [replace(example, id="another") for example in EXAMPLES])
    seen.check("data.validation", digests_of([PICTURE]), ["p"])  # which nothing was kept of
    seen.write()
    assert {name: len(held) for name, held in read_seen(tmp_path).items()} == {"data.train": 9, "data.validation": 1}


def test_a_run_without_a_step_keeps_to_nothing(tmp_path: Path) -> None:
    began(tmp_path, EXAMPLES)
    check(Seen(folder(tmp_path, step=0), writes=True), EXAMPLES[:2])


def test_facts_are_kept_row_by_row(tmp_path: Path) -> None:
    log_p = torch.zeros(9, 3)
    seen = Seen(folder(tmp_path, step=0), writes=True)
    check_facts(seen, "bias_model", {"bias_log_p": log_p}, EXAMPLES)
    seen.write()
    changed = log_p.clone()
    changed[6, 2] = 1e-7
    again = Seen(folder(tmp_path), writes=True)
    check_facts(again, "bias_model", {"bias_log_p": log_p}, EXAMPLES)
    with pytest.raises(InputError, match=r"bias_model has changed: 9 .* example 7 .'id6'"):
        check_facts(again, "bias_model", {"bias_log_p": changed}, EXAMPLES)


def test_a_picture_is_known_by_its_points() -> None:
    other = replace(PICTURE, image=PICTURE.image[:, ::-1])
    assert digests_of([PICTURE]) == digests_of([replace(PICTURE, image=PICTURE.image.copy())])
    assert digests_of([PICTURE]) != digests_of([other])


def test_a_run_of_an_older_version_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(Seen(folder(tmp_path), writes=True), EXAMPLES)
    assert "keeps no digests of its data" in caplog.text


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    seen = Seen(folder(tmp_path, step=0), writes=False)
    check(seen, EXAMPLES)
    seen.write()
    assert not (tmp_path / SEEN).exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_damaged_digests_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SEEN).write_bytes(content)
    with pytest.raises(InputError, match=r"seen\.npz: damaged: .*; start anew"):
        Seen(folder(tmp_path), writes=True)
