"""Which model a name means: found out once, and handed to all that load a part of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from debias.hub.packages import model_path
from debias.hub.remote_code import trusted
from debias.models.load_errors import readable_errors


@dataclass(frozen=True)
class ModelSource:
    """A model: its `name` as a user gave it, the `path` that `from_pretrained` takes, whether its own code may run."""

    name: str
    path: str
    trusted: bool

    @cached_property
    def config(self) -> Any:
        """The configuration of transformers, read once; a copy is to be changed, never this one. Raises as it does."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trusted)


def resolve_model(model: str | ModelSource) -> ModelSource:
    """The source of a name: a hub id, a local folder, `package:...` (fetched where it is not here yet).

    One that was resolved already is itself. InputError for a name that can only be a folder and is none, or for an
    unknown package.
    """
    if isinstance(model, ModelSource):
        return model
    with readable_errors(model):
        return ModelSource(model, model_path(model), trusted(model))
