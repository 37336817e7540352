"""The wheel works outside the checkout: it installs, and the commands find the package's own data."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=env or None, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path):
    python = sys.executable
    run(python, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT), cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    code = (
        "import debias, debias_eval, pathlib, sys\n"
        "assert pathlib.Path(debias.__file__).is_relative_to(sys.argv[1]), debias.__file__\n"
        "from debias_eval.reading.suite import available_suites, load_suite\n"
        "assert [load_suite(name) for name in available_suites()]\n"
        "from debias_eval.harness.export import LOADER\n"
        "from debias_eval.reading.collection import members\n"
        "from debias_eval.reporting.report import render\n"
        "from debias_eval.results.runs import Run\n"
        "assert LOADER.is_file() and members('nli') and '<style' in render([Run('r', pathlib.Path('r'))])\n"
        "recipes = pathlib.Path(debias.__file__).parent / 'recipes'\n"
        "from debias.config import load_config\n"
        "print(*[load_config(path).model for path in sorted(recipes.glob('*.yaml'))])\n"
    )
    out = run(
        python, "-c", code, str(site), cwd=tmp_path, PYTHONPATH=str(site), PATH="/usr/bin:/bin", HOME=str(tmp_path)
    )
    assert len(out.split()) == len(list((ROOT / "launch/recipes").glob("*.yaml")))
    assert {"package:minilm", "package:smollm2", "vision:mlp", "Qwen/Qwen3-8B"} <= set(out.split())
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert "single_pass" in run(python, "-m", "debias.cli", "bench", "step", "--help", cwd=tmp_path, **environment)
