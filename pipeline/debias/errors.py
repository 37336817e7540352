"""The one error a user is meant to read: one line, the field or the row, the value seen, what would be right."""


class InputError(ValueError):
    """Bad input from a person (a config, a data file, a flag); the command line prints it and exits with code 2."""
