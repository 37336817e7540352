"""The JobSet manifest, held against the schemas of JobSet and Kubernetes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml

from debias.config import RunConfig
from debias.errors import InputError
from debias.launching import kubernetes
from debias.launching.job import make_job

IMAGE = "registry.example/debias:0.1"
VOLUMES = {"data": "/data"}


def job_for(output="/data/runs/one", **changes):
    config = tiny_runs.config_for(Path("org/model"), Path(output))
    return make_job(config, **{"name": "tiny", "folder": Path("job"), "nodes": 4, "gpus_per_node": 8, **changes})


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Keys that JobSet's schema does not know, and values that it refuses."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    try:
        known = models.JobsetV1alpha2JobSet.from_dict(document).to_dict()
    except ValueError as error:
        return [str(error)]
    return list(_lost(document, known, ""))


def _lost(given: Any, known: Any, where: str):
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                yield f"{where}.{key}"
            else:
                yield from _lost(value, known[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(known, list):
        for i, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from _lost(one, other, f"{where}[{i}]")


def test_the_manifest_fits_the_schema():
    _, jobset = kubernetes.manifest(job_for(), IMAGE, VOLUMES, namespace="ml", memory="200Gi")
    assert schema_errors(jobset) == []


def test_the_schema_finds_what_is_wrong():
    _, jobset = kubernetes.manifest(job_for(), IMAGE, VOLUMES)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["restartPolice"] = "Never"
    pod["containers"][0]["image"] = 7
    assert schema_errors(jobset)
    pod["containers"][0]["image"] = "x"
    assert schema_errors(jobset) == [".spec.replicatedJobs[0].template.spec.template.spec.restartPolice"]


def test_ranks_meet_at_the_first_pod():
    config, jobset = kubernetes.manifest(job_for(), IMAGE, VOLUMES)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    (container,) = job["template"]["spec"]["containers"]
    words = " ".join(container["command"])
    assert "--nnodes 4 --node-rank $(NODE_RANK) --nproc-per-node 8 --master-addr tiny-nodes-0-0.tiny" in words
    assert words.endswith("train /etc/debias/config.yaml")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert next(one for one in container["env"] if one["name"] == "NODE_RANK")["valueFrom"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    run = RunConfig.model_validate(yaml.safe_load(config["data"]["config.yaml"]))
    assert (run.output_dir, run.resume) == ("/data/runs/one", "auto")


def test_text_is_not_expanded_by_kubernetes():
    assert kubernetes._literal("a $(HOME) b") == "a $$(HOME) b"
    assert kubernetes._literal(kubernetes.NODE_RANK) == "$(NODE_RANK)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": {"name": "Tiny"}}, "--name is 'Tiny', expected up to 40 small letters"),
        ({"job": {"output": "/home/me/run"}}, r"output_dir is /home/me/run, below no --volume path \(/data\)"),
        ({"job": {"seeds": [1, 2]}}, "--array-seeds is Slurm's"),
        ({"image": "a b"}, "--image is 'a b'"),
        ({"image": "x\ny: 1"}, "--image is"),
        ({"volumes": {"data": "data"}}, "expected an absolute path"),
        ({"volumes": {"data": "/data/../etc"}}, "expected an absolute path"),
        ({"volumes": {"a_b": "/data"}}, "--volume is 'a_b'"),
        ({"volumes": {}}, "none is given"),
        ({"namespace": "a b"}, "--namespace is 'a b'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    job = job_for(**changes.get("job", {}))
    with pytest.raises(InputError, match=message) as caught:
        kubernetes.manifest(
            job, changes.get("image", IMAGE), changes.get("volumes", VOLUMES), namespace=changes.get("namespace")
        )
    assert "\n" not in str(caught.value)


def test_a_local_file_must_be_on_a_volume(tmp_path):
    job = job_for()
    train = job.config.data.train.model_copy(update={"source": "/home/me/train.jsonl"})
    config = job.config.model_copy(update={"data": job.config.data.model_copy(update={"train": train})})
    with pytest.raises(InputError, match=r"data.train is /home/me/train.jsonl, below no --volume path"):
        kubernetes.manifest(dataclasses.replace(job, config=config), IMAGE, VOLUMES)


def test_hostile_values_stay_values(tmp_path):
    output = "/data/a'b\"c: {d} $(e) \u2028 #f"
    documents = kubernetes.manifest(job_for(output=output), IMAGE, VOLUMES)
    path = kubernetes.write(documents, tmp_path / "jobs" / "x.yaml")
    assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) == documents
    assert yaml.safe_load(documents[0]["data"]["config.yaml"])["output_dir"] == output
    with pytest.raises(InputError, match="exists already"):
        kubernetes.write(documents, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.yaml"]
