"""A JobSet manifest: one pod for each node, torchrun inside it, restarted from the last checkpoint.

JobSet (sigs.k8s.io/jobset, v1alpha2) gives the pods stable names, so that all ranks meet at the first one. Values are
never read by a shell: the container's command is a list, and `$(` in it is escaped as Kubernetes wants it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from debias.config import RunConfig, dump_config
from debias.errors import InputError
from debias.launching.job import Job

PODS = "nodes"
PORT = 29500
CONFIG_AT = "/etc/debias"
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # names of pods add up to a label of 63
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")


def manifest(
    job: Job,
    image: str,
    volumes: Mapping[str, str],
    *,
    namespace: str | None = None,
    most_restarts: int = 20,
    memory: str | None = None,
) -> list[dict[str, Any]]:
    """A ConfigMap with the run's config and the JobSet that trains it.

    `volumes`: claim name to the path at which the pods see it. InputError for names that Kubernetes refuses, and for
    an output folder or a local file of the config that is not below one of these paths: it would be lost, or missing.
    """
    _check(job, image, volumes, namespace)
    ((file, config),) = job.configs().items()
    place = {"namespace": namespace} if namespace else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": job.name, **place},
            "data": {file: dump_config(config)},
        },
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": job.name, **place},
            "spec": {
                # A pod that is gone ends its collective: all start again, from the last checkpoint.
                "failurePolicy": {"maxRestarts": most_restarts},
                "network": {"enableDNSHostnames": True},
                "replicatedJobs": [
                    {"name": PODS, "replicas": 1, "template": {"spec": _pods(job, image, volumes, memory)}}
                ],
            },
        },
    ]


def _pods(job: Job, image: str, volumes: Mapping[str, str], memory: str | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": [_literal(word) for word in _command(job)],
        "env": _environment(job),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_AT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": claim, "mountPath": path} for claim, path in volumes.items()),
        ],
    }
    limits = {
        **({"nvidia.com/gpu": job.gpus_per_node} if job.gpus_per_node else {}),
        **({"memory": memory} if memory else {}),
    }
    if limits:
        container["resources"] = {"limits": limits}
    return {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": job.grace_seconds,
                "containers": [container],
                "volumes": [
                    {"name": "config", "configMap": {"name": job.name}},
                    # NCCL and data loaders share memory; the default of 64 MiB ends them with a bus error.
                    {"name": "shm", "emptyDir": {"medium": "Memory"}},
                    *({"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in volumes),
                ],
            }
        },
    }


def _command(job: Job) -> list[str]:
    (file,) = job.configs()
    first = f"{job.name}-{PODS}-0-0.{job.name}"
    torchrun = ["python", "-m", "debias.launching.ranks", "--nnodes", str(job.nodes), "--node-rank", NODE_RANK]
    torchrun += ["--nproc-per-node", str(job.ranks_per_node), "--master-addr", first, "--master-port", str(PORT)]
    return [*torchrun, "-m", "debias.cli", "train", f"{CONFIG_AT}/{file}"]


NODE_RANK = "$(NODE_RANK)"  # Kubernetes fills it in from the pod's own index


def _literal(word: str) -> str:
    return word if word == NODE_RANK else word.replace("$(", "$$(")


def _environment(job: Job) -> list[dict[str, Any]]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    values = {
        "OMP_NUM_THREADS": str(job.threads),
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.grace_seconds),
        **({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if job.offline else {}),
        **({"NCCL_DEBUG": "WARN"} if job.gpus_per_node else {}),
    }
    plain = [{"name": name, "value": value} for name, value in values.items()]
    return [{"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}}, *plain]


def _check(job: Job, image: str, volumes: Mapping[str, str], namespace: str | None) -> None:
    if job.seeds:
        raise InputError("--array-seeds is Slurm's; give a JobSet for each seed: seed=N output_dir=... --name ...")
    for option, name in (
        ("--name", job.name),
        ("--namespace", namespace or "default"),
        *(("--volume", one) for one in volumes),
    ):
        if not LABEL.fullmatch(name):
            raise InputError(f"{option} is {name!r}, expected up to 40 small letters, digits and '-', a letter first")
    if not IMAGE.fullmatch(image):
        raise InputError(f"--image is {image!r}, expected a container image such as registry/debias:0.1")
    for claim, path in volumes.items():
        if not path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise InputError(f"--volume {claim}:{path}: expected an absolute path without '..'")
    for key, path in _paths(job.config):
        if not any(PurePosixPath(path).is_relative_to(mount) for mount in volumes.values()):
            mounted = ", ".join(volumes.values()) or "none is given"
            raise InputError(f"{key} is {path}, below no --volume path ({mounted}): the pods would not keep or find it")


def _paths(config: RunConfig) -> list[tuple[str, str]]:
    """What must lie on a volume: the output, and files of this machine that the config names."""
    found = [("output_dir", os.path.abspath(config.output_dir))]
    named = {"model": config.model, "data.train": config.data.train.source}
    if config.data.validation is not None:
        named["data.validation"] = config.data.validation.source
    return found + [(key, value) for key, value in named.items() if os.path.isabs(value)]


def write(documents: Sequence[Mapping[str, Any]], path: Path, *, overwrite: bool = False) -> Path:
    """The manifest as one YAML file, whole or not at all; InputError if it is there already."""
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another -o, or --overwrite")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path
