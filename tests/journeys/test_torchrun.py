"""Processes that torchrun and SLURM start, as on two machines, train what one process does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
import yaml
from safetensors.torch import load_file

from labelled_files import refused
from recyclelora.recipe import read_recipe
from recyclelora.runs.processes import Launch, launch_by_others
from recyclelora.stopping import is_first_process
from recyclelora.training.train import train


@pytest.fixture
def exact(recipe):
    """The recipe in float64, with four images a step and a validation."""
    values = yaml.safe_load(recipe.read_text())
    values |= {"batch_size": 4, "precision": "64-true", "validation": {"every": 3, "images": 2, "share": 0.5}}
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def agent(port, *arguments, log=None):
    """An agent of torchrun, as on one of two machines that find each other at a port of this one."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    words += ["--max-restarts=3", "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3"] if log else []
    words += ["-m", "recyclelora", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("a") if log else nullcontext(subprocess.PIPE) as out:
        return subprocess.Popen(words, env=environment, text=True, stdout=out, stderr=subprocess.STDOUT)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def weights(run):
    return load_file(run / "head.safetensors") | load_file(run / "adapter" / "adapter_model.safetensors")


def assert_trained_alike(run, other):
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-9, rtol=0)
    for file, keys in (("metrics.jsonl", ("step",)), ("validation.jsonl", ("step", "miou", "sources"))):
        lines = [[json.loads(line) for line in (each / file).read_text().splitlines()] for each in (run, other)]
        assert [[line[key] for key in keys] for line in lines[0]] == [[line[key] for key in keys] for line in lines[1]]


@pytest.mark.slow
def test_two_machines_train_what_one_process_does(exact, tmp_path):
    train(read_recipe(exact), tmp_path / "one")
    arguments = ["train", "--recipe", exact, "--out", tmp_path / "two", "--resume"]
    port = free_port()
    with agent(port, *arguments) as first, agent(port, *arguments) as second:
        out = [process.communicate(timeout=240)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), out
    assert sum(text.count("6 steps done") for text in out) == 1
    assert sum(text.count("training recyclelora on") for text in out) == 1
    assert_trained_alike(tmp_path / "one", tmp_path / "two")
    assert yaml.safe_load((tmp_path / "two" / "recipe.yaml").read_text())["devices"] == 2
    # A finished run is returned, and goes on with another number of processes: here, nothing is left to do.
    assert train(read_recipe(exact), tmp_path / "two", resume=True).finished


@pytest.mark.slow
def test_two_machines_evaluate_and_predict_what_one_process_does(exact, town, tmp_path, command):
    train(read_recipe(exact), tmp_path / "run")
    for verb, arguments, out in (
        ("evaluate", ["--target", f"town:folder={town}", "--limit", "3"], "scores.json"),
        ("predict", [town / "images"], "pictures"),
    ):
        words = [verb, tmp_path / "run", *arguments, "--out"]
        assert command(*words, tmp_path / "one" / out)[0] == 0
        port = free_port()
        with (
            agent(port, *words, tmp_path / "two" / out) as first,
            agent(port, *words, tmp_path / "two" / out) as second,
        ):
            said = [process.communicate(timeout=240)[0] for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), said
        assert sum(text.count("written: ") for text in said) == 1
    one, two = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.suffix in (".json", ".png")}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 9
    assert one == two


def wait_for_steps(run, steps, *processes, seconds=120):
    """Wait until a training has done so many steps; fails when a process ends before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= steps:
            return
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    raise AssertionError(f"not {steps} steps after {seconds} s")


@pytest.mark.slow
def test_a_machine_that_is_lost_comes_back_and_the_training_goes_on(exact, tmp_path):
    longer = {"steps": "150", "checkpoint_every": "5", "validation.every": "60"}
    train(read_recipe(exact, longer), tmp_path / "one")
    settings = [word for key, value in longer.items() for word in ("--set", f"{key}={value}")]
    arguments = ["train", "--recipe", exact, "--out", tmp_path / "two", "--resume", *settings]
    port = free_port()
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    with agent(port, *arguments, log=logs[0]) as first:
        while not listens(port) and first.poll() is None:  # the first one keeps what the agents have to know
            time.sleep(0.1)
        with agent(port, *arguments, log=logs[1]) as second:
            wait_for_steps(tmp_path / "two", 20, first, second)
            second.kill()
        lost_at = (tmp_path / "two" / "metrics.jsonl").read_text().count("\n")
        assert lost_at < 140
        with agent(port, *arguments, log=logs[2]) as third:
            assert (first.wait(240), third.wait(60)) == (0, 0), [log.read_text()[-3000:] for log in logs]
    assert logs[0].read_text().count("from step") == 1
    assert_trained_alike(tmp_path / "one", tmp_path / "two")


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "said"), [("sources=[folder=nowhere]", "no such folder"), ("crop=33", "crop 33")])
@pytest.mark.parametrize("starter", ["the training", "torchrun"])
def test_what_all_processes_find_wrong_is_said_once(starter, setting, said, exact, tmp_path):
    words = ["-m", "recyclelora", "train", "--recipe", exact, "--out", tmp_path / "run", "--set", setting]
    if starter == "torchrun":
        words = ["-m", "torch.distributed.run", "--nproc-per-node=2", *words]
    else:
        words += ["--set", "devices=2"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(["devices=2", "strategy=fsdp"], []), ([], ["devices=4"])])
def test_a_training_goes_on_with_another_number_of_processes(before, after, exact, tmp_path):
    settings = ["steps=60", "validation.every=50", "checkpoint_every=50"]
    train(read_recipe(exact, dict(setting.split("=") for setting in settings)), tmp_path / "one")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def process(own):
        words = [sys.executable, "-m", "recyclelora", "train", "--recipe", exact, "--out", tmp_path / "two", "--resume"]
        words += [word for setting in settings + own for word in ("--set", setting)]
        return subprocess.Popen(list(map(str, words)), env=environment, text=True, stderr=subprocess.PIPE)

    with process(before) as begun:
        wait_for_steps(tmp_path / "two", 10, begun)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(60) == 130
    done = (tmp_path / "two" / "metrics.jsonl").read_text().count("\n")
    assert 10 <= done < 55
    with process(after) as other:
        text = other.communicate(timeout=240)[1]
    assert other.returncode == 0, text
    assert f"from step {done} on" in text
    assert_trained_alike(tmp_path / "one", tmp_path / "two")


SRUN = """#!/bin/bash
# As srun for a step of two tasks on one node.
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_NODELIST=127.0.0.1
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" > "$LOGS/$rank" 2>&1 &
done
wait -n && wait -n
"""


@pytest.mark.slow
def test_the_job_for_slurm_trains_what_one_process_does(exact, tmp_path, request):
    train(read_recipe(exact), tmp_path / "one")
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    (srun.parent / "recyclelora").write_text(f'#!/bin/bash\nexec {sys.executable} -m recyclelora "$@"\n')
    (srun.parent / "recyclelora").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "LOGS": str(tmp_path),
        "MASTER_PORT": str(free_port()),
    }
    job = request.config.rootpath / "docs" / "train.sbatch"
    words = ["bash", job, "--recipe", exact, "--out", tmp_path / "two"]
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=240)
    out = [(tmp_path / rank).read_text() for rank in "01"]
    assert done.returncode == 0, (done, out)
    assert "6 steps done" in out[0]
    assert "6 steps done" not in out[1]
    assert_trained_alike(tmp_path / "one", tmp_path / "two")


def test_another_number_of_devices_than_of_processes_is_refused(exact, tmp_path, monkeypatch):
    monkeypatch.setattr("recyclelora.runs.processes.launch_by_others", lambda: Launch(2, 2))
    refused(
        lambda: train(read_recipe(exact, {"devices": "4"}), tmp_path / "run"),
        "devices 4, but 2 processes were started", "leave `devices` out",
    )  # fmt: skip
    refused(lambda: train(read_recipe(exact, {"batch_size": "3"}), tmp_path / "run"), "batch_size 3", "2 devices")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"LOCAL_RANK": "1"}, False), ({"SLURM_PROCID": "0"}, True), ({"SLURM_PROCID": "3"}, False),
     ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False), ({"RANK": "2"}, True),
     ({"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "0"}, False)],
)  # fmt: skip
def test_one_process_of_all_machines_is_the_first(variables, first, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_tasks_that_are_spread_unevenly_are_refused(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in (("SLURM_STEP_NUM_TASKS", "3"), ("SLURM_STEP_NUM_NODES", "2")):
        monkeypatch.setenv(name, value)
    refused(launch_by_others, "3 tasks on 2 nodes", "--ntasks-per-node")
