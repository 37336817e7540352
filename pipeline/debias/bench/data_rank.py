"""One rank of `debias bench data`: a run of one step, and what it took of time and memory."""

import json
import os
import resource
import sys
import time
from pathlib import Path

from debias.ranks.garbage import loading


def resident() -> dict[str, float]:
    """Memory of this process now and at its peak, MiB; `anonymous`: what is no page of a file that others share."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"peak_mb": peak, "resident_mb": found.get("VmRSS:", peak), "anonymous_mb": found.get("RssAnon:", peak)}


def main(out: str, settings: str) -> None:
    """Train, and write down what it took as a file of this rank's in `out`."""
    with loading():
        from debias.train import train

    started, cpu = time.perf_counter(), time.process_time()
    train(json.loads(settings))
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    rank = os.environ.get("RANK", "0")
    Path(out, rank).write_text(json.dumps({**took, **resident()}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
