"""A job's folder and script: what is written, what is refused, and that no value is ever read by a shell."""

import dataclasses
import json
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import tiny_runs
import yaml
from command_line import command_line

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.launching import slurm
from debias.launching.job import gpus_of, make_job

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch gone)",
    "`touch gone`",
    "a;touch gone",
    "-rf",
    "ä & ö",
    "100%",
    "a\\b",
    "{{ 7*7 }}",
]


def job_for(tmp_path, *, output="runs/one", folder="job", python="python", run=None, **changes):
    config = tiny_runs.config_for(Path("some/model"), tmp_path / output, **(run or {}))
    settings = {"name": "tiny", "folder": tmp_path / folder, "nodes": 2, "gpus_per_node": 0, **changes}
    return dataclasses.replace(make_job(config, **settings), python=python)


FAKES = {
    # Each says what it was given, an argument a line; a training "leaves" what the test has put into $LEAVES.
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
printf '%s\\n' "$@" >> "$SAID/arguments"
if [[ " $* " == *" doctor "* ]]; then exit "${DOCTOR:-0}"; fi
export SLURM_NODEID=1 SLURM_NNODES=2
if [ "$1" = bash ]; then
  words=("$@"); words[4]="$SAID/../bin/python"
  "${words[@]}"
fi
[ -n "${LEAVES:-}" ] && mkdir -p "$RUN" && printf '%s' "$LEAVES" > "$RUN/run.json"
exit "${ENDS:-0}"
""",
    "python": """#!/bin/bash
printf '%s\\n' "$@" >> "$SAID/ranks"
""",
    "scontrol": """#!/bin/bash
case "$*" in
  "show hostnames"*) printf 'n7\\nn8\\n';;
  "show node n7") echo "NodeName=n7 NodeAddr=10.0.0.7 Port=1";;
  "show job"*) echo "JobId=1 JobState=${STATE:-RUNNING} Reason=None";;
  *) printf '%s\\n' "$*" >> "$SAID/scontrol";;
esac
""",
}


@pytest.fixture
def run_script(tmp_path):
    """Run a job's script under bash with a stand-in for Slurm; its exit code, output and what was called."""

    def run(job, **environment):
        path = slurm.write(job, slurm.script(job, {}), overwrite=True)
        fakes, said = tmp_path / "bin", tmp_path / "said"
        fakes.mkdir(exist_ok=True)
        said.mkdir(exist_ok=True)
        for name, text in FAKES.items():
            (fakes / name).write_text(text)
            (fakes / name).chmod(0o755)
        known = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_ARRAY_TASK_ID": "", "SAID": str(said)}
        run_folder = f"{job.output_dir}/seed{environment['SLURM_ARRAY_TASK_ID']}" if job.seeds else job.output_dir
        values = {**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", **known, "RUN": run_folder, **environment}
        done = subprocess.run(
            ["bash", str(path)], cwd=tmp_path, env=values, capture_output=True, text=True, check=False
        )
        called = {file.name: file.read_text().splitlines() for file in said.iterdir()}
        return done, called

    return run


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_paths_reach_python_as_they_are(word, tmp_path, run_script):
    job = job_for(tmp_path, output=f"runs/{word}", folder=f"job {word}", python=f"/venv {word}/python")
    done, called = run_script(job)
    assert (done.returncode, done.stderr) == (0, "")
    assert called["ranks"][-3:] == ["debias.cli", "train", f"{job.folder}/config.yaml"]
    assert f"/venv {word}/python" in called["arguments"]
    assert load_config(job.folder / "config.yaml").output_dir == job.output_dir
    assert not list(tmp_path.rglob("gone"))


def test_ranks_meet_where_slurm_reaches_the_first_node(tmp_path, run_script):
    _, called = run_script(job_for(tmp_path, ranks_per_node=2))
    words = " ".join(called["ranks"])
    assert "--nnodes 2 --node-rank 1" in words
    assert "--nproc-per-node 2 --master-addr 10.0.0.7 --master-port 20012" in words
    assert load_config(tmp_path / "job" / "config.yaml").resume == "auto"


def test_a_port_that_is_taken_is_passed_over(tmp_path, run_script):
    with socket.create_server(("", 20077)):
        done, called = run_script(job_for(tmp_path), SLURM_JOB_ID="77")
    assert "--master-port 20078" in " ".join(called["ranks"])
    assert "(10.0.0.7:20078)" in done.stdout


@pytest.mark.parametrize(
    ("environment", "requeued"),
    [
        ({}, True),
        ({"ENDS": "143"}, True),
        ({"LEAVES": '{"status": "running"}'}, True),  # the grace ended first
        ({"ENDS": "143", "LEAVES": '{"status": "running"}'}, False),
        ({"STATE": "COMPLETING"}, False),  # cancelled: it must not come back
        ({"ENDS": "1", "LEAVES": '{"status": "failed"}'}, False),
        ({"ENDS": "0", "LEAVES": '{"status": "finished"}'}, False),
        ({"SLURM_RESTART_COUNT": "100"}, False),
    ],
)
def test_only_an_interrupted_run_goes_back_to_the_queue(environment, requeued, tmp_path, run_script):
    interrupted = {"ENDS": "75", "LEAVES": json.dumps({"status": "interrupted"})}
    done, called = run_script(job_for(tmp_path), **(interrupted | environment))
    assert called.get("scontrol", []) == (["requeue 12"] if requeued else [])
    assert requeued or done.returncode == int((interrupted | environment)["ENDS"])


def test_a_task_of_an_array_goes_back_alone(tmp_path, run_script):
    """The last one's own id is that of the array: all tasks would go back, those that run and those that are done."""
    task = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    _, called = run_script(
        job_for(tmp_path, seeds=(1, 3)), ENDS="75", LEAVES=json.dumps({"status": "interrupted"}), **task
    )
    assert called["scontrol"] == ["requeue 12_3"]
    done, _ = run_script(job_for(tmp_path, seeds=(1, 3)), ENDS="1", **task)
    assert "&& sbatch --array=3 job.sbatch (" in done.stderr


def test_what_an_earlier_attempt_left_says_nothing_about_this_one(tmp_path, run_script):
    """It failed before it wrote anything: without a model it would be put back a hundred times."""
    job = job_for(tmp_path)
    record = Path(job.output_dir) / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"status": "interrupted"}))
    done, called = run_script(job, ENDS="2", SLURM_RESTART_COUNT="1")
    assert (done.returncode, called.get("scontrol")) == (2, None)
    assert "training failed with exit code 2" in done.stderr


def test_a_failure_says_where_to_look(tmp_path, run_script):
    done, _ = run_script(job_for(tmp_path), ENDS="1")
    assert done.returncode == 1
    assert (
        f"training failed with exit code 1 on n[7-8]; each rank's own words are in {tmp_path}/job/logs/12.0"
        in done.stderr
    )


def test_nothing_is_trained_on_a_node_that_is_ill(tmp_path, run_script):
    done, called = run_script(job_for(tmp_path), DOCTOR="1")
    assert (done.returncode, "ranks" in called) == (1, False)
    assert "nothing was trained" in done.stderr
    assert "ranks" in run_script(job_for(tmp_path, doctor=False), DOCTOR="1")[1]


def test_an_array_has_a_config_for_each_seed(tmp_path, run_script):
    job = job_for(tmp_path, seeds=[3, 7])
    done, called = run_script(job, SLURM_ARRAY_TASK_ID="7", SLURM_ARRAY_JOB_ID="11")
    assert done.returncode == 0
    config = load_config(Path(called["ranks"][-1]))
    assert (config.seed, config.output_dir) == (7, f"{job.output_dir}/seed7")
    assert "#SBATCH --array=3,7\n" in (job.folder / "job.sbatch").read_text()


def test_seeds_above_the_highest_index_of_an_array(tmp_path, run_script):
    """Slurm refuses an index above MaxArraySize, as a rule 1001: such seeds are counted."""
    job = job_for(tmp_path, seeds=[3, 1000])
    assert "#SBATCH --array=3,1000\n" in slurm.script(job, {})
    job = job_for(tmp_path, folder="many", seeds=[3, 20261130, 7])
    done, called = run_script(job, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="11")
    assert (done.returncode, done.stderr) == (0, "")
    config = load_config(Path(called["ranks"][-1]))
    assert (config.seed, config.output_dir) == (20261130, f"{job.output_dir}/seed20261130")
    assert "#SBATCH --array=0-2\n" in (job.folder / "job.sbatch").read_text()


def test_the_directives(tmp_path):
    job = job_for(tmp_path, gpus_per_node=8, nodes=4, grace_seconds=600)
    text = slurm.script(job, {"partition": "gpu", "time": "1-00:00:00", "account": None, "name": "no directive"})
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--partition=gpu", "--time=1-00:00:00"):
        assert f"#SBATCH {line}" in head
    assert "#SBATCH --signal=TERM@600" in head
    assert "#SBATCH --requeue" in head
    assert not any("account" in line for line in head)
    assert "NCCL_DEBUG" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("value", ["gpu\n#SBATCH --uid=0", "a b", "$(id)", "'", '"', "\\", "#x", "", "-x", "a;b", "ö"])
def test_what_is_no_word_stays_out_of_a_directive(value, tmp_path):
    with pytest.raises(InputError, match=r"--partition is .*, expected one word") as caught:
        slurm.script(job_for(tmp_path), {"partition": value})
    assert "\n" not in str(caught.value)


def head_of(job, options=None, more=(), extras=slurm.NOTHING):
    """The directives of a job's script, which bash must be able to read."""
    text = slurm.script(job, options or {}, more, extras)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]


def test_what_administrators_ask_for(tmp_path):
    """Each option reaches Slurm as it was typed; what has a sign of the shell in it is quoted."""
    options = {"constraint": "a100&ib|h100*2", "exclude": "n[3-5],n9", "nodelist": "n[1-2]", "reservation": "maint"}
    options |= {"mail-type": "END,FAIL", "mail-user": "me@lab.org", "gres": "nvme:2", "exclusive": True, "qos": "high"}
    job = job_for(tmp_path, gpus_per_node=8, gpu_type="a100")
    head = head_of(job, options, ["licenses=fs:1", "nice", "--comment=x:y"])
    wanted = [
        'constraint="a100&ib|h100*2"',
        'exclude="n[3-5],n9"',
        'nodelist="n[1-2]"',
        "reservation=maint",
        "qos=high",
    ]
    wanted += ["mail-type=END,FAIL", "mail-user=me@lab.org", "gres=nvme:2", "exclusive", "licenses=fs:1", "nice"]
    assert set(wanted) | {"comment=x:y", "gpus-per-node=a100:8"} <= set(head)


@pytest.mark.parametrize(
    ("gpus", "options", "more", "cpus", "mem"),
    [
        (0, {}, (), None, None),
        (4, {}, (), "cpus-per-task=32", "mem=128G"),
        (4, {"cpus-per-task": 12, "mem": "1T"}, (), "cpus-per-task=12", "mem=1T"),
        (4, {"exclusive": True}, (), "cpus-per-task=32", "mem=0"),
        (4, {}, ("mem-per-cpu=4G", "cpus-per-gpu=6"), "cpus-per-gpu=6", "mem-per-cpu=4G"),
    ],
)
def test_cores_and_memory_follow_the_gpus(gpus, options, more, cpus, mem, tmp_path):
    head = head_of(job_for(tmp_path, gpus_per_node=gpus), options, more)
    for start, wanted in (("cpus-per", cpus), ("mem", mem)):
        assert [line for line in head if line.startswith(start)] == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({}, ["nodes=4"], "--sbatch nodes=4: the script sets --nodes itself; give --nodes"),
        ({}, ["requeue"], "a job of debias needs it as it is"),
        ({}, ["partition=x"], "--partition is an option of its own here"),
        ({}, ["hint=a", "hint=b"], "--hint is given already"),
        ({}, ["Bad Key=1"], "expected KEY=VALUE"),
        ({}, ["comment=a b"], "--sbatch comment is 'a b', expected one word"),
        ({}, ['wckey="x'], "--sbatch wckey is"),
        ({"gres": "gpu:8"}, [], "say --gpus-per-node"),
    ],
)
def test_directives_that_cannot_be(options, more, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        slurm.script(job_for(tmp_path), options, more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "found"), [("8", (None, 8)), ("a100:4", ("a100", 4)), ("0", (None, 0))])
def test_gpus_with_their_type(text, found):
    assert gpus_of(text) == found


@pytest.mark.parametrize("text", ["a100", "a100:", ":4", "-1", "4:a100", "8 8", "1.5", "h100:1:2"])
def test_what_is_no_number_of_gpus(text):
    with pytest.raises(InputError, match="--gpus-per-node is"):
        gpus_of(text)


def srun_of(text):
    """What pyxis is told, an argument a flag: the line of the script as bash splits it."""
    line = next(line for line in text.splitlines() if line.strip().startswith("srun "))
    return [word for word in shlex.split(line.replace('"$@" &', "")) if word.startswith("--container")]


def test_a_container_sees_what_the_run_needs(tmp_path):
    """pyxis' syntax: SRC:DST[:FLAGS], joined by commas; python is the container's own."""
    data, model = tmp_path / "sets" / "train.jsonl", tmp_path / "models" / "base"
    model.mkdir(parents=True)
    data.parent.mkdir()
    data.write_text("")
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "own.json").write_text('{"zero_optimization": {"stage": 2}}')
    run = {"deepspeed": str(tmp_path / "ds" / "own.json"), "data": {"train": str(data), "labels": ["a", "b"]}}
    config = RunConfig.model_validate(tiny_runs.config_for(model, tmp_path / "runs" / "one").model_dump() | run)
    job = make_job(config, name="x", folder=tmp_path / "job", nodes=1, gpus_per_node=0, python="python3")
    extras = slurm.Extras("nvcr.io#nvidia/pytorch:25.09-py3", ["/scratch:/fast:ro", "/opt"], env={"HF_HOME": "/c/hf"})
    text = slurm.script(job, {}, extras=extras)
    image, mounts, folder, names = srun_of(text)
    assert image == "--container-image=nvcr.io#nvidia/pytorch:25.09-py3"
    own = [tmp_path / "job", tmp_path / "runs", "/c/hf", model, data.parent, tmp_path / "ds"]
    told = mounts.removeprefix("--container-mounts=").split(",")
    assert sorted(told) == sorted([f"{path}:{path}" for path in own] + ["/scratch:/fast:ro", "/opt:/opt"])
    assert (folder, names) == (f"--container-workdir={tmp_path / 'job'}", "--container-env=HF_HOME")
    for line in ("python=python3\n", f"mkdir -p {tmp_path / 'runs'} ", "export HF_HOME=/c/hf\n"):
        assert line in text


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        (slurm.Extras("a b"), "--container is 'a b'"),
        (slurm.Extras(""), "--container is ''"),
        (slurm.Extras(mounts=["/a:/b"]), "there is no --container"),
        *((slurm.Extras("x", [m]), "--container-mount is") for m in ("a:b", "/a:b", "/a:/b:ro:x", "/a,/b", ":", "")),
        (slurm.Extras(interface="ib 0"), "--interface is 'ib 0'"),
    ],
)
def test_what_no_container_takes(extras, message, tmp_path):
    with pytest.raises(InputError, match=message):
        slurm.script(job_for(tmp_path), {}, extras=extras)


@pytest.mark.parametrize("image", ["a.sqsh", "docker://x/y:1"])
def test_an_image_that_is_a_file_has_its_whole_path(image, tmp_path, monkeypatch):
    """pyxis takes a bare name for one of a registry."""
    monkeypatch.chdir(tmp_path)
    found = srun_of(slurm.script(job_for(tmp_path), {}, extras=slurm.Extras(image)))[0]
    assert found == f"--container-image={tmp_path / image if image.endswith('.sqsh') else image}"


def test_a_folder_that_pyxis_cannot_name(tmp_path):
    with pytest.raises(InputError, match="which no mount of pyxis can name"):
        slurm.script(job_for(tmp_path, folder="a,b"), {}, extras=slurm.Extras("x"))


def test_lines_and_variables_come_before_the_ranks(tmp_path):
    """Modules are loaded before `set -u`, which their functions do not bear; values are quoted."""
    (tmp_path / "modules.sh").write_text('#!/bin/bash\nexport FROM_MODULE="$NOT_SET"yes\n')
    usual = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "20000", "PYTHONUNBUFFERED": "0", "OMP_NUM_THREADS": "3"}
    env = slurm.sent_along({"DEBIAS_DATA": "sets", "ODD": "a b'$(touch gone)", **usual})
    extras = slurm.Extras(prologue=slurm.read_prologue(tmp_path / "modules.sh"), env=env, interface="ib0,ib1")
    text = slurm.script(job_for(tmp_path, gpus_per_node=2), {}, extras=extras)
    shown = text[: text.index("# All ranks meet")] + "\nenv -0\n"
    given = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "6", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash"], input=shown, capture_output=True, text=True, check=True, env=given)
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert (found["FROM_MODULE"], found["ODD"]) == ("yes", "a b'$(touch gone)")
    assert found["DEBIAS_DATA"] == os.path.abspath("sets")
    assert (found["GLOO_SOCKET_IFNAME"], found["SRUN_CPUS_PER_TASK"]) == ("ib0,ib1", "6")
    assert {name: found[name] for name in usual} == usual, "what is asked for is not what is usual"
    assert found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


def test_this_shells_data_goes_along(monkeypatch):
    for name in slurm.SENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEBIAS_DATA", "/sets")
    monkeypatch.setenv("DEBIAS_TRUST_REMOTE_CODE", "org/model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert slurm.sent_along({"A": "1"}) == {"DEBIAS_DATA": "/sets", "DEBIAS_TRUST_REMOTE_CODE": "org/model", "A": "1"}
    assert slurm.sent_along({"DEBIAS_DATA": "/other"})["DEBIAS_DATA"] == "/other"
    assert slurm.sent_along({}, contained=True)["HF_HOME"] == os.path.expanduser("~/.cache/huggingface")
    assert slurm.sent_along({"HF_HOME": "/c"}, contained=True)["HF_HOME"] == "/c"
    with pytest.raises(InputError, match="--env is 'a b'"):
        slurm.sent_along({"a b": "1"})
    with pytest.raises(InputError, match="--env TORCH_ELASTIC_SHUTDOWN_TIMEOUT: --grace sets it; remove it"):
        slurm.sent_along({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "9"})


@pytest.mark.parametrize(("text", "message"), [(b"#SBATCH --mem=1\n", "line 1.*comes too late"), (b"\xff", "be read")])
def test_a_prologue_that_cannot_be(text, message, tmp_path):
    (tmp_path / "p").write_bytes(text)
    with pytest.raises(InputError, match=message):
        slurm.read_prologue(tmp_path / "p")
    with pytest.raises(InputError, match="expected a file of shell lines"):
        slurm.read_prologue(tmp_path)


@pytest.mark.parametrize(("folder", "log"), [("a b%j", '"{}/a b%%j/slurm-%j.out"'), ('a"b', "slurm-%j.out")])
def test_the_log_lies_in_the_jobs_folder(folder, log, tmp_path):
    assert f"output={log.format(tmp_path)}" in head_of(job_for(tmp_path, folder=folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "--name is 'a b'"),
        ({"name": "x\n#SBATCH --uid=0"}, "--name is"),
        ({"gpus_per_node": 4, "ranks_per_node": 2}, "--ranks-per-node is 2 with 4 GPUs a node"),
        (
            {"global_batch": 12},
            "--global-batch is 12, no multiple of 2 ranks x per_device_train_batch_size 8; "
            "per_device_train_batch_size=6 fits",
        ),
        ({"nodes": 3, "global_batch": 8}, "3 ranks do not divide 8"),
        ({"folder": Path("a\nb")}, "line break"),
        ({"run": {"overwrite_output_dir": True}}, "overwrite_output_dir is true, but a job goes on from its last"),
        (
            {"run": {"sigterm_grace_seconds": 60}, "grace_seconds": 300},
            "sigterm_grace_seconds is 60, but --grace is 300; leave --grace out, or add sigterm_grace_seconds=300",
        ),
        ({"run": {"sigterm_grace_seconds": 5}}, "sigterm_grace_seconds is 5; a job takes whole seconds, at least 30"),
        ({"run": {"sigterm_grace_seconds": 45.5}}, "sigterm_grace_seconds is 45.5"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        job_for(tmp_path, **changes)


@pytest.mark.parametrize(
    ("run", "asked", "grace"),
    [({}, None, 300), ({}, 60, 60), ({"sigterm_grace_seconds": 90}, None, 90), ({"sigterm_grace_seconds": 90}, 90, 90)],
)
def test_the_run_and_its_job_have_one_grace(run, asked, grace, tmp_path):
    job = job_for(tmp_path, run=run, grace_seconds=asked)
    assert job.grace_seconds == job.configs()["config.yaml"].sigterm_grace_seconds == grace
    assert f"--signal=TERM@{grace}\n" in slurm.script(job, {})


@pytest.mark.parametrize(
    ("run", "written", "said"),
    [
        ({}, "auto", False),
        ({"resume": False}, "auto", True),
        ({"resume": "auto"}, "auto", False),
        ({"resume": True}, True, False),
    ],
)
def test_how_a_job_resumes_is_what_was_set_or_said(run, written, said, tmp_path, caplog):
    assert job_for(tmp_path, run=run).configs()["config.yaml"].resume == written
    assert ("resume is false; it becomes auto" in caplog.text) is said


@pytest.mark.parametrize(
    ("limit", "enough"),
    [
        ("5", False),
        ("6:00", False),
        ("6:01", True),
        ("0:06:00", False),
        ("0-00:06", False),
        ("1:00:00", True),
        ("0-01", True),
        ("1-00:00:00", True),
        ("UNLIMITED", True),
        ("0", True),
    ],
)
def test_a_time_limit_within_the_grace_is_refused(limit, enough, tmp_path):
    if enough:
        assert f"#SBATCH --time={limit}\n" in slurm.script(job_for(tmp_path), {"time": limit})
        return
    with pytest.raises(InputError, match=f"--time is {limit} .* --grace 300 s .* expected more than 6 minutes"):
        slurm.script(job_for(tmp_path), {"time": limit})


@pytest.mark.parametrize("limit", ["lots", "1h", "1-", "1:2:3:4"])
def test_what_is_no_time_limit(limit, tmp_path):
    with pytest.raises(InputError, match=f"--time is '{limit}', expected minutes, MM:SS"):
        slurm.script(job_for(tmp_path), {"time": limit})


def test_options_reach_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--gpus-per-node", "a100:4", "--constraint", "a&b", "--mail-type", "END", "--sbatch", "licenses=fs:1"]
    words += ["--container", "x.sqsh", "--container-mount", "/opt", "--env", "A=b c", "--interface", "ib0"]
    said = command_line(monkeypatch, capsys)("launch", "slurm", "minilm_generated_edge", *words)
    assert said.code == 0
    text = (tmp_path / "jobs" / "minilm_generated_edge" / "job.sbatch").read_text()
    for line in ("#SBATCH --gpus-per-node=a100:4", '#SBATCH --constraint="a&b"', "#SBATCH --licenses=fs:1"):
        assert f"{line}\n" in text
    for part in ("export A='b c'\n", "NCCL_SOCKET_IFNAME=ib0", ",/opt:/opt", "python=python\n"):
        assert part in text


@pytest.mark.parametrize("seeds", ["", "x", "0", "3,3"])
def test_errors_of_an_array_name_its_option(seeds, monkeypatch, capsys):
    said = command_line(monkeypatch, capsys)("launch", "slurm", "minilm_generated_erm", "--array-seeds", seeds)
    assert said.error.startswith("error: --array-seeds ")


def test_the_global_batch_is_kept_at_any_number_of_ranks(tmp_path):
    for nodes in (1, 2, 4):
        job = job_for(tmp_path, nodes=nodes, global_batch=64)
        assert job.global_batch == 64
        assert job.config.gradient_accumulation_steps == 64 // (8 * nodes)


def test_a_deepspeed_file_with_another_batch_is_refused(tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 24, "zero_optimization": {"stage": 2}}))
    config = tiny_runs.config_for(Path("m"), tmp_path / "r", deepspeed=str(tmp_path / "ds.json"))
    with pytest.raises(InputError, match="train_batch_size"):
        make_job(config, name="x", folder=tmp_path / "job", nodes=2, gpus_per_node=0)


def test_an_existing_job_is_not_written_over(tmp_path):
    job = job_for(tmp_path)
    path = slurm.write(job, slurm.script(job, {}))
    (job.folder / "logs").mkdir()
    with pytest.raises(InputError, match="exists already"):
        slurm.write(job, "other")
    slurm.write(job, "other", overwrite=True)
    assert path.read_text() == "other"
    assert (job.folder / "logs").is_dir()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["job"]


@pytest.mark.parametrize("folder", ["file/job", "x" * 300])
def test_a_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        slurm.write(job_for(tmp_path, folder=folder), "x")


def test_without_sbatch_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not on PATH, so nothing was submitted"):
        slurm.submit(tmp_path / "job.sbatch")


def test_the_reason_of_slurm_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\necho 'two' >&2\nexit 1\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="nothing was submitted: sbatch: error: invalid partition specified: x two"):
        slurm.submit(tmp_path / "job.sbatch")


def test_configs_are_plain_yaml(tmp_path):
    job = job_for(tmp_path, output="a: b #c")
    slurm.write(job, "x")
    assert yaml.safe_load((job.folder / "config.yaml").read_text())["output_dir"] == job.output_dir


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "fits"), [(24 * 10**9, True), (10**6, False)])
def test_what_the_plan_says_does_not_fit_is_not_written(memory, fits, tmp_path):
    from debias.launching.job import check_memory

    config = tiny_runs.config_for(tiny_runs.save_bert(tmp_path / "bert"), tmp_path / "run")
    job = make_job(config, name="x", folder=tmp_path / "job", nodes=2, gpus_per_node=1)
    if fits:
        check_memory(job, memory)
    else:
        with pytest.raises(
            InputError, match="nothing was written: per_device_train_batch_size 8 DOES NOT FIT"
        ) as caught:
            check_memory(job, memory)
        assert "\n" not in str(caught.value)
