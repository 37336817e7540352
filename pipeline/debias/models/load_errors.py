"""What transformers and its helpers raise while a model is read, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from debias.errors import InputError
from debias.hub.remote_code import words_to_trust

# These say in words what is wrong; of others (`tokenizers` raises a plain Exception) the class has to be told too.
SPEAKING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


def reason(error: Exception, name: str) -> str:
    """Why the model of that name could not be read: the first line of what was raised."""
    said = str(error).strip()
    if "allow custom code" in said:
        return (
            "it needs code of its own, which is not run unless you name the model in the environment"
            f" ({words_to_trust(name)})"
        )
    first = (said.splitlines() or [""])[0]
    if isinstance(error, SPEAKING) and first:
        return first
    return f"one of its files cannot be understood ({type(error).__name__}: {first})"


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Inside, whatever is raised becomes an InputError that names the model and is one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model: {name!r} could not be loaded: {reason(error, name)}") from error
