"""Several processes that work together: they call the command line, as torchrun starts them, or one function.

They are forked from a process that has imported everything, which saves seconds for each of them.
"""

import multiprocessing
import os
import signal
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

IMPORTED = ["recyclelora.cli", "recyclelora.evaluation.evaluate", "recyclelora.runs.predict", "matplotlib.pyplot"]


@dataclass(frozen=True)
class Failure:
    """What process 1 does when it comes to the image of this height: `killed`, or `asked` by a signal to stop."""

    height: int
    kind: str

    def prepare(self):
        from recyclelora.runs.predictor import Predictor

        plain = Predictor.predict

        def predict(model, image, **settings):
            if len(image) == self.height:
                os.kill(os.getpid(), signal.SIGKILL if self.kind == "killed" else signal.SIGTERM)
            return plain(model, image, **settings)

        Predictor.predict = predict


def _member(rank, world, port, folder, arguments, failure):
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    own: dict[str, Any] = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **numbers}
    os.environ.update({name: str(value) for name, value in own.items()})
    sys.argv = ["recyclelora", *(word.replace("RANK", str(rank)) for word in arguments)]
    files = [folder / f"{rank}.{kind}" for kind in ("out", "err")]
    with files[0].open("w") as out, files[1].open("w") as err, redirect_stdout(out), redirect_stderr(err):
        from recyclelora.__main__ import main

        if failure and rank == 1:
            failure.prepare()
        main()


def prepared():
    """The way in which the processes are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def work_together(world, function, *arguments):
    """Call a function of a test module, with its rank before the arguments, in `world` processes."""
    from torch.multiprocessing import start_processes

    start_processes(function, arguments, nprocs=world, start_method=prepared().get_start_method())


def call_together(world, folder, *arguments, failure=None):
    """Call the command line in `world` processes: exit code, standard output and standard error of each.

    `RANK` in an argument stands for the number of the process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = prepared()
    folder.mkdir(exist_ok=True)
    words = list(map(str, arguments))
    processes = [
        context.Process(target=_member, args=(rank, world, port, folder, words, failure)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
        process.kill()
    said = [[(folder / f"{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in range(world)]
    return [(process.exitcode, *texts) for process, texts in zip(processes, said, strict=True)]
