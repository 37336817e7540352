"""Upload what a run trained: adapter or model, tokenizer, labels and card, and nothing else of the run's folder."""

import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias.hub.cache import host, is_offline
from debias.push.private import LOCAL, paths_in_settings, settings_without_paths, shown_base, without_paths
from debias.runs.names import ADDITIONAL_TEMPLATES, EDITS, LABELS, MERGED, ORIGIN, VOCABULARIES, trained

logger = logging.getLogger(__name__)
CARD = "README.md"
WEIGHTS = ("*.safetensors",)
SETTINGS = ("*config.json", "*.safetensors.index.json", "special_tokens_map.json", LABELS)
# A tokenizer's own files: their words may look like paths, and hold none.
WORDS = ("tokenizer.json", "added_tokens.json", *VOCABULARIES)
OURS = (ORIGIN, EDITS, MERGED, "training_args.bin")  # of the run, and nobody else's
NAME = re.compile(r"[\w.-]+/[\w.-]+")
MB = 1e6


@dataclass(frozen=True)
class Upload:
    """One file: its name in the repository, and its content, or the file that is uploaded as it is."""

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be (`dry_run`): where, and the files by name with their bytes."""

    repo: str
    url: str
    private: bool
    dry_run: bool
    files: dict[str, int]

    @property
    def lines(self) -> list[str]:
        """For a person."""
        done = "would be uploaded" if self.dry_run else "uploaded"
        sizes = [f"{size / MB:10.3f} MB  {name}" for name, size in self.files.items()]
        total = f"{len(self.files)} files, {sum(self.files.values()) / MB:.3f} MB, {done} to {self.url}"
        return [*sizes, f"{total} ({'private' if self.private else 'public where it is new'})"]


def uploads(run: Path, model: str, card: str, *, by_hand: bool) -> list[Upload]:
    """The files of a run that go to the hub, without a path of this machine in any of them.

    `model`: the base as the run names it; `card`: the text of README.md, which is refused if it was written `by_hand`
    and holds such a path, and is cut otherwise. InputError for a run that has trained nothing yet.
    """
    base, on_hub = shown_base(model)
    folder = trained(run)
    if folder is None:
        raise InputError(f"{run}: has no adapter/ or model/ folder, the run has not finished")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD]
    found = {path.name: _upload(path, base) for path in files}
    kept = [one for one in found.values() if one is not None]
    kept += [
        Upload(f"{ADDITIONAL_TEMPLATES}/{path.name}", path)
        for path in sorted((folder / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    ]
    if left := [name for name, one in found.items() if one is None and name not in OURS]:
        logger.warning(
            "%s: not uploaded, as no file of an adapter, a model or a tokenizer: %s", folder, ", ".join(left)
        )
    if not any(fnmatch.fnmatch(one.name, WEIGHTS[0]) for one in kept):
        raise InputError(f"{folder}: has no weights (*.safetensors)")
    if by_hand and (local := LOCAL.search(card)):
        raise InputError(f"{folder / CARD}: names {local[0]!r}, a path of this machine; edit the card, or delete it")
    clean = card if by_hand else without_paths(card, (run.absolute(), Path.cwd(), Path.home()))
    if not on_hub and not by_hand:  # the hub refuses a card whose base is no model of its own
        clean = re.sub(r"^base_model: .*\n", "", clean, count=1, flags=re.MULTILINE)
    return [Upload(CARD, clean.encode("utf-8", errors="replace")), *kept]


def _upload(path: Path, base: str) -> Upload | None:
    if _is_one_of(path.name, (*WEIGHTS, *WORDS)):
        return Upload(path.name, path)
    if not _is_one_of(path.name, SETTINGS):
        return None
    try:
        content = settings_without_paths(path.read_bytes(), base)
        local = next(paths_in_settings(content), None)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is no JSON, expected settings; was the run's folder damaged?") from None
    if local is not None:
        raise InputError(f"{path}: holds {local!r}, a path of this machine; take it out before the upload")
    return Upload(path.name, content)


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def push(files: list[Upload], repo: str, *, private: bool = False, dry_run: bool = False) -> Pushed:
    """Upload the files in one commit to `repo` (`OWNER/NAME`), which is made where it is not there yet.

    The token is that of `hf auth login`, or of HF_TOKEN. With `dry_run` nobody is asked. InputError for a name that is
    none, without a token or a network, and where `private` is asked for and the repository is there and public.
    """
    if not NAME.fullmatch(repo):
        raise InputError(f"--repo is {repo!r}, expected OWNER/NAME")
    done = Pushed(repo, f"{host()}/{repo}", private, dry_run, {one.name: one.size for one in files})
    if dry_run:
        return done
    if is_offline():
        raise InputError(f"HF_HUB_OFFLINE forbids to ask {host()}; unset it, or look first with --dry-run")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise InputError(f"no token for {host()}: run `hf auth login`, or set HF_TOKEN")
    with _errors(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"model {repo!r} is there and public; make it private on {host()}, or leave out --private")
        operations: list[Any] = [CommitOperationAdd(one.name, _content(one.content)) for one in files]
        api.create_commit(repo, operations, commit_message="Upload by debias push")
    return done


def _content(content: bytes | Path) -> bytes | str:
    return os.fspath(content) if isinstance(content, Path) else content


@contextmanager
def _errors(repo: str) -> Iterator[None]:
    """What the hub refuses, or that it cannot be reached, in one line."""
    from huggingface_hub import errors

    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # of the library below
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"--repo: no hub id: {str(error).splitlines()[0]}") from None
    except (http_error, OSError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"model {repo!r}: {host()} did not take it ({type(error).__name__}: {reason})") from None
