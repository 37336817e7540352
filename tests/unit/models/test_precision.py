"""debias.models.precision: bf16 on hardware that is faked."""

from pathlib import Path

import pytest
import torch

from debias.models import precision
from debias.models.precision import usable_bf16


@pytest.fixture(autouse=True)
def _fresh() -> None:
    precision._say.cache_clear()


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine without a GPU whose CPU has these instructions; None: one that does not tell."""

    def make(flags: str | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        if flags is not None:
            (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nprocessor\t: 1\n{flags}\n")

    return make


def test_not_wanted_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert usable_bf16(False) is False


def test_a_gpu_without_bf16_runs_in_float32(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    # T4 emulates bf16; that is not having it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert usable_bf16(True) is False
    assert usable_bf16(True) is False
    (record,) = caplog.records
    assert "bf16: Tesla T4 has no bf16, so this runs in float32" in record.message
    assert "fp16 is not an option" in record.message


def test_a_gpu_with_bf16(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert usable_bf16(True) is True
    assert not caplog.records


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("flags\t\t: fpu avx2 amx_bf16", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd bf16", False),
        ("model name\t: of a kind without such a line", False),
        (None, False),
    ],
)
def test_a_cpu_without_bf16_is_slow_and_said_to_be(cpu, flags, slow, caplog: pytest.LogCaptureFixture) -> None:
    cpu(flags)
    assert usable_bf16(True) is True
    assert ("this CPU has no bf16 instructions" in caplog.text) is slow
