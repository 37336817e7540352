"""What of a model or data set is on this machine, and the hub's errors in one line."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from debias.errors import InputError

Kind = Literal["model", "dataset"]
CONFIG = "config.json"
# As transformers looks for them: the first that is there is loaded.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
INDEX = ".index.json"


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model in a folder: bytes of what is there, what is missing to load it, and what is damaged."""

    folder: Path
    bytes: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...] = ()  # each a sentence

    @property
    def cached_as(self) -> Path:
        """Of a folder in the hub's cache, the one with all that was downloaded of the model."""
        return self.folder.parents[1]


def in_folder(folder: Path, *, tokenizer: bool = True) -> ModelFolder:
    """What a folder holds of a model; a weights file that an index names counts as missing where it is not there.

    Of weights only the headers are read, which say how long each file of safetensors must be.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}  # a link to a file that is gone is none
    missing = [] if CONFIG in names else [CONFIG]
    weights = chosen_weights(names)
    parts = [] if weights is None else shards(folder / weights) if weights.endswith(INDEX) else [weights]
    if weights is None:
        missing.append(f"weights ({WEIGHTS[0]})")
    missing += [name for name in parts if name not in names]
    if tokenizer and not names & set(TOKENIZERS) and not any(name.endswith(".tiktoken") for name in names):
        missing.append(f"a tokenizer ({TOKENIZERS[0]})")
    looks = [CONFIG, *([TOKENIZERS[0]] if tokenizer else []), *parts]
    damaged = [fault for name in looks if name in names and (fault := _fault(folder / name)) is not None]
    return ModelFolder(folder, sum((folder / name).stat().st_size for name in names), tuple(missing), tuple(damaged))


def _fault(path: Path) -> str | None:
    """What is wrong with one of a model's files, None for nothing that can be seen without loading it."""
    try:
        if path.suffix == ".safetensors":
            there, whole = path.stat().st_size, _whole_size(path)
            return None if there == whole else f"{path.name} has {there:,} bytes, its header says {whole:,}"
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or (path.name == TOKENIZERS[0] and "model" not in found):
                return f"{path.name} is not what its name says"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{path.name} cannot be read"
    return None


def _whole_size(path: Path) -> int:
    """The bytes that a file of safetensors must have: eight for the length of its header, the header, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("no header")
        tensors = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def shards(index: Path) -> list[str]:
    """The files that an index of weights names; InputError for a file that is no index."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(f"{index}: no index of weights; delete it and fetch it again") from None


def in_cache(repo: str, *, tokenizer: bool = True) -> ModelFolder | None:
    """What the hub's cache holds of a model's main revision, None for nothing; asks nobody."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, CONFIG)
    except HFValidationError as error:
        raise InputError(f"model: {repo!r} is no folder, and no hub id: {str(error).splitlines()[0]}") from None
    return in_folder(Path(found).parent, tokenizer=tokenizer) if isinstance(found, str) else None


def chosen_weights(names: Collection[str]) -> str | None:
    """The file of weights, or their index, that transformers would take of a repository's files."""
    return next((name for name in WEIGHTS if name in names), None)


def host() -> str:
    """The hub's host, for messages."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache() -> Path:
    """Where the hub's client keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()


def datasets_cache() -> Path:
    """Where `datasets` keeps prepared data sets."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE).absolute()


@contextmanager
def without_network() -> Iterator[None]:
    """Inside, `datasets` reads what is in its cache and asks nobody."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def gated(kind: Kind, repo: str) -> InputError:
    """What to say of a repository whose terms must be accepted."""
    page = f"{host()}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    return InputError(
        f"{kind} {repo!r} is gated: its terms are not accepted, or you are not logged in; accept them at {page}, then"
        " run `hf auth login` (or set HF_TOKEN)"
    )


def forbidden(kind: Kind, repo: str) -> InputError:
    """What to say where something is not in the cache and the hub must not be asked."""
    return InputError(
        f"{kind} {repo!r} is not in the cache, and HF_HUB_OFFLINE forbids to ask {host()}; unset it where there is a"
        " network"
    )


@contextmanager
def one_line(kind: Kind, repo: str) -> Iterator[None]:
    """Inside, whatever the hub raises becomes an InputError that names the id and the host, and ends with the cure."""
    from huggingface_hub import errors

    what = f"{kind} {repo!r}"
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # of the library below
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        raise gated(kind, repo) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{what} is not on {host()}, or is private; check the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise forbidden(kind, repo) from None
    except errors.HFValidationError as error:
        raise InputError(f"{what}: no hub id: {str(error).splitlines()[0]}") from None
    except (http_error, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{what}: {host()} does not answer as it should ({type(error).__name__}: {reason}); fetch it where there is"
            " a network, or set HF_ENDPOINT to a mirror"
        ) from None
