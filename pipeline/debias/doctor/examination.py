"""All checks in their order, of one process or of the ranks that a launcher started."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debias.config import deepspeed_file as zero_config
from debias.doctor import all_reduce, builds, engine_steps, machine, ranks, versions
from debias.doctor.check import Check, bad, fine, guarded
from debias.errors import InputError

if TYPE_CHECKING:
    from debias.doctor.run_checks import Patient

Looks = dict[str, Callable[[], Check | Sequence[Check]]]


@dataclass(frozen=True)
class Diagnosis:
    """The checks of every rank, and which of them this process is; of others only what they sent."""

    rank: int
    nodes: tuple[str, ...]
    checks: tuple[tuple[Check, ...], ...]
    open: bool = False  # a group that `ranks.part` must close

    @property
    def mine(self) -> tuple[Check, ...]:
        """Of this rank."""
        return self.checks[self.rank if self.open else 0]

    @property
    def healthy(self) -> bool:
        """No rank has found what stops a run."""
        return not any(check.stops for one in self.checks for check in one)

    def records(self) -> list[dict[str, Any]]:
        """For JSON."""
        first = 0 if self.open else self.rank
        return [
            {"rank": first + index, "node": node, **asdict(check)}
            for index, (node, found) in enumerate(zip(self.nodes, self.checks, strict=True))
            for check in found
        ]


def examine(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    output_dir: str | None = None,
    gpu_memory: int | None = None,
    deep: bool = False,
) -> list[Check]:
    """All checks of this machine, and with `config` of that run on it.

    `gpu_memory`: bytes that the run is planned for, by default of the GPU here. `deep` takes real steps of a tiny
    model; it is done as well for a config with DeepSpeed. Nothing is raised: whatever goes wrong is a line.
    """
    found, patient = _machine(), None
    if config is None:
        found.append(fine("config", "none given: model, data, adapter and memory are not looked at"))
    else:
        lines, patient = _config(config, overrides, output_dir, gpu_memory)
        found += lines
    return found + _with_run(patient, output_dir, deep)


def _machine() -> list[Check]:
    looks: Looks = {
        "versions": versions.versions,
        "deepspeed": versions.deepspeed,
        "ninja": builds.ninja,
        "build lock": builds.build_locks,
        "GPU": machine.gpus,
        "NCCL": machine.nccl,
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
    }
    return _all(looks)


def _config(
    config: Path, overrides: Sequence[str], output_dir: str | None, gpu_memory: int | None
) -> tuple[list[Check], "Patient | None"]:
    """Whether the config parses, and the run that it is."""
    patients: list[Patient] = []

    def look() -> Check:
        from debias.doctor.run_checks import read
        from debias.plan.planner import gpu_memory_here

        patients.append(read(config, overrides, output_dir, gpu_memory or gpu_memory_here()))
        return fine("config", str(config))

    return guarded("config", look), next(iter(patients), None)


def _with_run(patient: "Patient | None", output_dir: str | None, deep: bool) -> list[Check]:
    """What depends on the run, if there is one, and what is the same for all."""
    run = None if patient is None else patient.run
    folder = Path(run.output_dir if run else output_dir or ".")
    looks: Looks = {
        "bf16": lambda: machine.bf16(run is not None and run.bf16),
        "flash attention": lambda: machine.flash_attention(bool(run and "flash" in run.attn_implementation)),
    }
    if patient is not None:
        from debias.doctor.run_checks import checks

        looks["run"] = lambda: checks(patient)
    looks["disk"] = lambda: machine.disk(folder, None if patient is None else _bytes_written(patient))
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one of a node's ranks is enough
        for engine in _engines(patient, deep):
            looks[f"{engine_steps.NAME} {engine or 'torch'}"] = partial(engine_steps.watched, engine)
    return _all(looks)


def _engines(patient: "Patient | None", deep: bool) -> list[str | None]:
    """What to watch steps of: None is torch alone, else a shipped DeepSpeed configuration of the run's stage."""
    run = None if patient is None else patient.run
    found: list[str | None] = [None] if deep else []
    if run is not None and run.deepspeed is not None:
        try:
            stage = json.loads(zero_config.find(run.deepspeed).read_text())["zero_optimization"]["stage"]
        except (InputError, OSError, ValueError, LookupError):
            return found  # has its own line
        found += [f"zero{stage}"] if stage else []
    elif deep and versions.version_of("deepspeed") is not None:
        found.append("zero2")
    return found


def _bytes_written(patient: "Patient") -> int | None:
    try:
        return patient.bytes_written()
    except InputError:  # an adapter that does not fit, which has its own line
        return None


def _all(looks: Looks) -> list[Check]:
    return [check for name, look in looks.items() for check in guarded(name, look)]


def diagnose(config: Path | None = None, overrides: Sequence[str] = (), **options: Any) -> Diagnosis:
    """As `examine`, with an all-reduce: of the ranks that a launcher started, else of two processes on this machine.

    Ranks also compare clocks, config, seed and versions, and each learns what the others found. Leave with
    `ranks.part()` where the diagnosis is `open`.
    """
    if ranks.world_size() == 1:
        found = [*examine(config, overrides, **options), *guarded(all_reduce.NAME, all_reduce.local)]
        return Diagnosis(0, (ranks.node(),), (tuple(found),))
    meeting = guarded("ranks meet", ranks.meet)
    found = [*meeting, *examine(config, overrides, **options)]
    if not meeting[0].ok:
        return Diagnosis(ranks.rank(), (ranks.node(),), (tuple(found),))
    found += guarded(all_reduce.NAME, ranks.talk)
    try:
        return _together(found, config, overrides)
    except RuntimeError as error:  # a rank is gone, or its network
        reason = str(error).splitlines()[0][:160]
        found.append(bad("ranks meet", f"they lost each other: {reason}", all_reduce.ONE_NETWORK))
        return Diagnosis(ranks.rank(), (ranks.node(),), (tuple(found),))


def _together(found: list[Check], config: Path | None, overrides: Sequence[str]) -> Diagnosis:
    run = None
    if config is not None:
        from debias.doctor.run_checks import read

        try:
            run = read(config, overrides, None, None).run
        except InputError:  # has its line already
            run = None
    everyone = ranks.gather(ranks.facts(run))
    if ranks.rank() == 0:
        found += guarded("same on all ranks", lambda: ranks.agreement(everyone))
    checks = tuple(tuple(one) for one in ranks.gather(found))
    return Diagnosis(ranks.rank(), tuple(one["node"] for one in everyone), checks, open=True)
