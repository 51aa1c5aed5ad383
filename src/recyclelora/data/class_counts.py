"""How many pixels of each class are in each image of a domain: counted once, and kept in the cache folder.

    CACHE/class-counts/<key>.safetensors     key: SHA-256 of the names, label map, and files of a domain's images

A label file that has another size or time of change than before is counted again, with all others of its domain.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recyclelora.data.domain import Domain
from recyclelora.errors import UserError
from recyclelora.files import cache_folder, save_tensors
from recyclelora.pages.progress import shown

FORMAT = "recyclelora class counts 1"
THREADS = 8
"""At most this many labels are read at once; decoding a PNG does not need Python's global lock."""


def class_counts(domain: Domain) -> Int64[np.ndarray, "images classes"]:
    """The pixels of each train class in the label of each image.

    A label that is resized to its image when it is read, as a few of GTAV are, is counted in its own size.

    Raises:
        UserError: a label cannot be read, or holds an unknown id.

    Warns:
        UserWarning: the counts cannot be written to the cache folder; they are counted again in the next training.
    """
    entry = cache_folder() / "class-counts" / f"{_key(domain)}.safetensors"
    shape = len(domain), len(domain.train_space)
    counts = _kept(entry)
    if counts is not None and counts.shape == shape:
        return counts
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        rows = pool.map(partial(_count, domain), range(len(domain)))
        counts = np.stack(list(shown(rows, f"counting classes of {domain.label}", "images", len(domain))))
    try:
        save_tensors(entry, {"counts": torch.from_numpy(counts)})
    except (UserError, SafetensorError) as error:
        warnings.warn(
            f"{entry.parent}: the counts of classes cannot be kept there ({error}); set RECYCLELORA_CACHE to a folder "
            "that you can write to, or each training counts again",
            stacklevel=2,
        )
    return counts


def _count(domain: Domain, index: int) -> Int64[np.ndarray, "classes"]:
    pixels = np.bincount(domain.source.labels(index).ravel(), minlength=256)
    counts = np.zeros(256, np.int64)
    np.add.at(counts, domain.labelling.to_train, pixels)
    return counts[: len(domain.train_space)]


def _key(domain: Domain) -> str:
    digest = hashlib.sha256(f"{FORMAT} {domain.train_space.names} {domain.labelling.to_train.tolist()}\n".encode())
    for index in range(len(domain)):
        digest.update(f"{domain.name(index)} {domain.source.stamp(index)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _kept(entry: Path) -> Int64[np.ndarray, "images classes"] | None:
    """The counts in a file; None if it is missing or damaged, as they can be counted again."""
    try:
        return np.asarray(load_file(entry)["counts"], np.int64)
    except (OSError, SafetensorError, KeyError):
        return None
