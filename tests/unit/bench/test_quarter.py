"""A session on a GPU, rehearsed: its parts, its clock, what is left when it is cut off, and the page."""

import importlib.util
import itertools
import json
import math
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import command_line

from debias.bench.quarter import combination, gradients, session, tiny
from debias.bench.quarter.page import page_of, verdict
from debias.bench.quarter.session import BUDGETS, Session, gathered, run_part, run_session
from debias.errors import InputError
from debias.methods import fused

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "eval" / "studies" / "planted_sst2.yaml"


@pytest.mark.slow
def test_all_parts_on_a_cpu(tmp_path, monkeypatch, capsys):
    """But DeepSpeed's: its process group would stay."""
    for package in ("bitsandbytes", "deepspeed"):
        pytest.importorskip(package)
    parts = [word for name in BUDGETS if name not in ("engines", "testbeds") for word in ("--part", name)]
    said = command_line(monkeypatch, capsys)("bench", "quarter", "-o", str(tmp_path), "--rehearse", *parts)
    assert said.code == 0
    found = gathered(tmp_path)
    verdicts = {(part, title): verdict(item) for part, one in found.items() for title, item in one["items"].items()}
    assert {title: word for title, word in verdicts.items() if word in ("error", "short")} == {}
    assert sum(word == "ok" for word in verdicts.values()) >= 10
    assert found["gradients"]["items"]["qwen3_moe, bf16, grouped products against a loop"]["grouped_products"] > 0
    assert (tmp_path / "quarter.md").read_text() == said.out
    assert "single_pass" in said.out


@pytest.mark.slow
def test_a_part_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("deepspeed")
    there = Session(out=str(tmp_path), rehearse=True)
    session._in_processes(there, ["engines"], time.monotonic() + 120)
    items = gathered(tmp_path)["engines"]["items"]
    assert [verdict(item) for item in items.values()] == ["ok", "ok", "not run"]


def test_a_wrong_gradient_is_short_of_its_bar(monkeypatch):
    right = tiny.update_of

    def wrong(model, readout, batch, way, autocast):
        return right(model, readout, batch, way, autocast) * (1.001 if way == "single_pass" else 1.0)

    assert gradients.compare("llama", "fp32", False, "cpu")["ok"]
    monkeypatch.setattr(tiny, "update_of", wrong)
    assert verdict(gradients.compare("llama", "fp32", False, "cpu")) == "short"
    assert verdict(gradients.judged(math.nan, 1.0)) == "short"


@pytest.mark.parametrize(
    ("factor", "most", "word"), [(1.0, 3, "ok"), (1 + 1e-5, 3, "short"), (None, 3, "error"), (1.0, 1, "error")]
)
def test_kernels_of_a_gpu_are_held_against_the_cpu(monkeypatch, tmp_path, factor, most, word):
    """Stand-ins on a CPU: right ones, some a little off, some that do not run there, some that take no two vectors."""
    cpu, here = torch.device("cpu"), Session(out=str(tmp_path), rehearse=True)

    def written(coefficients_KO, vectors_KOI):
        total_KOI = sum(x.float().unsqueeze(-1) * v for x, v in zip(coefficients_KO, vectors_KOI, strict=True))
        vectors_KOI[0].copy_(total_KOI * (factor or 1.0))

    def gram(gram_KOG, vectors_KOI):
        if factor is None:
            raise RuntimeError("Failed to find C compiler")
        a, b = (vector.double() for vector in vectors_KOI)
        gram_KOG.copy_(torch.stack([(a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)], -1))

    of_a_gpu = {"cuda": (cpu, False), "cuda, Triton": (cpu, True)}
    monkeypatch.setattr(fused, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(fused, "_given_up", set())
    monkeypatch.setattr(fused, "MOST_VECTORS", most)
    monkeypatch.setattr(fused, "loaded", lambda: SimpleNamespace(write_gram=gram, write_update=written))
    asked = itertools.cycle(({"cpu": (cpu, False)}, of_a_gpu))  # each item asks for the CPU first
    monkeypatch.setattr(combination, "ways", lambda device: next(asked))
    for measure in (
        lambda: combination.passes_agree(torch.float32, 2, (2, 3, 8), here),
        lambda: combination.agree(combination.RULES[0], 8, here),
    ):
        found = session._measured(measure)
        assert verdict(found) == word
        fused._given_up.clear()
        if word == "short":
            assert "cuda, Triton" in str(found)


def given(monkeypatch, items):
    """A part `gradients` of these items."""
    monkeypatch.setattr(gradients, "items", lambda session, left: iter(items))


def test_each_item_is_written_down_before_the_next(tmp_path, monkeypatch):
    def cut():
        raise KeyboardInterrupt

    given(monkeypatch, [("first", lambda: {"ok": True}), ("broken", lambda: 1 / 0), ("cut", cut)])
    with pytest.raises(KeyboardInterrupt):
        run_part("gradients", Session(out=str(tmp_path), rehearse=True), 60)
    items = gathered(tmp_path)["gradients"]["items"]
    assert {title: verdict(item) for title, item in items.items()} == {"first": "ok", "broken": "error"}
    assert "ZeroDivisionError" in items["broken"]["error"]
    assert "1 ok, 1 error" in page_of(gathered(tmp_path))


def test_what_there_is_no_time_for_is_said(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(session.time, "monotonic", lambda: next(clock))  # a second at each look
    given(monkeypatch, [("first", lambda: {}), ("late", lambda: {"ok": True})])
    run_part("gradients", Session(out=str(tmp_path), rehearse=True), 2)
    items = gathered(tmp_path)["gradients"]["items"]
    assert [verdict(item) for item in items.values()] == ["measured", "not run"]


def test_what_a_part_leaves_goes_to_those_after_it():
    chosen = list(BUDGETS)
    assert session._share("gradients", chosen, 690) == pytest.approx(690 * 130 / sum(BUDGETS.values()))
    assert session._share("testbeds", chosen, 400) == 400
    assert session._share("large", ["large"], -3) == 0


def test_a_process_that_hangs_is_ended_and_the_next_has_its_turn(tmp_path, monkeypatch):
    script = "import sys, time; sys.stdin.readline(); time.sleep(60 if sys.argv[1] == 'gradients' else 0)"

    def start(name, there):
        command = [session.sys.executable, "-c", script, name]
        return session.subprocess.Popen(command, stdin=session.subprocess.PIPE, text=True)

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setattr(session, "GRACE", 0.1)
    before = time.monotonic()
    session._in_processes(Session(out=str(tmp_path)), ["gradients", "kernels"], before + 1)
    assert time.monotonic() - before < 20
    found = gathered(tmp_path)
    assert "ended at the end of its time" in found["gradients"]["ended"]
    assert "kernels" not in found
    assert "**Cut short**" in page_of(found)


def test_without_a_gpu_and_with_a_wrong_part(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs one CUDA GPU"):
        run_session(Session(out=str(tmp_path)))
    with pytest.raises(InputError, match="--part: 'speed' is not one of gradients"):
        run_session(Session(out=str(tmp_path)), ("speed",))
    with pytest.raises(InputError, match="no part of a session"):
        gathered(tmp_path)


def test_rows_alike_become_a_table():
    part = {
        "budget": 1,
        "took": 1,
        "device": "cuda",
        "items": {"ways": {"a": {"x": 1.0}, "b": {"x": 2.0}, "seconds": 1}},
    }
    assert "| b | 2 |" in page_of({"large": part})


def wheels_module():
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "launch" / "gpu" / "wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_trimmed_wheel_has_one_library_and_a_right_record(tmp_path):
    wheels, wheel = wheels_module(), tmp_path / "bitsandbytes-1-py3-none-any.whl"
    libraries = [f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda124", "cuda130", "rocm70")]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*libraries, "bitsandbytes/__init__.py", "bitsandbytes-1.dist-info/RECORD"]:
            archive.writestr(name, name)
    with pytest.raises(ValueError, match="no library for cuda118; --cuda takes 124, 130"):
        wheels.trim(wheel, "cuda118")
    wheels.trim(wheel, "cuda130")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read("bitsandbytes-1.dist-info/RECORD").decode().splitlines()
    assert [name for name in names if name.endswith(".so")] == [libraries[0], libraries[2]]
    assert sorted(line.split(",")[0] for line in record) == sorted(names)
    assert f"{libraries[2]},{wheels._digest(libraries[2].encode())},{len(libraries[2])}" in record


def test_the_json_is_json(tmp_path, monkeypatch, capsys):
    given(monkeypatch, [("first", lambda: {"ok": True})])
    arguments = ("bench", "quarter", "-o", str(tmp_path), "--rehearse", "--part", "gradients", "--json")
    said = command_line(monkeypatch, capsys)(*arguments)
    assert json.loads(said.out)["gradients"]["items"]["first"]["ok"]
    again = command_line(monkeypatch, capsys)("bench", "quarter", "-o", str(tmp_path), "--page")
    assert "1 ok" in again.out
