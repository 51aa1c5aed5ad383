"""Agents of torchrun, as on two machines, train what one process does, also if one of them is lost and comes back."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from another_process import steps_of, wait_for
from safetensors.torch import load_file

from recyclelora.recipe import read_recipe
from recyclelora.training.train import train

SCRIPT = """
import os, time
from recyclelora.training.module import SegmentationModule
forward = SegmentationModule.forward
def slow(self, batch, *rest):
    time.sleep(float(os.environ.get("SECONDS", 0)))
    return forward(self, batch, *rest)
SegmentationModule.forward = slow
from recyclelora.__main__ import main
main()
"""
QUICK = "keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=1,join_timeout=120"


@pytest.fixture
def exact(recipe):
    """The recipe in float64, with four images a step and a validation."""
    values = yaml.safe_load(recipe.read_text())
    values |= {"batch_size": 4, "precision": "64-true", "validation": {"every": 3, "images": 2, "share": 0.5}}
    recipe.write_text(yaml.safe_dump(values))
    return recipe


@pytest.fixture
def agent(tmp_path):
    """Start an agent of torchrun, as on one of two machines that find each other at a port of this one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []

    def start(hosts, *arguments, machines=2, processes=1, seconds=0.0):
        words = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={machines}", f"--nproc-per-node={processes}"]
        words += ["--rdzv-id=test", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--max-restarts=3"]
        words += [f"--rdzv-conf={QUICK},is_host={int(hosts)}", str(script), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SECONDS": str(seconds)}
        agents.append(subprocess.Popen(words, env=environment, start_new_session=True, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
        return agents[-1]

    yield start
    for process in agents:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


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


def test_two_machines_train_what_one_process_does(exact, agent, tmp_path):
    train(read_recipe(exact), tmp_path / "one")
    arguments = ["train", "--recipe", exact, "--out", tmp_path / "two", "--resume"]
    first, second = agent(True, *arguments), agent(False, *arguments)
    out = [process.communicate(timeout=240)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), out
    assert sum(text.count("6 steps done") for text in out) == 1
    assert sum(text.count("training recyclelora on") for text in out) == 1
    assert_trained_alike(tmp_path / "one", tmp_path / "two")
    assert yaml.safe_load((tmp_path / "two" / "recipe.yaml").read_text())["devices"] == 2
    # A finished run is returned, and goes on with another number of processes: here, nothing is left to do.
    assert train(read_recipe(exact), tmp_path / "two", resume=True).finished


SRUN = """#!/bin/bash
# As srun for a step of two tasks on one node.
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_NODELIST=127.0.0.1
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" > "$LOGS/$rank" 2>&1 &
done
wait -n && wait -n
"""


def test_the_job_for_slurm_trains_what_one_process_does(exact, tmp_path, request):
    train(read_recipe(exact), tmp_path / "one")
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    (srun.parent / "recyclelora").write_text(f'#!/bin/bash\nexec {sys.executable} -m recyclelora "$@"\n')
    (srun.parent / "recyclelora").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "LOGS": str(tmp_path),
        "MASTER_PORT": port,
    }
    job = request.config.rootpath / "docs" / "train.sbatch"
    words = ["bash", job, "--recipe", exact, "--out", tmp_path / "two"]
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=240)
    out = [(tmp_path / rank).read_text() for rank in "01"]
    assert done.returncode == 0, (done, out)
    assert "6 steps done" in out[0]
    assert "6 steps done" not in out[1]
    assert_trained_alike(tmp_path / "one", tmp_path / "two")


def test_a_machine_that_is_lost_and_comes_back_goes_on(exact, agent, tmp_path):
    train(read_recipe(exact), tmp_path / "one")
    run = tmp_path / "two"
    arguments = ["train", "--recipe", exact, "--out", run, "--resume"]
    first, second = agent(True, *arguments, seconds=0.5), agent(False, *arguments, seconds=0.5)
    wait_for(lambda: steps_of(run) >= 3, first)
    os.killpg(second.pid, signal.SIGKILL)
    again = agent(False, *arguments)
    out = [process.communicate(timeout=240)[0] for process in (first, again)]
    assert (first.returncode, again.returncode) == (0, 0), out
    assert_trained_alike(tmp_path / "one", run)
