"""Install torch before anything else asks for it: the CPU build where there is no GPU, else the ordinary build.

A plain `pip install torch` on Linux brings gigabytes of CUDA. The CPU build is looked for first where pip is configured
to look (a local wheel, a mirror), then on PyTorch's own CPU index.
"""

import subprocess
import sys

VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Whether `pip ...` succeeded; `quiet` for a first try whose failure is no news."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, capture_output=quiet).returncode == 0


def installed() -> bool:
    """Whether torch is there already, whatever its build: somebody chose it."""
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0


def main() -> int:
    """Install for `cpu` or `gpu` (the first argument); 0 when torch is there at the end."""
    if installed():
        return 0
    if sys.argv[1:] == ["gpu"] or not sys.platform.startswith("linux"):
        return 0 if pip("install", "--quiet", "torch>=2.6") else 1
    local = f"torch=={VERSION}+cpu"
    if pip("install", local, quiet=True) or pip("install", "--quiet", local, "--extra-index-url", CPU_INDEX):
        return 0
    sys.stderr.write("the CPU build of torch was not found; installing the ordinary one\n")
    return 0 if pip("install", "--quiet", f"torch=={VERSION}") else 1


if __name__ == "__main__":
    sys.exit(main())
