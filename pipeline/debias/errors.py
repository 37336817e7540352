"""The one error a user is meant to read: one line, the field or the row, the value seen, what would be right."""

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


class InputError(ValueError):
    """Bad input from a person (a config, a data file, a flag); the command line prints it and exits with code 2."""


class Interrupted(RuntimeError):
    """The run was asked to stop, has saved, and can be resumed: the command line exits with a code to requeue on."""

    exit_code = EXIT_REQUEUE


class Unreachable(InputError):
    """Another's server does not answer, or not as it must: no later question would fare better."""
