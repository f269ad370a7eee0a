"""What comes with the package: a small model of the Shapes world and a clip that it was not trained on.

``README.md`` beside this file says how both were made.
"""

import hashlib
from pathlib import Path

from clipvis_jax.errors import InputError

_FOLDER = Path(__file__).parent
_SUMS = "SHA256SUMS"

MODEL = _FOLDER / "model"
"""The model folder."""
CLIP = _FOLDER / "clip" / "annotations.json"
"""The clip's true objects in YouTube-VIS format; its frames lie beside."""
SIZE = 320
"""Height and width of the network's input that the model was trained with, see ``InferenceConfig.size``."""


def check_files(folder: Path = _FOLDER) -> None:
    """Compare all bundled files with their checksums; takes some milliseconds.

    Raises:
        InputError: A file is missing, damaged or cannot be read.
    """
    remedy = "install clipvis-jax again (in a checkout: git checkout -- clipvis_jax/bundled)"
    sums = folder / _SUMS
    try:
        lines = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{sums}: {_why_unreadable(error)}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{sums}: damaged; {remedy}") from error
    if not lines or any(len(line) != 2 for line in lines):
        raise InputError(f"{sums}: damaged; {remedy}")
    listed = {name for _, name in lines}
    for path in sorted(path for part in (CLIP.parent, MODEL) for path in (folder / part.name).rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in listed:
            raise InputError(f"{sums}: has no checksum of {path}; {remedy}")
    for expected, name in lines:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{folder / name}: {_why_unreadable(error)}; {remedy}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise InputError(f"{folder / name}: damaged; {remedy}")


def _why_unreadable(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
