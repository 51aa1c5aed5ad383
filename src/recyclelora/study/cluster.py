"""Trainings on the machines of a Ray cluster, each a task of Ray in a process of its own.

the caller                                    a machine of the cluster (`recyclelora.study.worker`)
  OUT/.shared-TOKEN  --- a folder of both --->  `refusal`: is it there, and are the versions the same?
  submit             --- pickled function --->  `work`: the caller's folder and variables, then the function
  the future         <----- its result -------

If a process or a machine is lost, Ray runs the function again elsewhere; a training goes on from its checkpoint there.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from recyclelora import __version__
from recyclelora.errors import MissingExtraError, UserError, shortened
from recyclelora.files import write_text
from recyclelora.pages.progress import LOGGER
from recyclelora.stopping import handlers_kept
from recyclelora.study.executors import Executor, settled
from recyclelora.study.worker import Caller, refusal, versions, work

Value = TypeVar("Value")

RETRIES = 5
"""How often a function is run again after its process or machine was lost."""
PATIENCE = 120.0
"""Seconds to wait for the lock of a lost process; NFS gives it up 90 seconds after its machine was lost."""
CONNECTION, ANSWER = 5.0, 60.0
"""Seconds in which an address has to be reached, and in which Ray has to answer there."""
JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); ray.shutdown()"
OBJECTS = 100 * 2**20
"""Bytes of the store of a Ray on this machine, which holds only results."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # below `uv run`, Ray would upload the working folder
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise Ray announces that this will be its default
}


@dataclass(frozen=True)
class Share:
    """What one training has of a machine."""

    cpus: int
    gpus: int

    def fits(self, machines: Sequence[Share]) -> int:
        """How many trainings there can be at a time on machines that have these in all."""
        return sum(
            min(machine.cpus // self.cpus, machine.gpus // self.gpus if self.gpus else machine.cpus)
            for machine in machines
        )


def share_of_training(machines: Sequence[Share], jobs: int | None) -> Share:
    """A GPU and its part of the CPUs if there are GPUs; otherwise the most CPUs with which `jobs` trainings fit.

    Args:
        jobs: trainings at a time; as many as there are machines if it is None.
    """
    with_gpus = [machine for machine in machines if machine.gpus and machine.cpus]
    if with_gpus:
        return Share(max(1, min(machine.cpus // machine.gpus for machine in with_gpus)), 1)
    wanted = jobs or len(machines)
    fitting = [n for n in range(1, 1 + max(m.cpus for m in machines)) if Share(n, 0).fits(machines) >= wanted]
    return Share(max(fitting, default=1), 0)


class _Cluster:
    patience = PATIENCE

    def __init__(self, ray: Any, address: str, jobs: int | None, caller: Caller) -> None:
        self.ray, self.address, self.jobs, self.caller = ray, address, jobs, caller
        self.running: dict[Future[Any], Any] = {}
        self.machines = self._machines()
        if not self.machines:
            raise UserError(f"--cluster {address}: no machine there has a CPU; add one with `ray start --address`")
        self.share = share_of_training([*self.machines.values()], jobs)
        self.threads = self.share.cpus
        self._task = ray.remote(num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_retries=RETRIES, max_calls=1)(
            work
        )

    def _machines(self) -> dict[str, Share]:
        """The machines that are alive and have CPUs, by Ray's names of them."""
        nodes = [(node["NodeID"], node["Resources"]) for node in self.ray.nodes() if node["Alive"]]
        return {name: Share(int(has["CPU"]), int(has.get("GPU", 0))) for name, has in nodes if has.get("CPU", 0) >= 1}

    @property
    def room(self) -> int:
        before, self.machines = self.machines, self._machines()
        fitting = self.share.fits([*self.machines.values()])
        if before.keys() - self.machines.keys():
            left = "goes on elsewhere from its checkpoint" if fitting else "waits for a machine that is large enough"
            logging.getLogger(LOGGER).info("a machine of the cluster was lost; what was trained there %s", left)
        return self.jobs or max(1, fitting)

    def submit(self, name: str, function: Callable[..., Value], *arguments: Any) -> Future[Value]:
        pickled = pickle.dumps((function, arguments))
        task = self._task.options(name=name).remote(self.caller, self.threads, pickled)
        future: Future[Value] = settled(task.future(), lambda error: self._explained(name, error))
        self.running[future] = task
        future.add_done_callback(self.running.pop)
        return future

    def _explained(self, name: str, error: BaseException | None) -> BaseException | None:
        of_ray = self.ray.exceptions
        if isinstance(error, of_ray.TaskCancelledError):
            return UserError(f"{name}: cancelled in Ray; call again to go on")
        if isinstance(error, of_ray.RayTaskError):
            cause: BaseException = error.cause or error
            if cause is not error:
                cause.__cause__ = error  # it shows where the function failed
            return cause
        if isinstance(error, of_ray.RayError):
            return UserError(
                f"{name}: its process or machine was lost {RETRIES + 1} times ({_line(error)}); see that the machines "
                "have enough memory, take fewer --jobs or a smaller batch_size, and call again to go on"
            )
        return error

    def check_machines(self) -> None:
        """Ask each machine whether it can work for the caller.

        Raises:
            UserError: one cannot, or does not answer.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self.ray.remote(num_cpus=0, max_retries=0)(refusal)
        there = [NodeAffinitySchedulingStrategy(name, soft=False) for name in self.machines]
        asked = [ask.options(scheduling_strategy=machine).remote(self.caller) for machine in there]
        try:
            reasons = self.ray.get(asked, timeout=ANSWER)
        except self.ray.exceptions.RayError as error:
            raise UserError(
                f"--cluster {self.address}: a machine cannot run recyclelora {__version__} ({_line(error)}); install "
                "the same version there, or take the machine out of the cluster"
            ) from error
        if reason := next(filter(None, reasons), None):
            raise UserError(reason)

    def stop(self) -> None:
        """Cancel what runs, and wait for its end; a training keeps its last step."""
        running = dict(self.running)
        for task in running.values():
            self.ray.cancel(task)
        wait(running)


def _line(error: Exception | str) -> str:
    """The last line of an error, which in a traceback says what is wrong."""
    lines = str(error).strip().splitlines()
    return shortened(lines[-1].strip() if lines else type(error).__name__)


@contextmanager
def on_cluster(address: str, jobs: int | None, out: Path) -> Iterator[Executor]:
    """Run functions on the machines of a cluster, each of which has to see the folder `out`.

    A cluster that this process has already joined is used as it is; otherwise Ray prints nothing.

    Args:
        address: "local" starts Ray on this machine for as long as the block lasts, "auto" joins the cluster to which
            this machine belongs, and HOST:PORT joins that cluster.
        jobs: functions at a time; as many as there are GPUs, or machines, if it is None.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, or a machine cannot work for the caller.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("--cluster", error.name or "ray", "cluster") from error
    for left in out.glob(".shared-*"):  # by callers that were killed
        left.unlink(missing_ok=True)
    shared = out.absolute() / f".shared-{secrets.token_hex(8)}"
    variables = {name: value for name, value in os.environ.items() if name.startswith("RECYCLELORA_")}
    caller = Caller(shared, Path.cwd(), versions(), variables)
    with _joined(ray, address, jobs):
        write_text(shared, "")
        try:
            executor = _Cluster(ray, address, jobs, caller)
            try:
                executor.check_machines()
                yield executor
            except BaseException:
                executor.stop()
                raise
        finally:
            shared.unlink(missing_ok=True)


@contextmanager
def _joined(ray: Any, address: str, jobs: int | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        cores = max(jobs or 1, torch.get_num_threads())
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECTS}
    else:
        _check_answer(address)
    try:
        with handlers_kept():  # Ray takes SIGTERM
            ray.init(address, **options)
    except Exception as error:  # of many kinds
        raise UserError(f"--cluster {address}: {' '.join(str(error).split())}") from error
    _let_speak(ray, False)
    try:
        yield
    finally:
        ray.shutdown()
        _let_speak(ray, True)


def _let_speak(ray: Any, aloud: bool) -> None:
    """Whether Ray prints what happens to machines and processes, dozens of lines for each that is lost."""
    with suppress(AttributeError):  # there is no public way
        ray._private.worker._worker_logs_enabled = aloud


def _check_answer(address: str) -> None:
    """Let another process join the cluster; without a limit, Ray waits many minutes for one that is not there.

    Raises:
        UserError: there is none, it has another version of Ray or Python, or the address has another form.
    """
    fix = "start one with `ray start --head`, correct the address, or set RAY_AUTH_MODE=token if it asks for a token"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
            raise UserError(
                f"--cluster {address}: expected local, auto, or HOST:PORT, which `ray start --head` has printed"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECTION).close()
        except OSError as error:
            raise UserError(f"--cluster {address}: no cluster there ({error.strerror or error}); {fix}") from error
    try:
        subprocess.run(
            [sys.executable, "-c", JOIN, address], check=True, capture_output=True, text=True, timeout=ANSWER
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"--cluster {address}: Ray does not answer there; {fix}") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"--cluster {address}: no cluster there ({_line(error.stderr)}); {fix}") from None
