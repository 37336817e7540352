"""A JobSet manifest: one pod for each node, torchrun inside it, restarted from the last checkpoint.

JobSet (sigs.k8s.io/jobset, v1alpha2) gives the pods stable names, so that all ranks meet at the first one. Values are
never read by a shell: the container's command is a list, and `$` in it is escaped as Kubernetes wants it.
"""

import contextlib
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from debias.config import deepspeed_file as zero_config
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data.files import kind_of
from debias.data.shards import is_pattern
from debias.errors import InputError
from debias.launching.job import SET_BY_JOB, VARIABLE, Job, names_of, own_engines

PODS = "nodes"
PORT = 29500
CONFIG_AT = "/etc/debias"
SHM_AT = "/dev/shm"
ENGINE = "deepspeed.json"  # a DeepSpeed file of the user's own, beside the run's config
Volumes = Sequence[tuple[str, str]]  # claim and the path at which the pods see it
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # names of pods add up to a label of 63
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
MEMORY = re.compile(r"(?=.*[1-9])\d+(\.\d+)?([KMGTP]i|[kMGTP])")  # Kubernetes reads a bare number as bytes
SELECTOR = re.compile(r"(?P<key>[A-Za-z0-9][A-Za-z0-9_./-]*)=(?P<value>([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?)")
TOLERATION = re.compile(
    r"(?P<key>[A-Za-z0-9][A-Za-z0-9_./-]*)(=(?P<value>[A-Za-z0-9_.-]*))?(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)
SET_BY_PODS = {"NODE_RANK": "each pod has its own", **SET_BY_JOB}
ON_VOLUMES = ("DEBIAS_DATA", "HF_HOME")  # folders that every pod must find


@dataclass(frozen=True)
class Placement:
    """Which nodes take the pods: cores asked for (None: the cluster's default), labels, and taints that are borne."""

    cpus: int | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()


ANYWHERE = Placement()


def placement(cpus: int | None, labels: Sequence[str], tolerations: Sequence[str]) -> Placement:
    """From texts KEY=VALUE and KEY[=VALUE][:EFFECT]; InputError for what Kubernetes would not read so."""
    selector: dict[str, str] = {}
    for text in labels:
        found = SELECTOR.fullmatch(text)
        if found is None or found["key"] in selector:
            raise InputError(f"--node-selector is {text!r}, expected KEY=VALUE, each key once, such as pool=a100")
        selector[found["key"]] = found["value"]
    return Placement(cpus, selector, [_toleration(text) for text in tolerations])


def _toleration(text: str) -> dict[str, str]:
    found = TOLERATION.fullmatch(text)
    if found is None:
        raise InputError(
            f"--toleration is {text!r}, expected KEY[=VALUE][:EFFECT] such as nvidia.com/gpu:NoSchedule, with an effect"
            " of NoSchedule, PreferNoSchedule or NoExecute"
        )
    given = {key: value for key, value in found.groupdict().items() if value is not None}
    return {"key": given["key"], "operator": "Equal" if "value" in given else "Exists", **given}


def manifest(
    job: Job,
    image: str,
    volumes: Volumes,
    *,
    namespace: str | None = None,
    most_restarts: int = 20,
    memory: str | None = None,
    env: Mapping[str, str] | None = None,
    where: Placement = ANYWHERE,
) -> list[dict[str, Any]]:
    """A ConfigMap with the run's config and the JobSet that trains it.

    `env`: variables of the pods; with HF_HOME, a cache on a volume, a job that is `offline` reaches no hub. InputError
    for names that Kubernetes refuses, and for an output folder or a local file of the config that is not below a path
    of `volumes`: it would be lost, or missing. A DeepSpeed file of the user's own goes into the ConfigMap.
    """
    env = env or {}
    _check_names(job, image, volumes, namespace, memory)
    _check_volumes(volumes)
    _check_env(env)
    _check_files(job.config, volumes, env)
    place = {"namespace": namespace} if namespace else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": job.name, **place},
            "data": _files(job),
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
                    {"name": PODS, "replicas": 1, "template": {"spec": _pods(job, image, volumes, memory, env, where)}}
                ],
            },
        },
    ]


def _files(job: Job) -> dict[str, str]:
    """What the pods find at CONFIG_AT."""
    ((file, config),) = job.configs().items()
    texts, changes = {}, {}
    for setting, name in own_engines(config).items():
        file_there = ENGINE if setting == "deepspeed" else f"first_stage_{ENGINE}"
        texts[file_there] = zero_config.find(name).read_text(encoding="utf-8")
        changes[setting] = f"{CONFIG_AT}/{file_there}"
    return {file: dump_config(_with_engines(config, changes)), **texts}


def _with_engines(config: RunConfig, changes: Mapping[str, str]) -> RunConfig:
    """The config with these places of its DeepSpeed files."""
    update: dict[str, Any] = {}
    if "deepspeed" in changes:
        update["deepspeed"] = changes["deepspeed"]
    if (place := changes.get("first_stage.settings.deepspeed")) is not None and config.first_stage is not None:
        settings = {**config.first_stage.settings, "deepspeed": place}
        update["first_stage"] = config.first_stage.model_copy(update={"settings": settings})
    return config.model_copy(update=update)


def _pods(
    job: Job, image: str, volumes: Volumes, memory: str | None, env: Mapping[str, str], where: Placement
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": [_literal(word) for word in _command(job)],
        "env": _environment(job, env),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_AT, "readOnly": True},
            {"name": "shm", "mountPath": SHM_AT},
            *({"name": _volume(claim), "mountPath": path} for claim, path in volumes),
        ],
    }
    limits = {
        **({"nvidia.com/gpu": job.gpus_per_node} if job.gpus_per_node else {}),
        **({"memory": memory} if memory else {}),
    }
    # Memory and GPUs are asked for by their limits; a limit of cores would only slow a pod down.
    requests = {"cpu": str(where.cpus)} if where.cpus else {}
    if limits or requests:
        container["resources"] = {key: value for key, value in (("requests", requests), ("limits", limits)) if value}
    return {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": job.grace_seconds,
                **({"nodeSelector": dict(where.selector)} if where.selector else {}),
                **({"tolerations": [dict(one) for one in where.tolerations]} if where.tolerations else {}),
                "containers": [container],
                "volumes": [
                    {"name": "config", "configMap": {"name": job.name}},
                    # NCCL and data loaders share memory; the default of 64 MiB ends them with a bus error.
                    {"name": "shm", "emptyDir": {"medium": "Memory"}},
                    *(
                        {"name": _volume(claim), "persistentVolumeClaim": {"claimName": claim}}
                        for claim in dict.fromkeys(claim for claim, _ in volumes)
                    ),
                ],
            }
        },
    }


def _volume(claim: str) -> str:
    """The pods' own name of a claim: never one of their other volumes, whatever the claim is called."""
    return f"claim-{claim}"


def _command(job: Job) -> list[str]:
    (file,) = job.configs()
    first = f"{job.name}-{PODS}-0-0.{job.name}"
    torchrun = ["python", "-m", "debias.ranks.failures", "--nnodes", str(job.nodes), "--node-rank", NODE_RANK]
    torchrun += ["--nproc-per-node", str(job.ranks_per_node), "--master-addr", first, "--master-port", str(PORT)]
    return [*torchrun, "-m", "debias.cli", "train", f"{CONFIG_AT}/{file}"]


NODE_RANK = "$(NODE_RANK)"  # Kubernetes fills it in from the pod's own index


def _literal(word: str) -> str:
    return word if word == NODE_RANK else word.replace("$", "$$")


def _environment(job: Job, env: Mapping[str, str]) -> list[dict[str, Any]]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    values = {
        "OMP_NUM_THREADS": str(job.threads),
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.grace_seconds),
        # A fresh pod has an empty cache: without one on a volume it must download, or find nothing.
        **({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if job.offline and "HF_HOME" in env else {}),
        **({"NCCL_DEBUG": "WARN"} if job.gpus_per_node else {}),
        **{name: _literal(value) for name, value in env.items()},
    }
    plain = [{"name": name, "value": value} for name, value in values.items()]
    return [{"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}}, *plain]


def _check_names(job: Job, image: str, volumes: Volumes, namespace: str | None, memory: str | None) -> None:
    if job.seeds:
        raise InputError("--array-seeds is Slurm's; give a JobSet for each seed: seed=N output_dir=... --name ...")
    for option, name in (
        ("--name", job.name),
        ("--namespace", namespace or "default"),
        *(("--volume", claim) for claim, _ in volumes),
    ):
        if not LABEL.fullmatch(name):
            raise InputError(f"{option} is {name!r}, expected up to 40 small letters, digits and '-', a letter first")
    if not IMAGE.fullmatch(image):
        raise InputError(f"--image is {image!r}, expected a container image such as registry/debias:0.1")
    if memory is not None and not MEMORY.fullmatch(memory):
        raise InputError(f"--memory is {memory!r}, expected a number with its unit as Kubernetes has it, such as 200Gi")


def _check_volumes(volumes: Volumes) -> None:
    taken = {CONFIG_AT: "the run's config", SHM_AT: "shared memory"}
    for claim, path in volumes:
        place = _normal(path)
        if not path.startswith("/") or ".." in PurePosixPath(path).parts or ":" in path or place == "/":
            raise InputError(f"--volume {claim}:{path}: expected an absolute path below /, without '..' and ':'")
        if place in taken:
            raise InputError(f"--volume {claim}:{path}: {taken[place]} is at {place} already; give another path")
        taken[place] = f"claim {claim!r}"


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _check_env(env: Mapping[str, str]) -> None:
    for name in env:
        if not VARIABLE.fullmatch(name):
            raise InputError(f"--env is {name!r}, expected the name of a variable: letters, digits and '_'")
        if name in SET_BY_PODS:
            raise InputError(f"--env {name}: {SET_BY_PODS[name]}; remove it")


def _check_files(config: RunConfig, volumes: Volumes, env: Mapping[str, str]) -> None:
    """What must lie on a volume: the output, the pods' folders, and files of this machine that the config names."""
    mounted = ", ".join(path for _, path in volumes) or "none is given"
    named = {"output_dir": os.path.abspath(config.output_dir), **{f"--env {k}": env[k] for k in ON_VOLUMES if k in env}}
    named |= {key: path for key, path in names_of(config).items() if os.path.isabs(path)}
    for key, path in named.items():
        whole = _normal(path) if os.path.isabs(path) else path
        if not any(PurePosixPath(whole).is_relative_to(_normal(mount)) for _, mount in volumes):
            raise InputError(f"{key} is {path}, below no --volume path ({mounted}): the pods would not keep or find it")
    for key, name in names_of(config).items():
        if not key.endswith("model") and "DEBIAS_DATA" not in env and _is_file(name, config):
            raise InputError(
                f"{key} is {name}, a file in DEBIAS_DATA, which the pods have not; "
                f"add --env DEBIAS_DATA=PATH, a folder below a --volume path ({mounted})"
            )


def _is_file(name: str, config: RunConfig) -> bool:
    """Whether a source is found through DEBIAS_DATA alone: relative, and neither generated nor a hub id."""
    if os.path.isabs(name) or name == "generated":
        return False
    here = os.environ.get("DEBIAS_DATA")
    known = config.data.pictures or kind_of(name) is not None or is_pattern(name)
    return known or (here is not None and os.path.exists(Path(here) / name))


class _Readable(yaml.SafeDumper):
    """Files inside the ConfigMap stand line by line, as a person would write them."""


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _lines)


def text_of(documents: Sequence[Mapping[str, Any]]) -> str:
    """The documents as one YAML text."""
    text: str = yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, allow_unicode=True)
    return text


def write(documents: Sequence[Mapping[str, Any]], path: Path, *, overwrite: bool = False) -> Path:
    """The manifest as one YAML file, whole or not at all; InputError if it is there already."""
    if os.path.exists(path) and not overwrite:  # for which a name that is too long is no error
        raise InputError(f"{path}: exists already; give another -o, or --overwrite")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text_of(documents), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror}: {error.filename}") from None
    return path
