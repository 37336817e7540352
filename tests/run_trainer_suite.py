"""transformers' own tests of its Trainer, run twice: as they are, and with DebiasTrainer in the Trainer's place.

    python tests/run_trainer_suite.py TRANSFORMERS_CHECKOUT [-k EXPRESSION] [other options of pytest]

The checkout is `git clone --branch v5.24.0 https://github.com/huggingface/transformers`, or of whichever version is
installed: no package brings its tests. Of a version near it, names that are gone fail where a test uses them
(`names_of_another_version.py`). Printed: every test whose outcome differs, with the first line of what it says.
DebiasTrainer is given the plain rule (`MainOnly`), so that a difference is one of the Trainer's behaviour and not of
the update; a model that has no head of classes (language models, regression) is trained on its own loss
(`in_the_place_of_trainer.py`). Tests that load a model from a hub want a network, `parameterized` all of them, and
`sentencepiece` most: without, they fail or are skipped on both sides alike. Exit code 1 where something differs. No
part of the ordinary tests, which have no network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

PLUGIN = Path(__file__).with_name("in_the_place_of_trainer.py")
NAMES = Path(__file__).with_name("names_of_another_version.py")


def outcomes(checkout: Path, folder: Path, options: list[str], *, ours: bool) -> dict[str, str]:
    """`passed`, `skipped`, or the first line of the failure, of each test by its name."""
    report = folder / "report.xml"
    for plugin in (NAMES, PLUGIN):
        shutil.copy(plugin, folder)  # whose other modules are none of the suite's business
    command = [sys.executable, "-m", "pytest", "tests/trainer", "-q", f"--junitxml={report}", *options]
    command += ["-p", NAMES.stem]
    command.append("--continue-on-collection-errors")  # a file of another version may not load
    command += ["-p", PLUGIN.stem] if ours else []
    given = os.environ.get("PYTHONPATH")  # where the suite's own needs may lie
    path = [str(folder), str(Path(__file__).parents[1] / "pipeline"), *([given] if given else [])]
    done = subprocess.run(["env", f"PYTHONPATH={':'.join(path)}", *command], cwd=checkout, check=False)
    if not report.exists():
        raise SystemExit(f"pytest left no report (exit code {done.returncode})")
    found = {
        case.get("classname", "") + "::" + case.get("name", ""): case
        for case in ElementTree.parse(report).iter("testcase")
    }
    report.unlink()
    return {name: _outcome(case) for name, case in found.items()}


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("failure", "error"):
        if (told := case.find(kind)) is not None:
            return " ".join((told.get("message") or kind).split())[:200]
    return "skipped" if case.find("skipped") is not None else "passed"


def differences(plain: dict[str, str], ours: dict[str, str]) -> list[str]:
    """A line for each test whose outcome is another with DebiasTrainer; failures that both have are none."""
    fine = ("passed", "skipped", "not run")
    both = [(name, plain.get(name, "not run"), ours.get(name, "not run")) for name in sorted(plain | ours)]
    return [f"{name}: {one} -> {other}" for name, one, other in both if one != other and (one in fine or other in fine)]


def main() -> None:
    """Run both, print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of transformers at the installed version")
    given, options = parser.parse_known_args()
    if not (given.checkout / "tests" / "trainer").is_dir():
        raise SystemExit(f"{given.checkout}: no tests/trainer; give a clone of transformers, not the package")
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = (outcomes(given.checkout.resolve(), Path(folder), options, ours=one) for one in (False, True))
    found = differences(plain, ours)
    print("\n".join(found))
    passed = sum(outcome == "passed" for outcome in ours.values())
    print(f"{len(ours)} tests, {passed} pass with DebiasTrainer, {len(found)} differ from the Trainer")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
