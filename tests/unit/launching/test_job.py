"""A job's folder and script: what is written, what is refused, and that no value is ever read by a shell."""

import dataclasses
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import tiny_runs
import yaml
from command_line import command_line

from debias.config.reading import load_config
from debias.errors import InputError
from debias.launching import slurm
from debias.launching.job import make_job

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


def test_the_directives(tmp_path):
    job = job_for(tmp_path, gpus_per_node=8, nodes=4, grace_seconds=600)
    text = slurm.script(job, {"partition": "gpu", "time": "1-00:00:00", "account": None}, container="docker://a/b:1 x")
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--partition=gpu", "--time=1-00:00:00"):
        assert f"#SBATCH {line}" in head
    assert "#SBATCH --signal=TERM@600" in head
    assert "#SBATCH --requeue" in head
    assert not any("account" in line for line in head)
    assert "--container-image='docker://a/b:1 x'" in text
    assert "NCCL_DEBUG" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("value", ["gpu\n#SBATCH --uid=0", "a b", "$(id)", "'", "", "-x", "a;b", "ö"])
def test_what_is_no_word_stays_out_of_a_directive(value, tmp_path):
    with pytest.raises(InputError, match=r"--partition is .*, expected one word") as caught:
        slurm.script(job_for(tmp_path), {"partition": value})
    assert "\n" not in str(caught.value)


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
