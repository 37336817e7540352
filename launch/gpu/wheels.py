"""Gather what a bare CUDA machine lacks, as wheels to bring along: no network is needed there.

    python launch/gpu/wheels.py -o wheels --python 3.12 --cuda 130

The machine has torch, transformers and peft; missing are deepspeed (built here, without its kernels), bitsandbytes
(trimmed to the library of one CUDA version), pydantic, datasets and what these need. Where its transformers is too old
for this project, `--also transformers` brings one.
"""

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Not of the list: what every machine with torch, transformers and peft has.
PACKAGES = (
    "annotated-types",
    "bitsandbytes>=0.49",
    "datasets>=4.0",
    "dill",
    "gguf>=0.17",
    "hjson",
    "multiprocess",
    "pydantic>=2.10",
    "typing-inspection",
)
DEEPSPEED = "deepspeed>=0.19.8,<0.20"
LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(?!cpu\.so)(\w+)\.so")
GLIBC = range(28, 16, -1)
MOST_MIB = 64


def pip(*arguments: str) -> None:
    """Run pip of this Python; CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def gather(out: Path, python: str, cuda: str, also: list[str]) -> list[Path]:
    """Download for that Python on Linux x86-64, build deepspeed, trim bitsandbytes; the wheels."""
    out.mkdir(parents=True, exist_ok=True)
    platforms = [part for glibc in GLIBC for part in ("--platform", f"manylinux_2_{glibc}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64"]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    exact = _pydantic_core(target)
    pip("download", "--no-deps", *target, "-d", str(out), *PACKAGES, *exact, *also)
    with tempfile.TemporaryDirectory() as folder:
        # Of this Python, and for any: nothing of it is compiled unless it is used.
        pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, DEEPSPEED)
        for wheel in Path(folder).glob("*.whl"):
            (out / wheel.name).write_bytes(wheel.read_bytes())
    for wheel in out.glob("bitsandbytes-*.whl"):
        trim(wheel, f"cuda{cuda}")
    return sorted(out.glob("*.whl"))


def _pydantic_core(target: list[str]) -> list[str]:
    """The one version of it that pydantic takes, read from pydantic's own wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", *target, "-d", folder, next(one for one in PACKAGES if one.startswith("pydantic")))
        (wheel,) = Path(folder).glob("pydantic-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(name).decode()
    found = re.search(r"^Requires-Dist: (pydantic-core==[\w.]+)", metadata, re.MULTILINE)
    return [found.group(1)] if found else []


def trim(wheel: Path, library: str) -> None:
    """Leave out of a bitsandbytes wheel the libraries of all other accelerators; ValueError if it lacks this one."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        there = {found.group(1) for name in names if (found := LIBRARY.fullmatch(name))}
        if library not in there:
            known = ", ".join(sorted(name.removeprefix("cuda") for name in there if name.startswith("cuda")))
            raise ValueError(f"{wheel.name} has no library for {library}; --cuda takes {known}")
        kept = [name for name in names if not (found := LIBRARY.fullmatch(name)) or found.group(1) == library]
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        content = {name: archive.read(name) for name in kept if name != record}
    lines = [f"{name},{_digest(data)},{len(data)}" for name, data in content.items() if not name.endswith("/")]
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    part.replace(wheel)


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def main() -> int:
    """Gather, and say how much it is; 1 if it is more than can be brought."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("-o", "--out", type=Path, required=True)
    asked.add_argument("--python", default="3.12", help="of the machine (3.12)")
    asked.add_argument("--cuda", default="130", help="of its torch: torch.version.cuda without the dot (130)")
    asked.add_argument("--also", action="append", default=[], help="a further package; may be repeated")
    given = asked.parse_args()
    wheels = gather(given.out, given.python, given.cuda, given.also)
    mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    for wheel in wheels:
        sys.stdout.write(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}\n")
    sys.stdout.write(f"{mib:6.2f} MiB in all, of {MOST_MIB}\n")
    return int(mib > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
