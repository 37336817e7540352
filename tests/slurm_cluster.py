"""A real Slurm on this machine: one controller and two nodes on loopback, started and stopped by `cluster(folder)`.

Needs root and Debian's slurm-wlm and munge; `missing()` says what is not there.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=10
SlurmdTimeout=20
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to start munged and slurmd"
    lost = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"needs Debian's slurm-wlm and munge ({', '.join(lost)} not found)" if lost else ""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach the cluster. All daemons are gone when the context ends."""
    host, port = socket.gethostname().partition(".")[0], _free_ports(3)
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} CPUs=2 RealMemory=3000"
        for node, own in zip(NODES, port[1:], strict=True)
    )
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, port=port[0], first_job=_first_job(), folder=folder, nodes=nodes))
    environment = {**os.environ, "SLURM_CONF": str(config)}
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_munged(folder))
        for words in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            log = (folder / f"{words[0]}{words[-1]}.out").open("wb")
            started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        wait_for(lambda: _idle(environment) == len(NODES), 60, f"no two idle nodes; see {folder}")
        yield environment
    finally:
        _kill_jobs(config)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(5)  # one of them never ends by itself, and nothing of it is needed
            except subprocess.TimeoutExpired:
                process.kill()


def _kill_jobs(config: Path) -> None:
    """What a failed test left running in the cluster; daemons are not among it, they are our children."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"SLURM_CONF={config}".encode() in (place / "environ").read_bytes().split(b"\0")
            if mine and (place / "comm").read_text().strip() not in ("slurmctld", "slurmd"):
                os.kill(int(place.name), signal.SIGKILL)
        except OSError:
            continue


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    """An own munged with an own key; it refuses folders that others can write to."""
    place = folder / "munge"
    place.mkdir()
    key = place / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    words = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    words += [f"--pid-file={place}/pid", f"--seed-file={place}/seed", f"--log-file={place}/log"]
    process = subprocess.Popen(words)
    wait_for((folder / "munge.socket").exists, 20, "munged does not open its socket")
    return process


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split().count("idle")


def _first_job() -> int:
    """Clusters of two workers number their jobs apart: the number says at which port a job's ranks meet."""
    return 1 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(done, seconds: float, why: str) -> None:
    """Until `done()` is true; AssertionError with the reason after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why
        time.sleep(0.3)
