"""Where the loggers of a training write, below the folder of its run; see `recyclelora.training.loggers`.

RUN/logs/csv/metrics.csv                        one row per step
         tensorboard/events.out.tfevents.*      one file for each time that the training was started or went on
         wandb/wandb.txt                        the id of the run at Weights & Biases
               [offline-]run-DATE_TIME-ID/      one folder for each time that the training was started or went on
"""

from __future__ import annotations

import shutil
from pathlib import Path


def csv_file(run: Path) -> Path:
    """The rows of the CSV logger."""
    return run / "logs" / "csv" / "metrics.csv"


def event_files(run: Path) -> list[Path]:
    """The files of TensorBoard, by name."""
    return sorted((run / "logs" / "tensorboard").glob("events.out.tfevents.*"))


def wandb_id_file(run: Path) -> Path:
    """The file with the id by which Weights & Biases knows the run."""
    return run / "logs" / "wandb" / "wandb.txt"


def wandb_folders(run: Path, offline: bool = False) -> list[Path]:
    """The folders that wandb made for this run, by name: all, or only those without a connection."""
    file = wandb_id_file(run)
    if not file.is_file():
        return []
    number = file.read_text().strip()
    if not number.isalnum():  # damaged: it would match the folders of other runs
        return []
    found = sorted(file.parent.glob(f"*run-*-{number}"))
    return [folder for folder in found if folder.name.startswith("offline-") or not offline]


def remove_logs(run: Path) -> None:
    """Remove what loggers wrote for a run, and nothing else."""
    for folder in wandb_folders(run):
        shutil.rmtree(folder)
    wandb = wandb_id_file(run).parent
    links = [wandb / name for name in ("latest-run", "debug.log", "debug-internal.log")]
    for file in (csv_file(run), *event_files(run), *(link for link in links if link.is_symlink()), wandb_id_file(run)):
        file.unlink(missing_ok=True)
    for folder in (csv_file(run).parent, run / "logs" / "tensorboard", wandb, run / "logs"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
