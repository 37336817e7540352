"""A job's steps inside a container: what `srun` is told for pyxis (github.com/NVIDIA/pyxis, 0.15 or newer)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from debias.config import deepspeed_file as zero_config
from debias.errors import InputError
from debias.launching.job import Job, names_of, own_engines

READ_BELOW = ("DEBIAS_DATA", "DEBIAS_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")


def container_flags(job: Job, image: str, mounts: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """`--container-image` and the rest, an argument a flag.

    Mounted at their own paths are the job's folder, the folder of its outputs, and what config and `env` read: local
    data and models, a DeepSpeed file of the user's own, caches. `mounts` are further ones, SRC:DST[:FLAGS] or a path.
    InputError for an empty image and a path that pyxis' syntax cannot say.
    """
    if not image.strip() or any(ord(letter) < 33 for letter in image):
        raise InputError(
            f"--container is {image!r}, expected an image such as nvcr.io#nvidia/pytorch:25.09-py3, or a .sqsh file"
        )
    asked = [_mount(text) for text in mounts]
    own = [_at_its_path(path) for path in _needed(job, env)]
    flags = [f"--container-image={image_of(image)}", f"--container-mounts={','.join(dict.fromkeys([*own, *asked]))}"]
    flags.append(f"--container-workdir={job.folder}")
    return [*flags, f"--container-env={','.join(env)}"] if env else flags


def image_of(text: str) -> str:
    """The image as srun reads it on any node: a squashfs file of this machine by its whole path."""
    here = os.path.expanduser(text)
    return os.path.abspath(here) if os.path.isfile(here) or here.endswith(".sqsh") else text


def _needed(job: Job, env: Mapping[str, str]) -> list[str]:
    """Folders that the run reads or writes, none of them inside another."""
    read = [env[name] for name in READ_BELOW if name in env]
    folders = [str(job.folder), os.path.dirname(job.output_dir), *read]
    for path in names_of(job.config).values():
        if os.path.isabs(path):
            folders.append(path if os.path.isdir(path) else os.path.dirname(path))
    folders += [str(zero_config.find(name).resolve().parent) for name in own_engines(job.config).values()]
    whole = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    return [one for one in whole if not any(Path(one) != Path(up) and Path(one).is_relative_to(up) for up in whole)]


def _at_its_path(path: str) -> str:
    if any(letter in path for letter in ",:"):
        raise InputError(
            f"--container: {path!r} has a ',' or ':', which no mount of pyxis can name; use another folder"
        )
    return f"{path}:{path}"


def _mount(text: str) -> str:
    parts = text.split(":")
    fits = 1 <= len(parts) <= 3 and all(parts) and "," not in text and all(p.startswith("/") for p in parts[:2])
    if not fits or any(ord(letter) < 32 for letter in text):
        raise InputError(
            f"--container-mount is {text!r}, expected SRC:DST[:FLAGS] with absolute paths, such as /data:/data:ro"
        )
    return _at_its_path(text) if len(parts) == 1 else text
