"""Fine-tune language models that do not learn the data's shortcuts.

For a training loop of your own: `hook = debias.attach(model, optimizer, rule)`. For the Hugging Face Trainer:
`debias.DebiasTrainer`, both with a rule such as `debias.Edge()`. For everything else: the `debias` command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from debias.engines import attach
    from debias.engines.hf_trainer import DebiasTrainer
    from debias.errors import InputError
    from debias.methods import Edge

_HOMES = {
    "attach": "debias.engines",
    "DebiasTrainer": "debias.engines.hf_trainer",
    "Edge": "debias.methods",
    "InputError": "debias.errors",
}

__all__ = ["DebiasTrainer", "Edge", "InputError", "__version__", "attach"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `import debias` and the command line's errors do not wait for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'debias' has no attribute {name!r}")
