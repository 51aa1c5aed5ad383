"""What a process of Ray does for a comparison on another machine; see `recyclelora.study.cluster`.

torch is not imported with this module, because `work` says first how many threads the libraries below it may start.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recyclelora import __version__
from recyclelora.errors import UserError
from recyclelora.stopping import Stopped, stopping_at_once

STARTERS = ("SLURM_STEP_", "SLURM_PROCID", "TORCHELASTIC_", "LOCAL_RANK")
"""Variables of the program that started Ray on a machine; a training would take itself for a process of theirs."""


@dataclass(frozen=True)
class Caller:
    """What a machine of the cluster has to share with the caller, and what a function needs to find there."""

    shared: Path
    folder: Path
    versions: Mapping[str, str]
    variables: Mapping[str, str]


def versions() -> dict[str, str]:
    """What has to be the same on all machines."""
    return {"Python": platform.python_version(), "recyclelora": __version__}


def refusal(caller: Caller) -> str | None:
    """Why this machine cannot work for the caller; None if it can."""
    machine = f"machine {platform.node()} of the cluster"
    for name, found in versions().items():
        if found != caller.versions[name]:
            return f"{machine}: it has {name} {found}, expected {caller.versions[name]}, which is here; install that"
    if not caller.shared.is_file():
        return (
            f"{machine}: {caller.shared.parent} is not the same folder there as here; choose an --out on a disk that "
            "all machines share, under the same path"
        )
    if not os.access(caller.shared.parent, os.W_OK | os.X_OK):
        return f"{machine}: {caller.shared.parent} cannot be written to there; allow it, or choose another --out"
    if not caller.folder.is_dir():
        return f"{machine}: it has no folder {caller.folder}; call from a folder that all machines share"
    return None


def work(caller: Caller, threads: int, pickled: bytes) -> Any:
    """Run a function for the caller, in the main thread of a process of Ray.

    A process that is asked to end by anyone but the caller, as by `ray stop` on its machine, ends as one that is lost,
    so that Ray runs the function again.

    Raises:
        UserError: this machine cannot work for the caller; and whatever the function raises.
        Stopped: the caller has cancelled it.
    """
    if reason := refusal(caller):
        raise UserError(reason)
    os.chdir(caller.folder)
    for name in [name for name in os.environ if name.startswith(STARTERS)]:
        del os.environ[name]
    os.environ.update(caller.variables, OMP_NUM_THREADS=str(threads))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a Ray that a script has started may ignore it
    try:
        with stopping_at_once():
            function, arguments = pickle.loads(pickled)
            return function(*arguments)
    except Stopped as stop:
        if stop.number != signal.SIGINT:  # with which Ray cancels
            os._exit(1)
        raise
