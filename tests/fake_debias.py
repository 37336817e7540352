"""In the place of `python`: `-m debias.cli train|eval ...` in milliseconds, and failing, hanging or slow as told.

What the learning rate says: 0.5 fails, 0.25 waits for SIGTERM and then saves, 0.125 ignores SIGTERM for ever, any other
trains. `eval` writes a result file for each suite; weight decay 0.5 makes it fail.
"""

import itertools
import json
import signal
import sys
import time
from pathlib import Path

import yaml


def main() -> int:
    verb, first, *rest = sys.argv[3:]
    return train(Path(first), rest) if verb == "train" else evaluate(Path(first), rest)


def read(file: Path) -> dict:
    """The settings as they were written, by nothing of debias: its readers take ten times as long to load as this."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def train(recipe: Path, overrides: list[str]) -> int:
    changes = (setting.partition("=") for setting in overrides)  # a dotted key stays one: nothing here asks for it
    config = read(recipe) | {key: yaml.safe_load(value) for key, _, value in changes}
    folder = recipe.parent / config["output_dir"]
    rate, resume = config.get("learning_rate"), config.get("resume", False)
    if resume != (folder / "config.yaml").exists() and not config.get("overwrite_output_dir", False):
        print("error: resume does not fit")
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text('{"status": "running"}')
    with (folder / "calls.txt").open("a") as calls:
        calls.write(" ".join([*overrides[:-1], "\n"]))
    if rate == 0.5:
        print("something\nerror: the learning rate is 0.5\nthe end")
        return 2
    if rate in (0.25, 0.125) and not resume:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
        (folder / "waiting").touch()
        while not asked or rate == 0.125:
            time.sleep(0.01)
        (folder / "run.json").write_text('{"status": "interrupted"}')
        return 75
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"status": "finished"}')
    return 0


def evaluate(run: Path, rest: list[str]) -> int:
    if read(run / "config.yaml").get("weight_decay") == 0.5:
        print("Traceback\nRuntimeError: weight decay")
        return 1
    (run / "eval").mkdir(exist_ok=True)
    for name in (value for flag, value in itertools.pairwise(rest) if flag == "--suite"):
        (run / "eval" / f"{name}.json").write_text(json.dumps(rest))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
