"""The JobSet manifest, held against the schemas of JobSet and Kubernetes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml
from command_line import command_line

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.launching import kubernetes
from debias.launching.job import make_job

IMAGE = "registry.example/debias:0.1"
VOLUMES = [("data", "/data")]


def job_for(output="/data/runs/one", settings=None, **changes):
    config = tiny_runs.config_for(Path("org/model"), Path(output), **(settings or {}))
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
    volumes, env = [*VOLUMES, ("data", "/other"), ("config", "/c")], {"HF_HOME": "/data/hf"}
    _, jobset = kubernetes.manifest(job_for(), IMAGE, volumes, namespace="ml", memory="200Gi", env=env)
    assert schema_errors(jobset) == []


def test_where_pods_may_run():
    where = kubernetes.placement(
        64, ["pool=a100", "cloud.google.com/x=y"], ["gpu:NoSchedule", "team=nlp", "a/b=c:NoExecute", "any"]
    )
    _, jobset = kubernetes.manifest(job_for(), IMAGE, VOLUMES, memory="200Gi", where=where)
    assert schema_errors(jobset) == []
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    asked = pod["containers"][0]["resources"]
    assert asked == {"requests": {"cpu": "64"}, "limits": {"nvidia.com/gpu": 8, "memory": "200Gi"}}
    assert pod["nodeSelector"] == {"pool": "a100", "cloud.google.com/x": "y"}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "nlp"},
        {"key": "a/b", "operator": "Equal", "value": "c", "effect": "NoExecute"},
        {"key": "any", "operator": "Exists"},
    ]


@pytest.mark.parametrize("text", ["pool", "=x", "a b=c", "a=b\nc", "a=", "a=-"])
def test_what_is_no_label(text):
    if text == "a=":  # a label may be empty
        assert kubernetes.placement(None, [text], []).selector == {"a": ""}
        return
    with pytest.raises(InputError, match="--node-selector is"):
        kubernetes.placement(None, [text], [])


@pytest.mark.parametrize("text", ["", ":NoSchedule", "a:Never", "a=b c", "a:NoSchedule:x"])
def test_what_is_no_taint(text):
    with pytest.raises(InputError, match="--toleration is"):
        kubernetes.placement(None, [], [text])


def test_the_config_inside_is_readable(tmp_path):
    documents = kubernetes.manifest(job_for(), IMAGE, VOLUMES)
    path = kubernetes.write(documents, tmp_path / "x.yaml")
    text = path.read_text(encoding="utf-8")
    assert "\n  config.yaml: |\n    model: org/model\n" in text
    assert list(yaml.safe_load_all(text)) == documents


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


def pod_of(*arguments, **options):
    """The pods' spec and what the ConfigMap holds."""
    files, jobset = kubernetes.manifest(*arguments, **options)
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"], files["data"]


def test_volumes_have_names_of_their_own():
    """Whatever the claims are called; one claim may be at two places."""
    volumes = [("config", "/a"), ("shm", "/b"), ("shm", "/c")]
    pod, _ = pod_of(job_for("/a/run"), IMAGE, volumes)
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = {one["name"]: one.get("persistentVolumeClaim", {}).get("claimName") for one in pod["volumes"]}
    assert len(claims) == len(pod["volumes"]) == 4
    assert {path: claims[mounts[path]] for path, _ in [(path, claim) for claim, path in volumes]} == {
        "/a": "config",
        "/b": "shm",
        "/c": "shm",
    }
    assert len(mounts) == len(container["volumeMounts"]) == 5


@pytest.mark.parametrize(
    ("changes", "env", "offline"),
    [
        ({}, {}, False),  # a fresh pod's cache is empty: offline it could not begin
        ({}, {"HF_HOME": "/data/hf"}, True),
        ({"offline": False}, {"HF_HOME": "/data/hf"}, False),
    ],
)
def test_pods_are_offline_where_they_have_a_cache(changes, env, offline):
    pod, _ = pod_of(job_for(**changes), IMAGE, VOLUMES, env=env | {"OMP_NUM_THREADS": "7", "X": "$(id) $$(id)"})
    found = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert len(found) == len(pod["containers"][0]["env"])
    assert ("HF_HUB_OFFLINE" in found, "HF_DATASETS_OFFLINE" in found) == (offline, offline)
    assert env.items() <= found.items()
    assert (found["OMP_NUM_THREADS"], found["X"]) == ("7", "$$(id) $$$$(id)")


@pytest.mark.parametrize("shipped", [False, True])
def test_a_deepspeed_file_of_ones_own_goes_with_the_run(shipped, tmp_path):
    file = tmp_path / "my.json"
    file.write_text('{"zero_optimization": {"stage": 2}}')
    _, files = pod_of(job_for(settings={"deepspeed": "zero2" if shipped else str(file)}), IMAGE, VOLUMES)
    engine = yaml.safe_load(files["config.yaml"])["deepspeed"]
    if shipped:
        assert (engine, set(files)) == ("zero2", {"config.yaml"})
    else:
        assert files[engine.removeprefix("/etc/debias/")] == file.read_text()


@pytest.mark.parametrize("source", ["nli/train.jsonl", "nli/train.parquet", "nli"])
def test_data_below_debias_data_needs_it_in_the_pods(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    (tmp_path / "nli").mkdir()
    job = job_for(settings={"data": {"train": {"source": source}}})
    with pytest.raises(InputError, match=rf"data.train is {source}, .*; add --env DEBIAS_DATA=PATH.*\(/data\)"):
        kubernetes.manifest(job, IMAGE, VOLUMES)
    assert kubernetes.manifest(job, IMAGE, VOLUMES, env={"DEBIAS_DATA": "/data/sets"})
    assert kubernetes.manifest(job_for(settings={"data": {"train": {"source": "org/set"}}}), IMAGE, VOLUMES)


def test_text_is_not_expanded_by_kubernetes():
    assert kubernetes._literal("a $(HOME) b $$(c)") == "a $$(HOME) b $$$$(c)"
    assert kubernetes._literal(kubernetes.NODE_RANK) == "$(NODE_RANK)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": {"name": "Tiny"}}, "--name is 'Tiny', expected up to 40 small letters"),
        ({"job": {"output": "/home/me/run"}}, r"output_dir is /home/me/run, below no --volume path \(/data\)"),
        ({"job": {"seeds": [1, 2]}}, "--array-seeds is Slurm's"),
        ({"image": "a b"}, "--image is 'a b'"),
        ({"image": "x\ny: 1"}, "--image is"),
        ({"volumes": [("data", "data")]}, "expected an absolute path"),
        ({"volumes": [("data", "/data/../etc")]}, "expected an absolute path"),
        ({"volumes": [("data", "//")]}, "expected an absolute path below /"),
        ({"volumes": [("data", "/da:ta")]}, "expected an absolute path below /, without"),
        ({"volumes": [("data", "/data"), ("other", "/data/")]}, "--volume other:/data/: claim 'data' is at /data alr"),
        ({"volumes": [("data", "/etc/debias")]}, "--volume data:/etc/debias: the run's config is at /etc/debias alre"),
        ({"volumes": [("a_b", "/data")]}, "--volume is 'a_b'"),
        ({"volumes": []}, "none is given"),
        ({"namespace": "a b"}, "--namespace is 'a b'"),
        ({"memory": "lots of"}, "--memory is 'lots of', expected a number with its unit .* such as 200Gi"),
        ({"memory": "200"}, "--memory is '200'"),
        ({"memory": "0Gi"}, "--memory is '0Gi'"),
        ({"memory": "200GB"}, "--memory is '200GB'"),
        ({"env": {"A B": "x"}}, "--env is 'A B'"),
        ({"env": {"NODE_RANK": "0"}}, "--env NODE_RANK: each pod has its own; remove it"),
        ({"env": {"HF_HOME": "/home/me"}}, "--env HF_HOME is /home/me, below no --volume path"),
        ({"env": {"HF_HOME": "/data/../me"}}, "--env HF_HOME is /data/../me, below no --volume path"),
        ({"env": {"DEBIAS_DATA": "sets"}}, "--env DEBIAS_DATA is sets, below no --volume path"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    job = job_for(**changes.get("job", {}))
    with pytest.raises(InputError, match=message) as caught:
        kubernetes.manifest(
            job,
            changes.get("image", IMAGE),
            changes.get("volumes", VOLUMES),
            **{key: changes.get(key) for key in ("namespace", "memory", "env")},
        )
    assert "\n" not in str(caught.value)


def test_a_local_file_must_be_on_a_volume(tmp_path):
    job = job_for()
    train = job.config.data.train.model_copy(update={"source": "/home/me/train.jsonl"})
    config = job.config.model_copy(update={"data": job.config.data.model_copy(update={"train": train})})
    said = {"name": "product", "of": ["lexical", {"name": "column", "file": "/home/me/said.npz"}]}
    with pytest.raises(InputError, match=r"bias_model.file is /home/me/said.npz, below no --volume path"):
        kubernetes.manifest(
            dataclasses.replace(job, config=job.config.model_copy(update={"bias_model": said})), IMAGE, VOLUMES
        )
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


@pytest.mark.parametrize(("place", "why"), [("file/x.yaml", "File exists: .*/file$"), ("x" * 300, "name too long")])
def test_a_place_that_cannot_be_is_one_line(place, why, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot be written: .*{why}"):
        kubernetes.write([], tmp_path / place)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    debias = command_line(monkeypatch, capsys)
    words = [
        "launch",
        "k8s",
        "qwen3_32b_zero3_edge",
        "output_dir=/data/runs/q32",
        "--nodes",
        "2",
        "--gpus-per-node",
        "8",
    ]
    words += ["--image", IMAGE, "--volume", "data:/data"]
    assert "add --env DEBIAS_DATA=PATH" in debias(*words).error
    assert not (tmp_path / "jobs").exists()
    words += ["--env", "DEBIAS_DATA=/data/sets"]
    said = debias(*words, "--volume", "data:/more", "-o", "one.yaml")
    assert (said.code, "each pod downloads" in said.out) == (0, True)
    said = debias(*words, "--env", "HF_HOME=/data/hf", "-o", "two.yaml")
    assert (said.code, "each pod downloads" in said.out) == (0, False)
    _, jobset = yaml.safe_load_all(Path("two.yaml").read_text(encoding="utf-8"))
    assert schema_errors(jobset) == []
    assert debias(*words, "--env", "X").error == "error: --env is 'X', expected NAME=VALUE such as HF_HOME=/data/hf"
    assert "--env X is given twice" in debias(*words, "--env", "X=1", "--env", "X=2").error
