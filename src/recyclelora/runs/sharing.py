"""Several processes share images: each image belongs to exactly one of them, and what ends one of them ends all.

    round        process 0    process 1    process 2
    first        image 0      image 1      image 2
    second       image 3      image 4      -

Only the first process writes results, locks and speaks. The processes talk over gloo, also if they compute on GPUs:
its connections break when a process is gone, so that the others notice at the end of the round.
"""

from __future__ import annotations

import pickle
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int64
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from recyclelora.errors import UserError
from recyclelora.pages.progress import Progress
from recyclelora.runs.processes import highest, launch_by_others, started
from recyclelora.stopping import Request, Stopped, stopping_later

Value = TypeVar("Value")


def rounds(count: int, rank: int, world: int) -> Iterator[int | None]:
    """The index of a process in each round; None in the last one if fewer are left than there are processes."""
    for first in range(0, count, world):
        yield first + rank if first + rank < count else None


@dataclass(frozen=True)
class Processes:
    """This process among those that share images; by default there is no other.

    All have to call the methods in the same order, since they wait for each other. If one is gone, the first process
    raises `UserError` and the others exit; for an error under `agreeing` the first raises that error.

    Attributes:
        rank: the number of this process, from 0 on.
        world: how many there are.
        device: where this process computes; None leaves the choice to `recyclelora.load`.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Go on after the block only if it succeeds in all processes; each works there without asking the others.

        Raises:
            Exception: that of the block, in the first process; of several, that of the lowest rank.
        """
        if self.world == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        if not self._highest(error is not None):
            return
        errors = [each for each in self.all_of(error and _portable(error)) if each is not None]
        if not self.leads:
            raise SystemExit(0)  # the first process says why, before torchrun is told of a failure and ends it
        raise error or errors[0]

    def all_of(self, own: Value) -> list[Value]:
        """The value of each process, by rank."""
        values: list[Any] = [own] * self.world
        if self.world > 1:
            with self._connected():
                dist.all_gather_object(values, own)
        return values

    def of_first(self, work: Callable[[], Value]) -> Value:
        """What the first process returns, which alone does this work."""
        found: list[Any] = [None]
        with self.agreeing():
            if self.leads:
                found = [work()]
        if self.world > 1:
            with self._connected():
                dist.broadcast_object_list(found, src=0)
        return cast(Value, found[0])

    def sum(self, counts: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        """The sum over the processes, exact."""
        if self.world == 1:
            return counts
        total = torch.from_numpy(counts.copy())
        with self._connected():
            dist.all_reduce(total)
        return total.numpy()

    def in_order(self, own: Sequence[Value], count: int) -> list[Value]:
        """The values of all `count` images, in their order, of which each process has those of its rounds."""
        values = self.all_of(own)
        return [values[index % self.world][index // self.world] for index in range(count)]

    def check_alike(self, own: Mapping[str, Any], what: str) -> None:
        """Refuse to go on if a value of `own`, from which results follow, is another one in another process.

        Raises:
            UserError: it is so, as for files on machines that do not share them; the message begins with `what`.
        """
        first, *others = self.all_of(own)
        with self.agreeing():
            if differing := [key for key in first if any(other.get(key) != first[key] for other in others)]:
                raise UserError(
                    f"{what}: the {self.world} processes found different values of {', '.join(differing)}; let all "
                    "see the same files and packages, and call again"
                )

    @contextmanager
    def sharing(self, count: int, name: str, units: str = "images") -> Iterator[Iterator[int | None]]:
        """Yields the rounds of `count` images, or what `units` says, while it is shown how far they are; see `rounds`.

        Raises:
            Stopped: in the first process, after a round in which a signal asked one of several processes to stop; the
                others exit. A process that is alone is not kept from stopping at once.
        """
        noting = stopping_later() if self.world > 1 else nullcontext(Request())
        with noting as request, Progress(name, count, units, shown=self.leads) as progress:
            yield self._rounds(count, request, progress)

    def _rounds(self, count: int, request: Request, progress: Progress) -> Iterator[int | None]:
        for index in rounds(count, self.rank, self.world):
            self._stop_if_asked(request)
            yield index
            progress.advance(min(self.world, count - progress.done))
        self._stop_if_asked(request)

    def _stop_if_asked(self, request: Request) -> None:
        if number := self._highest(request.number or 0):
            raise Stopped(number) if self.leads else SystemExit(0)

    def _highest(self, number: int) -> int:
        """The highest number of any process."""
        with self._connected():
            return highest(number, self.world)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """While it lasts, an error of the connection means that another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if not self.leads:
                raise SystemExit(0) from error
            raise UserError(
                f"another of the {self.world} processes was ended, or cannot be reached; look for what ended it, such "
                "as a lack of memory, and give the same command again"
            ) from error


ALONE = Processes()


@contextmanager
def joined(devices: int) -> Iterator[Processes]:
    """This process among `devices`, which are started if torchrun or srun has not done so; all end together.

    As in a training, the others run the program from its start, with the same arguments.

    Raises:
        UserError: the number is not positive, another one than that of the processes that were started, or one that
            this machine has too few GPUs for.
    """
    if devices < 1:
        raise UserError(f"devices {devices}: expected a whole number from 1 on")
    others = launch_by_others()
    if (others.world if others else devices) == 1:
        _check_number(devices, 1)
        yield ALONE
        return
    fabric = started(devices, DDPStrategy(process_group_backend="gloo"), accelerator="cpu")
    children = _children(fabric)
    try:
        processes = Processes(fabric.global_rank, fabric.world_size, _device(fabric.local_rank))
        with processes.agreeing():
            _check_number(devices, processes.world)
        yield processes
    except BaseException:
        for child in children:
            child.kill()
        raise
    finally:
        dist.destroy_process_group()


def _check_number(devices: int, world: int) -> None:
    if devices not in (1, world):
        raise UserError(
            f"devices {devices}, but {world} process{'es were' if world > 1 else ' was'} started; leave `devices` "
            "out, or call without torchrun and srun"
        )


def _children(fabric: Fabric) -> list[subprocess.Popen[bytes]]:
    """The processes that Fabric has started, without its observer.

    It would kill this process, without a word, within seconds after one of them ends with an error.
    """
    observed = getattr(fabric.strategy.launcher, "procs", [])
    children = list(observed)
    observed.clear()
    return children


def _device(local_rank: int) -> torch.device | None:
    """The GPU of this process, if there are any."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it; its traceback becomes a note, which `--debug` shows."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note("".join(traceback.format_exception(error)))
    return copy  # type: ignore[no-any-return]
