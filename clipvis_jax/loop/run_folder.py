"""The folder of a run: who may write there, and the note of what the run depends on."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import msgspec

from clipvis_jax.distributed import largest_of_all
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import write_text
from clipvis_jax.io.folder_lock import locked_folder
from clipvis_jax.io.json_text import read_json

_FILE = "run.json"
_CHANGED = "changed_settings"
_FIXED = {"clip_sha256": "CLIP", "decoders_sha256": "model to begin with (init_from)", "dataset": "data set"}
"""What a run is never gone on with if it differs, and what messages call it."""

_SCORED_ON = "evaluation_dataset"
"""Where scores are computed, the data set that they are of: with another one they cannot be compared."""

_ADVICE = "delete it to go on all the same"


class _Changed(msgspec.Struct):
    """What stands in a note beside the description."""

    changed_settings: tuple[str, ...] = ()


@contextmanager
def lock_folder(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the system takes the lock away when the process ends, however it ends.

    Process 0 holds it for all processes of a run, and if it cannot, all of them stop.

    Raises:
        InputError: Another run is at work there, or it cannot be written.
    """
    with ExitStack() as stack:
        problem = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(locked_folder(workdir, who="another run"))
            except InputError as error:
                problem = error
        if largest_of_all(int(problem is not None)):
            raise problem or InputError(f"{workdir}: process 0 cannot have it for this run; see what that one says")
        yield


def changed_settings(folder: Path, description: Mapping[str, Any], *, keeps_scores: bool = True) -> list[str]:
    """Compare a run with the note of the one that it goes on from.

    Args:
        folder: The folder of that run; it may be the run's own.
        description: What the run depends on, as JSON.
        keeps_scores: Whether earlier scores are compared with those to come.

    Returns:
        The names of settings and versions that are other ones than before, or had changed before; sorted.

    Warns:
        UserWarning: Some are other ones than before.

    Raises:
        InputError: CLIP, the decoders to begin with or the data are other ones, or the note is damaged.
    """
    path = folder / _FILE
    if not path.is_file():
        return []
    earlier = read_json(path, dict[str, Any], _ADVICE)
    changed_before = read_json(path, _Changed, _ADVICE).changed_settings
    earlier.pop(_CHANGED, None)
    for name, what in _FIXED.items():
        if earlier.get(name) != description.get(name):
            raise InputError(f"{folder}: is a run with another {what}; choose another folder")
    before, now = earlier.get(_SCORED_ON), description.get(_SCORED_ON)
    if keeps_scores and before is not None and now is not None and before != now:
        raise InputError(f"{folder}: has scores on another data set; choose another folder")
    # When to stop is no property of what is trained: to go on later, it has to change.
    changed = set(_differences(earlier, description)) - {"config.loop.stop_after"}
    if changed:
        warnings.warn(f"{folder}: goes on with other settings than before: {', '.join(sorted(changed))}", stacklevel=2)
    return sorted(changed.union(changed_before))


def write_note(folder: Path, description: Mapping[str, Any], changed: list[str]) -> dict[str, Any]:
    """Note what a run depends on, and what of it has changed since it began; returns the note."""
    note = dict(description) | ({_CHANGED: changed} if changed else {})
    write_text(folder / _FILE, json.dumps(note, indent=2) + "\n")
    return note


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Name the fields of two JSON values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = a.keys() | b.keys()
        return [x for name in names for x in _differences(a.get(name), b.get(name), f"{prefix}.{name}".lstrip("."))]
    return [] if a == b else [prefix]
