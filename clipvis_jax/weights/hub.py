"""Models on the Hugging Face hub: ``hf://org/name`` or ``hf://org/name@revision``. Safetensors and JSON, never pickles.

A model's repository is a model folder whose parameters are ``model.safetensors``.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipvis_jax.errors import InputError, first_line

WEIGHTS = "model.safetensors"
"""The parameters of a model folder that is made for the hub."""
_MODEL_FILES = (
    "config.json",
    "manifest.json",
    WEIGHTS,
    # By their full names: a hub could call a file "tokenizer/../../x.json".
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
_CLIP_FILE = "open_clip_model.safetensors"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class HubAddress(NamedTuple):
    """A repository on the hub, and one of its revisions: a branch, a tag or a commit; None: its main branch."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(source: str | Path) -> bool:
    """Tell whether a model is to come from the hub; of the two slashes a ``Path`` keeps one."""
    return str(source).startswith("hf:/")


def parse_address(source: str | Path) -> HubAddress:
    """Read an address.

    Raises:
        InputError: It is none.
    """
    found = re.fullmatch(rf"hf://?({_PART}/{_PART})(?:@([^\s@]+))?", str(source))
    if found is None:
        raise InputError(f"{source}: is no address on the hub; write hf://org/name, or hf://org/name@revision")
    return HubAddress(found[1], found[2])


def fetch_model(source: str | Path) -> Path:
    """Fetch a model that ``push_folder`` wrote, or find it in the hub's cache; returns its folder there.

    Raises:
        InputError: It is not to be had, or is no such model.
    """
    return _fetch(source, _MODEL_FILES, needed=("config.json", WEIGHTS), kind="model of 'clipvis push'")


def fetch_clip(source: str | Path) -> Path:
    """Fetch CLIP alone as an open_clip state dict, or find it in the hub's cache; returns the file there.

    Raises:
        InputError: It is not to be had, or not as safetensors.
    """
    return _fetch(source, (_CLIP_FILE,), needed=(_CLIP_FILE,), kind="CLIP of open_clip as safetensors") / _CLIP_FILE


def _fetch(source: str | Path, files: Sequence[str], *, needed: Sequence[str], kind: str) -> Path:
    address = parse_address(source)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import)

    try:
        folder = Path(
            snapshot_download(
                address.repository, revision=address.revision, allow_patterns=list(files), endpoint=_endpoint()
            )
        )
    except Exception as error:  # the hub's errors and those of the HTTP library that it uses
        raise InputError(
            f"{address}: not to be had from the Hugging Face hub ({first_line(error)}); check name, revision, network "
            "and, for private ones, 'hf auth login'"
        ) from error
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{address}: is no {kind} (has no {missing[0]}; pickles are never fetched); give another repository"
        )
    return folder


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder's files as one commit; the repository is made if it does not exist.

    Args:
        folder: The folder; all its files are uploaded.
        repository: "org/name".
        private: Whether a repository that is made is private.

    Returns:
        The address of the commit, for a browser.

    Raises:
        InputError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 (slow to import)

    api = HfApi(endpoint=_endpoint())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload of a model by clipvis push"
        ).commit_url
    except Exception as error:  # the hub's errors and those of the HTTP library that it uses
        raise InputError(
            f"hf://{repository}: cannot be pushed ({first_line(error)}); check name and network, and log in with "
            "'hf auth login'"
        ) from error


def _endpoint() -> str | None:
    """Return the hub's address where it is another than the public one; the library reads it once at its import."""
    return os.environ.get("HF_ENDPOINT") or None
