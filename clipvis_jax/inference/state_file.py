"""The tracks of a stream in a file, so that it goes on after a restart: arrays and JSON, no code."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from clipvis_jax.errors import InputError
from clipvis_jax.inference.video_state import VideoState
from clipvis_jax.io.files import NPZ_ERRORS, atomic_path
from clipvis_jax.masks.resize import MaskResizer
from clipvis_jax.models.sizes import MAX_INPUT_SIDE

_FORMAT = 1
_SUMS = "num_counted", "class_sum", "object_sum", "embedding_sum"
_SIZES = "logits_size", "padded_size", "valid_size", "original_size"


def save_state(path: Path, state: VideoState, network: dict[str, Any]) -> None:
    """Write a state that keeps no frames; ``network`` tells the model and its input from others.

    Raises:
        InputError: The file cannot be written.
    """
    tracker, sums = state.tracker, state.tracker.sums
    arrays = {name: getattr(sums, name) for name in _SUMS}
    if sums.newest:
        columns = zip(*sums.newest, strict=True)
        arrays |= {f"newest_{name}": np.stack(parts) for name, parts in zip(_SUMS, columns, strict=True)}
    if tracker.history:
        arrays["history"] = np.stack(tracker.history)
    sizes = state.sizes
    facts = _facts(state, network) | {
        "num_frames": sums.num_frames,
        "sizes": None if sizes is None else [list(getattr(sizes, name)) for name in _SIZES],
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        arrays |= {"mask_area": tracker.mask_area, "mask_prob_sum": tracker.mask_prob_sum}
        np.savez(file, **arrays, facts=np.array(json.dumps(facts)))


def load_state(path: Path, start: VideoState, network: dict[str, Any], query_dim: int) -> VideoState:
    """Read a state; ``start`` is one without frames, by the same model, of the same classes and settings.

    ``query_dim`` is the length of the model's query embeddings.

    Raises:
        InputError: The file is missing, damaged, or of another model, other classes or settings.
    """
    advice = "delete it, and the stream begins anew"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop("facts").item())
        num_frames, sizes = facts.pop("num_frames"), facts.pop("sizes")
        wanted = json.loads(json.dumps(_facts(start, network)))
        if facts.keys() != wanted.keys():
            raise ValueError("it is no stream's state")
    except NPZ_ERRORS as error:
        raise InputError(f"{path}: damaged ({error}); {advice}") from error
    for name, value in wanted.items():
        if facts[name] != value:
            raise InputError(f"{path}: is of a stream with other {name.replace('_', ' ')}; {advice}, or give those")
    try:
        return _filled(start, arrays, num_frames, sizes, query_dim)
    except NPZ_ERRORS as error:
        raise InputError(f"{path}: damaged ({error}); {advice}") from error


def _facts(state: VideoState, network: dict[str, Any]) -> dict[str, Any]:
    """Tell what must be the same for a state to go on."""
    return {
        "format": _FORMAT,
        **network,
        "classes": list(state.class_names),
        "background_names": list(state.background),
        "scores": dataclasses.asdict(state.tracker.sums.config),
        "association": dataclasses.asdict(state.tracker.association),
    }


def _filled(
    start: VideoState, arrays: dict[str, np.ndarray], num_frames: Any, sizes: Any, query_dim: int
) -> VideoState:
    """Put what a file holds into a state.

    Raises:
        ValueError, TypeError, KeyError: It does not fit.
    """
    tracker, config = start.tracker, start.tracker.sums.config
    if type(num_frames) is not int or not 0 <= num_frames < 2**53 or (sizes is None) != (num_frames == 0):
        raise ValueError("the number of frames is none")
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
    empty = {name: getattr(tracker.sums, name) for name in _SUMS}
    empty |= {"mask_area": tracker.mask_area, "mask_prob_sum": tracker.mask_prob_sum}
    for name, array in empty.items():
        if arrays[name].shape != array.shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}")
    counted = min(num_frames, config.window or 0)
    newest = [arrays[f"newest_{name}"] for name in _SUMS] if counted else []
    for name, parts in zip(_SUMS, newest, strict=False):
        if parts.shape != (counted, *empty[name].shape):
            raise ValueError(f"newest_{name} has shape {parts.shape}")
    shape = min(num_frames, tracker.association.memory_length), len(tracker.mask_area), query_dim
    history = arrays["history"] if num_frames else np.zeros(shape)
    if history.shape != shape:
        raise ValueError(f"history has shape {history.shape}")
    resizer = None
    if sizes is not None:
        pairs = [(int(height), int(width)) for height, width in sizes]
        if len(pairs) != len(_SIZES) or not 0 < min(map(min, pairs)) <= max(map(max, pairs)) <= 4 * MAX_INPUT_SIDE:
            raise ValueError("sizes are no sizes")
        resizer = MaskResizer(*pairs)
    sums = dataclasses.replace(
        tracker.sums,
        num_frames=num_frames,
        num_counted=arrays["num_counted"],
        class_sum=arrays["class_sum"],
        object_sum=arrays["object_sum"],
        embedding_sum=arrays["embedding_sum"],
        newest=tuple(zip(*newest, strict=True)),
    )
    filled = dataclasses.replace(
        tracker,
        history=tuple(history),
        sums=sums,
        mask_area=arrays["mask_area"],
        mask_prob_sum=arrays["mask_prob_sum"],
    )
    return dataclasses.replace(start, tracker=filled, sizes=resizer)
