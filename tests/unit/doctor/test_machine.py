"""Machines of every kind, pretended: what torch and the system say is replaced, what is made of it is not."""

import resource
from types import SimpleNamespace

import pytest
import torch

from debias.doctor import machine
from debias.doctor.check import bad, fine, guarded, warn
from debias.errors import InputError

DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\nGCC version:  gcc 12.2\n"
GIB = 2**30


class Gpus:
    """As many GPUs as asked for, each with `free` of 80 GiB."""

    def __init__(self, monkeypatch, tmp_path):
        self.patch, self.tmp_path = monkeypatch, tmp_path
        monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def driver(self):
        (self.tmp_path / "version").write_text(DRIVER)

    def have(self, count, free=79 * GIB, bf16=True):
        self.driver()
        said = {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "get_device_name": lambda index=0: "H100",
            "mem_get_info": lambda index: (free, 80 * GIB),
            "is_bf16_supported": lambda including_emulation=True: bf16,
            "get_device_capability": lambda index=None: (9, 0),
        }
        for name, answer in said.items():
            self.patch.setattr(torch.cuda, name, answer)
        self.patch.setattr(torch.version, "cuda", "12.8")
        plain = torch.ones
        self.patch.setattr(torch, "ones", lambda *shape, device=None: plain(*shape, device="cpu"))


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    return Gpus(monkeypatch, tmp_path)


def test_a_machine_without_a_gpu_is_healthy(gpus):
    (check,) = machine.gpus()
    assert (check.ok, check.found) == (True, "none, training runs on the CPU")
    assert machine.nccl().ok


def test_a_torch_without_cuda_beside_a_driver(gpus, monkeypatch):
    gpus.driver()
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = machine.gpus()
    assert check.stops
    assert "driver 550.54.15 is loaded, but torch" in check.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus()[0].ok


def test_a_driver_too_old_for_torch(gpus, monkeypatch):
    gpus.have(0)
    (check,) = machine.gpus()
    assert check.stops
    assert "for CUDA 12.8 can use no GPU" in check.found
    assert "update a driver older than CUDA 12.8" in check.cure


def test_gpus_that_compute(gpus):
    gpus.have(2)
    first, second = machine.gpus()
    assert (first.name, second.name) == ("GPU 0", "GPU 1")
    assert first.ok
    assert first.found == "H100, 85.9 GB, driver 550.54.15, CUDA 12.8"


def test_a_gpu_that_others_use_is_a_warning(gpus):
    gpus.have(1, free=40 * GIB)
    (check,) = machine.gpus()
    assert (check.ok, check.stops) == (False, False)
    assert "42.9 of 85.9 GB are in use" in check.found


def test_a_gpu_that_torch_was_not_built_for(gpus, monkeypatch):
    gpus.have(1)

    def fails(*shape, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", fails)
    (check,) = machine.gpus()
    assert check.stops
    assert check.found == "H100 cannot compute: CUDA error: no kernel image is available for execution on the device"


def test_a_gpu_that_computes_wrongly(gpus, monkeypatch):
    gpus.have(1)
    monkeypatch.setattr(torch, "ones", lambda *shape, device=None: torch.full(shape, 2.0))
    assert "computes a wrong product" in machine.gpus()[0].found


def test_nccl_that_is_not_there(gpus, monkeypatch):
    gpus.have(1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert machine.nccl().stops
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    assert machine.nccl() == fine("NCCL", "2.27.3")


@pytest.mark.parametrize(("has", "wanted", "ok"), [(True, True, True), (False, True, False), (False, False, True)])
def test_bf16_matters_to_who_asks_for_it(has, wanted, ok, gpus):
    gpus.have(1, bf16=has)
    check = machine.bf16(wanted)
    assert (check.ok, check.stops) == (ok, False)
    assert ("no bf16" in check.found) == (not has)


def test_flash_attention_stops_only_who_asks_for_it(gpus, monkeypatch):
    assert machine.flash_attention().found == "not used: there is no CUDA GPU"
    wanted = machine.flash_attention(True)
    assert (wanted.stops, wanted.found, wanted.cure) == (True, "there is no CUDA GPU", "use auto or sdpa")
    gpus.have(1)
    monkeypatch.setattr("debias.models.attention.importlib.import_module", lambda name: None)
    assert machine.flash_attention(True).ok


@pytest.mark.parametrize(
    ("size", "count", "word"),
    [(64 * 2**20, 2, "BAD "), (64 * 2**20, 1, "WARN"), (2**29, 8, "WARN"), (2**30, 8, "ok  ")],
)
def test_shared_memory(size, count, word, gpus, monkeypatch):
    gpus.have(count)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(total=size))
    check = machine.shared_memory()
    assert check.line.startswith(word)
    assert ("--shm-size" in check.cure) == (not check.ok)


@pytest.mark.parametrize(
    ("soft", "hard", "count", "cure"),
    [
        (1024, 4096, 1, ""),
        (256, 4096, 1, "ulimit -n 1024"),
        (1024, 65536, 2, "ulimit -n 4096"),
        (1024, 2048, 2, "have the limit (2048) raised"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 8, ""),
        (1024, resource.RLIM_INFINITY, 8, "ulimit -n 4096"),
    ],
)
def test_open_files(soft, hard, count, cure, gpus, monkeypatch):
    gpus.have(count)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (soft, hard))
    check = machine.open_files()
    assert check.ok == (not cure)
    assert check.cure.startswith(cure)
    assert not check.stops


def test_disk(tmp_path, monkeypatch):
    deep = tmp_path / "not" / "there" / "yet"
    check = machine.disk(deep, 10)
    assert check.ok
    assert f"free at {tmp_path}, the run writes about 0.0 MB" in check.found
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=5 * 10**8))
    assert machine.disk(deep, 6 * 10**8).stops
    unknown = machine.disk(deep)
    assert (unknown.ok, unknown.stops) == (False, False)


def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda place, mode: False)
    assert machine.disk(tmp_path / "run").found == f"{tmp_path} cannot be written"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert machine.disk(tmp_path / "file" / "run").stops


def test_a_check_that_fails_itself_is_a_bad_line():
    def crash():
        raise OSError("the kernel\nhas more to say")

    (check,) = guarded("disk", crash)
    assert (check.name, check.stops) == ("disk", True)
    assert check.found == "could not be looked at: OSError: the kernel"


def test_an_error_for_people_is_split_into_what_and_cure():
    def refuse():
        raise InputError("a: b is 3; make it 4; or remove it")

    def short():
        raise InputError("a: b is 3")

    assert guarded("x", refuse) == [bad("x", "a: b is 3; make it 4", "or remove it")]
    (check,) = guarded("x", short)
    assert check.found == "a: b is 3"
    assert check.cure


def test_lines():
    assert fine("a", "b").line == "ok   a: b"
    assert warn("a", "b", "c").line == "WARN a: b; cure: c"
    assert bad("a", "b", "c").line == "BAD  a: b; cure: c"
