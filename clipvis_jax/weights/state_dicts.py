"""PyTorch state dicts as numpy arrays: reads safetensors without torch, pickles with it and without their code.

Writes safetensors.
"""

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16, which safetensors files may hold)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clipvis_jax.errors import InputError, first_line
from clipvis_jax.weights.torch_names import CLIP_PREFIX, HEAD_PREFIX

if TYPE_CHECKING:
    import torch

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint under the authors' names.

    CLIP alone (open_clip's names) gets the prefix that it has in the authors' checkpoints. The state dict of a pickle
    may stand under ``model`` or ``state_dict``; a ``module.`` before every name is dropped.

    Raises:
        InputError: The file is missing, damaged, holds code, or holds no state dict.
    """
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise InputError(f"{path}: unknown kind of checkpoint; give a .safetensors, .pth, .pt or .bin file")
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a checkpoint") from error
    if is_empty:
        raise InputError(f"{path}: is empty (0 bytes); download it again")
    arrays = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    if not any(key.startswith((CLIP_PREFIX, HEAD_PREFIX)) for key in arrays):
        arrays = {CLIP_PREFIX + key: array for key, array in arrays.items()}
    return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """Read the notes that a safetensors file keeps beside its arrays; other checkpoints have none.

    Raises:
        InputError: The file is missing or damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    with _open_safetensors(path) as file:
        return file.metadata() or {}


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray], *, metadata: Mapping[str, str]) -> None:
    """Write arrays as a safetensors file.

    Args:
        path: The file; one that exists is replaced.
        arrays: The entries, by name.
        metadata: Notes to keep in the file, which ``read_metadata`` returns.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        # PyTorch's own loaders look for the format.
        save_file(dict(arrays), path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        # This is how safetensors reports the system's errors.
        if match := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
        raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with _open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """Open a file; what goes wrong in the block is the file's fault."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except Exception as error:  # its own kinds, and Python's for types that numpy lacks
        raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    members = _archive_members(path)
    if any("/code/" in member.filename for member in members):
        raise InputError(
            f"{path}: is a TorchScript archive, as OpenAI published its models, and holds code; take the same model as "
            "safetensors: open_clip_model.safetensors of timm/resnet50_clip.openai (or resnet101_clip.openai, ...) on "
            "the Hugging Face hub"
        )
    _check_unpacked(path, sum(member.file_size for member in members))
    try:
        import torch  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise InputError(
            f"{path}: reading pickled checkpoints needs PyTorch; pip install 'clipvis-jax[torch]', or take the model "
            "as safetensors, which need nothing"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickle protocols
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the broken bytes lead torch to
        # Torch's advice, which takes many lines, is to run the code.
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise InputError(
                f"{path}: holds more than tensors ({refused[1]}), which could run code when read, so it is refused; "
                "take the model as safetensors, or save its state dict alone where you trust it"
            ) from error
        raise InputError(f"{path}: not a whole PyTorch checkpoint; download it again") from error
    state_dict = _find_state_dict(path, checkpoint)
    # Views that repeat an element are small until they are copied.
    _check_unpacked(path, sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values()))
    try:
        return {key: _to_numpy(tensor) for key, tensor in state_dict.items()}
    except (TypeError, RuntimeError) as error:  # sparse, quantized or without values
        raise InputError(
            f"{path}: holds a tensor that is no plain array ({first_line(error)}); save its state dict alone, dense"
        ) from error


def _archive_members(path: Path) -> list[zipfile.ZipInfo]:
    """List what a zip archive holds; nothing if the file is none, as old pickles are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError):
        return []


def _check_unpacked(path: Path, num_bytes: int) -> None:
    """Refuse a small file that unpacks to gigabytes: PyTorch writes tensors as they are."""
    size = path.stat().st_size
    if num_bytes > 2 * size + 2**24:
        raise InputError(
            f"{path}: has {size} bytes, but would unpack to {num_bytes}; no checkpoint of PyTorch's own is like that"
        )


def _find_state_dict(path: Path, checkpoint: Any) -> "dict[str, torch.Tensor]":
    import torch  # noqa: PLC0415  (an optional extra)

    state_dict = checkpoint
    for name in ("model", "state_dict"):
        if isinstance(state_dict, dict) and isinstance(state_dict.get(name), dict):
            state_dict = state_dict[name]
            break
    if not isinstance(state_dict, dict) or not state_dict:
        raise InputError(f"{path}: holds no state dict (a table of named tensors); give a checkpoint of a whole model")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path}: holds no plain state dict, the entry {key!r} is not a named tensor; save its state dict alone"
            )
    return state_dict


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """Bring a tensor, which may be a parameter or of a type that numpy lacks (bfloat16), to numpy."""
    values = tensor.detach()
    return (values.float() if values.is_floating_point() else values).numpy()
