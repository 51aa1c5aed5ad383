"""Sends an export to the model hub, if it can be reached."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from recyclelora.errors import UserError
from recyclelora.models.weights import HUB_PROBE_SECONDS, answers


def check_name(name: str) -> None:
    """Refuse a name that no repository of the hub can have.

    Raises:
        UserError: the name is not `OWNER/NAME`, or has other signs than the hub allows.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--to-hub {name}: {reason}; give OWNER/NAME, as in --to-hub me/streets") from error
    if name.count("/") != 1:
        raise UserError(f"--to-hub {name}: expected OWNER/NAME, as in --to-hub me/streets")


def push(folder: Path, name: str, files: Sequence[str]) -> str:
    """Send these files of a folder to a repository of the hub, which is made if it is missing.

    Returns one line: where it is now, or why it was only written and how to send it later.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        if not answers(constants.ENDPOINT, HUB_PROBE_SECONDS):
            raise ConnectionError(f"{constants.ENDPOINT} does not answer")
        hub = HfApi()
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files))
    except Exception as error:  # the hub's client and its HTTP library each raise their own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return f"not sent to the hub ({reason}); send it with: hf upload {name} {shlex.quote(str(folder))}"
    return f"sent to {constants.ENDPOINT}/{name}"
