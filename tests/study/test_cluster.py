"""A comparison on a cluster of Ray: how its machines are shared out, what is refused, and what a lost machine costs."""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import pytest
from cells import cell

from labelled_files import refused
from miniatures import write_folder
from recyclelora.pages.progress import LOGGER
from recyclelora.study import cluster, grid
from recyclelora.study.cluster import Share, share_of_training
from recyclelora.study.grid import run_grid


@pytest.mark.parametrize(
    ("machines", "jobs", "share", "at_once"),
    [
        ([(8, 0), (8, 0)], None, (8, 0), 2),
        ([(8, 0), (8, 0)], 4, (4, 0), 4),
        ([(8, 0), (8, 0)], 3, (4, 0), 4),  # with five each there would be two
        ([(8, 0), (4, 0)], None, (4, 0), 3),
        ([(2, 0)], 5, (1, 0), 2),
        ([(16, 4), (8, 1)], None, (4, 1), 5),
        ([(16, 4), (8, 1)], 2, (4, 1), 5),
        ([(32, 0), (2, 4)], None, (1, 1), 2),
    ],
)
def test_a_training_has_a_gpu_or_the_cpus_with_which_as_many_fit_as_are_wanted(machines, jobs, share, at_once):
    machines = [Share(*machine) for machine in machines]
    found = share_of_training(machines, jobs)
    assert (found.cpus, found.gpus) == share
    assert found.fits(machines) == at_once


def test_without_ray_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    town = write_folder(tmp_path / "town")
    refused(
        lambda: run_grid([cell(town)], tmp_path / "out", cluster="local"),
        "--cluster needs the package ray",
        'pip install "recyclelora[cluster]"',
    )


@pytest.mark.parametrize("address", ["near", "ray://127.0.0.1:10001", "127.0.0.1:99999", ":6379", "host:", "127.0.0.1"])
def test_an_address_of_another_form_is_refused(address):
    refused(lambda: cluster._check_answer(address), f"--cluster {address}: expected local, auto, or HOST:PORT")


def test_an_address_where_nothing_answers_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    begun = time.monotonic()
    refused(lambda: cluster._check_answer(address), f"--cluster {address}: no cluster there", "`ray start --head`")
    assert time.monotonic() - begun < cluster.CONNECTION + 1


def test_a_cluster_is_not_asked_to_train_in_this_process(tmp_path):
    town = write_folder(tmp_path / "town")
    refused(
        lambda: run_grid([cell(town)], tmp_path / "out", jobs=0, cluster="auto"), "--jobs 0", "--cluster auto", "one of"
    )


class Nodes:
    """What is asked of Ray, of machines with these CPUs and GPUs."""

    def __init__(self, *machines):
        self.machines = list(machines)

    def nodes(self):
        return [
            {"NodeID": str(i), "Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)} if cpus else {}}
            for i, (cpus, gpus, alive) in enumerate(self.machines)
        ]

    def remote(self, **options):
        return lambda function: (function, options)


def test_a_task_asks_for_its_share_and_machines_may_come_and_go(caplog):
    ray = Nodes((16, 4, True), (8, 2, True), (64, 0, True), (0, 0, True), (8, 8, False))
    ours = cluster._Cluster(ray, "auto", None, None)
    options = {"num_cpus": 4, "num_gpus": 1, "max_retries": cluster.RETRIES, "max_calls": 1}
    assert ours._task == (cluster.work, options)
    assert (ours.threads, ours.room) == (4, 6)
    assert cluster._Cluster(ray, "auto", 2, None).room == 2
    ray.machines.append((8, 2, True))
    assert ours.room == 8
    with caplog.at_level(logging.INFO, LOGGER):
        ray.machines[0] = (16, 4, False)
        assert ours.room == 4
        assert ours.room == 4
        ray.machines[1] = ray.machines[-1] = (8, 2, False)
        assert ours.room == 1  # for a machine that is yet to come
    assert [record.message.rpartition("there ")[2] for record in caplog.records] == [
        "goes on elsewhere from its checkpoint",
        "waits for a machine that is large enough",
    ]
    refused(lambda: cluster._Cluster(Nodes((0, 0, True)), "auto", None, None), "no machine there has a CPU")


# With Ray

LONG = {"steps": 1500, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray")


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


@pytest.fixture
def joined(ray, monkeypatch):
    """A cluster that this process has joined before, whose processes can import the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=cluster.OBJECTS, log_to_driver=False)
    yield
    assert ray.is_initialized()
    ray.shutdown()


@pytest.fixture
def machines(ray):
    """Two machines with a CPU each, on this one; the second can be removed."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": cluster.OBJECTS}
    there = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = there.add_node(**small)
    yield there, second
    ray.shutdown()
    there.shutdown()


def made(out, cells):
    """What a training leaves, without times: the weights, the losses, the scores."""
    found = []
    for each in cells:
        run, result = out / "runs" / each.name, grid.read_cell(each, out / "cells")
        weights = {file.name: file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}
        losses = [(line["step"], line["loss"]) for line in grid.read_metrics(run / "metrics.jsonl")]
        found.append((weights, losses, result.targets, result.settings, result.data, result.threads, result.error))
    return found


@pytest.mark.slow
def test_what_a_cluster_makes_is_what_the_processes_of_this_machine_make(ray, town, tmp_path, capfd):
    cells = [cell(town), cell(town, "full", optim={"lr": 1e30})]
    run_grid(cells, tmp_path / "jobs", jobs=2)
    capfd.readouterr()
    handler = signal.getsignal(signal.SIGTERM)
    run_grid(cells, tmp_path / "cluster", jobs=2, cluster="local")
    assert made(tmp_path / "jobs", cells) == made(tmp_path / "cluster", cells)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not ray.is_initialized()
    assert capfd.readouterr().out == ""
    assert {file.name for file in (tmp_path / "cluster").iterdir()} == {".lock", "cells", "runs"}


@pytest.mark.slow
def test_a_machine_lost_in_a_training_changes_no_result_and_little_is_repeated(
    machines, town, tmp_path, monkeypatch, caplog, capfd
):
    there, second = machines
    cells = [cell(town, "frozen", seed, **LONG) for seed in (0, 1)]
    files = [tmp_path / "cluster" / "runs" / each.name / "metrics.jsonl" for each in cells]
    lost = {}

    def lines():
        return [file.read_text().splitlines() if file.is_file() else [] for file in files]

    def lose():
        while min(map(len, lines())) < 150:
            time.sleep(0.05)
        there.remove_node(second, allow_graceful=False)
        time.sleep(2)
        before, new = lines(), [0, 0]
        while max(new) < 20:  # of the one that goes on; the other has stopped until Ray notices, after about 20 s
            time.sleep(0.2)
            new = [len(now) - len(old) for now, old in zip(lines(), before, strict=True)]
        lost.update({number: before[number] for number in (0, 1) if not new[number]})

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    with caplog.at_level(logging.INFO, LOGGER):
        run_grid(cells, tmp_path / "cluster", cluster=there.address)
    thread.join(timeout=5)
    assert "a machine of the cluster was lost" in caplog.text
    ((number, before),) = lost.items()
    after = lines()[number]
    assert [json.loads(line)["step"] for line in after] == [*range(1, 1501)]
    same = [old == new for old, new in zip(before, after, strict=False)]  # lines hold the time of their step
    checkpoint = len(before) // 100 * 100
    assert checkpoint >= 100
    assert same == [True] * checkpoint + [False] * (len(before) - checkpoint)
    assert capfd.readouterr().out == ""
    run_grid(cells, tmp_path / "jobs", jobs=2)
    assert made(tmp_path / "jobs", cells) == made(tmp_path / "cluster", cells)
    monkeypatch.setattr(grid, "on_cluster", None)  # would fail
    assert len(run_grid(cells, tmp_path / "cluster", cluster=there.address)) == 2


def die(*_):
    os._exit(9)


@pytest.mark.slow
def test_errors_in_a_training_and_processes_that_always_die_are_reported(joined, town, tmp_path, monkeypatch):
    cells = [cell(town, crop=33), cell(town, "frozen"), cell(town, "lora")]
    refused(lambda: run_grid(cells, tmp_path, cluster="auto", jobs=1), "crop 33 is not a multiple of the patch")
    assert not (tmp_path / "cells").exists()
    monkeypatch.setattr(grid, "_make_cell", die)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    refused(
        lambda: run_grid(cells[1:2], tmp_path, cluster="auto"), "frozen--0: its process or machine was lost 2 times"
    )


@pytest.mark.slow
def test_a_server_that_is_not_ray_is_refused_in_time(ray, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 10.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        refused(lambda: cluster._check_answer(address), f"--cluster {address}: Ray does not answer there")
