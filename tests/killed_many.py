"""A run that saves after every step, killed at random instants and resumed: `killed_many.py SETTINGS.json KILLS`.

Every attempt is a fork of this process, which has imported everything and started nothing. Prints one JSON line.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import deepspeed.runtime.zero.stage3  # noqa: F401 (before the fork)
import torch
from safetensors import safe_open
from transformers import TrainerState

import debias.engines.zero.hook
import debias.engines.zero.state  # noqa: F401 (before the fork)
from debias.config.run import RunConfig
from debias.runs.names import last_checkpoint
from debias.train import train


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what all forks share, none of them has to search
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, kills, rng = Path(settings["output_dir"]), int(sys.argv[2]), random.Random(0)
    endless = {**settings, "max_steps": 100_000}
    steps, while_saving, start = [], 0, 0.0
    for attempt in range(kills):
        child = fork({**endless, "resume": (folder / "config.yaml").exists()})
        if attempt % 3:  # at any instant of the start; every third time while it trains and saves
            time.sleep(rng.uniform(0.2 * start, 1.2 * start))
        else:
            start = seconds_to_next_checkpoint(folder)
            time.sleep(rng.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the run ended by itself"
        while_saving += any((folder / ".saving").glob("*"))
        steps.append(check(folder))
    last = {"max_steps": steps[-1] + 2}
    finish({**settings, **last, "resume": True})
    finish({**settings, **last, "output_dir": f"{folder}-undisturbed"})
    print(json.dumps({"while_saving": while_saving, "steps": steps}))


def seconds_to_next_checkpoint(folder: Path) -> float:
    started, before = time.monotonic(), last_checkpoint(folder)
    while last_checkpoint(folder) == before:
        time.sleep(0.01)
    return time.monotonic() - started


def fork(settings: dict) -> int:
    child = os.fork()
    if child:
        return child
    os.environ["MASTER_PORT"] = str(20000 + os.getpid() % 12000)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        train(RunConfig.model_validate(settings))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def finish(settings: dict) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(fork(settings), 0)[1])
    assert code == 0, f"the run itself failed with {code}"


def check(folder: Path) -> int:
    """The newest checkpoint reads whole; its step, 0 where there is none yet."""
    newest = last_checkpoint(folder)
    if newest is None:
        return 0
    step = TrainerState.load_from_json(str(newest / "trainer_state.json")).global_step
    assert newest.name == f"checkpoint-{step}"
    for path in newest.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            assert names
            assert all(tensors.get_tensor(name).numel() for name in names)
    torch.load(newest / "scheduler.pt", weights_only=True)
    return step


if __name__ == "__main__":
    main()
