"""Read PyTorch checkpoints as numpy arrays: safetensors without torch, pickles with it and without their code."""

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16, which safetensors files may hold)
import numpy as np
from safetensors import SafetensorError, safe_open

from clipvis_jax.errors import InputError
from clipvis_jax.torch_names import CLIP_PREFIX, HEAD_PREFIX

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_SAFETENSORS_HINT = (
    "take the same model as safetensors, for example open_clip_model.safetensors of the hub's timm/resnet50_clip.openai"
)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint under the authors' names.

    CLIP alone (open_clip's names) gets the prefix that it has in the authors' checkpoints. The state dict may stand
    under ``model`` or ``state_dict``; a ``module.`` before every name is dropped.

    Raises:
        InputError: The file is missing, damaged, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint (.safetensors, .pth, .pt or .bin)")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; download it again")
    if path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        arrays = _read_pickle(path)
    else:
        raise InputError(f"{path}: unknown kind of checkpoint; give a .safetensors, .pth, .pt or .bin file")
    if all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    if not any(key.startswith((CLIP_PREFIX, HEAD_PREFIX)) for key in arrays):
        arrays = {CLIP_PREFIX + key: array for key, array in arrays.items()}
    return arrays


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, TypeError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from None


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise InputError(
                    f"{path}: is a TorchScript archive, as OpenAI published its models, and holds code; "
                    + _SAFETENSORS_HINT
                )
    try:
        import torch  # noqa: PLC0415  (an optional extra)
    except ImportError:
        raise InputError(
            f"{path}: reading pickled checkpoints needs PyTorch: pip install 'clipvis-jax[torch]'; "
            "safetensors files need nothing"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickle protocols
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds objects other than tensors, which could run code when read, so it is refused; "
            + _SAFETENSORS_HINT
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a whole PyTorch checkpoint ({reason}); download it again") from None
    state_dict: Any = checkpoint
    for name in ("model", "state_dict"):
        if isinstance(state_dict, dict) and isinstance(state_dict.get(name), dict):
            state_dict = state_dict[name]
            break
    if not isinstance(state_dict, dict) or not state_dict:
        raise InputError(f"{path}: holds no state dict (a table of named tensors)")
    strays = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if strays:
        raise InputError(f"{path}: holds no plain state dict; the entry {strays[0]!r} is not a tensor")
    return {key: (value.float() if value.is_floating_point() else value).numpy() for key, value in state_dict.items()}
