"""torchrun, with the first failure said first: `python -m debias.ranks.failures [torchrun's options] -m MODULE ...`.

torchrun ends a failed run with its own traceback, under which the rank's reason is lost. Here the reason is the last
thing on the terminal, with the rank, its host and its log.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from debias.errors import Interrupted
from debias.ranks.garbage import loading

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

EXIT_REQUEUE = Interrupted.exit_code
STOPPED = "DEBIAS_STOPPED"  # in the ranks' environment: where each that was stopped and saved leaves a file
NO_WORDS = "  it left no words; its log has what there is\n"


def main(words: Sequence[str] | None = None) -> None:
    """Run torchrun's own main in this process; exit code 1 if a rank failed, 75 if a signal stopped ranks that saved.

    143 if SIGTERM ended this node and nothing was saved.
    """
    _hush()
    with loading():
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run

    os.environ.pop("TORCH_CPP_LOG_LEVEL", None)  # the ranks speak as they like
    # An interactive command would be left with a hung rank; a cluster's job sets its own.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "150")
    try:
        with tempfile.TemporaryDirectory(prefix="debias-") as folder:
            os.environ[STOPPED] = folder
            _run_ranks(lambda: run(parse_args(list(sys.argv[1:] if words is None else words))), Path(folder))
    except ChildFailedError as error:
        if all_stopped_early([failure.exitcode for failure in error.failures.values()]):
            raise SystemExit(EXIT_REQUEUE) from None
        sys.stderr.write(first_failure(error))
        raise SystemExit(1) from None
    except SignalException as error:
        sys.stderr.write(f"{_node()}stopped by {error.sigval.name}\n")
        raise SystemExit(128 + error.sigval.value) from None


def _run_ranks(run: Callable[[], None], folder: Path) -> None:
    """Run them; exit code to requeue on where a signal ended this node and its ranks had saved by then.

    Of a signal torchrun says nothing more: what the ranks ended with is lost, so each leaves a file.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    try:
        run()
    except SignalException as error:
        if error.sigval == signal.SIGTERM and any(folder.iterdir()):
            raise SystemExit(EXIT_REQUEUE) from None
        raise


def stopped() -> None:
    """Leave word that this rank was stopped and has saved; nothing happens outside of `main`."""
    if folder := os.environ.get(STOPPED):
        with contextlib.suppress(OSError):
            (Path(folder) / str(os.getpid())).touch()


def all_stopped_early(codes: Sequence[int]) -> bool:
    """Whether ranks ended to be started again: torchrun ends the ones that are a moment behind the first by SIGTERM."""
    return EXIT_REQUEUE in codes and set(codes) <= {EXIT_REQUEUE, -signal.SIGTERM}


def first_failure(error: "ChildFailedError") -> str:
    """The rank that failed first on this node, how, its words, and which other ranks went with it."""
    rank, failure = error.get_first_failure()
    killed = failure.exitcode < 0
    how = f"was killed by {failure.signal_name()}" if killed else f"ended with exit code {failure.exitcode}"
    others = [str(other) for other in sorted(error.failures) if other != rank]
    after = f"(after it: rank {', '.join(others)})\n" if others else ""
    words = "".join(f"  {line}\n" for line in _words(failure))
    return f"{_node()}rank {rank} failed first, it {how}:\n{words or NO_WORDS}{after}"


def record(error: BaseException) -> None:
    """Leave the reason of a rank's end where torchrun looks for it; nothing happens outside of torchrun."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise error  # the handler writes the traceback of what is being handled
    except BaseException as raised:
        get_error_handler().record_exception(raised)


def _hush() -> None:
    """Where the first node's torchrun ends first, the others print pages about a connection that nobody needs."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # It says in its own words what is said here in ours.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    agent = logging.getLogger("torch.distributed.elastic.agent.server.api")
    agent.addFilter(lambda line: "exit barrier" not in line.getMessage())


def _node() -> str:
    node = os.environ.get("SLURMD_NODENAME", "")
    return f"{node}: " if node else ""


def _words(failure: "ProcessFailure") -> list[str]:
    """The rank's traceback, or the one line of an error that is for people."""
    message = failure.message
    if not isinstance(message, dict):
        return [] if failure.exitcode > 0 else [str(message)]
    line = str(message.get("message", ""))
    kind, _, rest = line.partition(": ")
    if kind == "InputError":
        return [f"error: {rest}"]
    return str(message.get("extraInfo", {}).get("py_callstack", line)).rstrip().splitlines()


if __name__ == "__main__":
    main()
