"""Turn PyTorch checkpoints into model variables and back, with every key and every leaf accounted for.

Reads the authors' checkpoints, which hold CLIP as well, and CLIP alone as an open_clip state dict.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from clipvis_jax.errors import InputError
from clipvis_jax.models.clip_text import Activation
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables, clip_shapes, decoder_shapes, jitted
from clipvis_jax.models.query_decoder import IouActivation
from clipvis_jax.weights.published_sizes import infer_config
from clipvis_jax.weights.state_dicts import read_state_dict
from clipvis_jax.weights.torch_names import CLIP_PREFIX, HEAD_PREFIX, IGNORED, leaf_paths, torch_entry

StateDict = Mapping[str, np.ndarray]


def read_checkpoints(checkpoint: Path | None, clip: Path | None) -> dict[str, np.ndarray]:
    """Read the authors' checkpoint, CLIP alone, or the decoders of the one and the CLIP of the other.

    Raises:
        InputError: Neither is given, a file cannot be used, or the checkpoint holds no decoders.
    """
    if checkpoint is None and clip is None:
        raise InputError("give 'checkpoint' (the authors' weights), 'clip' (CLIP alone), or both")
    state_dict = read_state_dict(checkpoint) if checkpoint is not None else {}
    if checkpoint is not None and not _has_decoders(state_dict):
        raise InputError(
            f"{checkpoint}: holds no decoders (no key starts with '{HEAD_PREFIX}'); give CLIP alone as 'clip'"
        )
    if clip is not None:
        decoders = {key: array for key, array in state_dict.items() if not key.startswith(CLIP_PREFIX)}
        clip_only = read_state_dict(clip)
        if _has_decoders(clip_only):
            raise InputError(f"{clip}: holds trained decoders too; give it as 'checkpoint'")
        state_dict = decoders | clip_only
    return state_dict


def _has_decoders(state_dict: StateDict) -> bool:
    return any(key.startswith(HEAD_PREFIX) for key in state_dict)


def from_state_dict(
    state_dict: StateDict,
    *,
    source: str,
    config: ClipVisConfig | None = None,
    activation: Activation | None = None,
    text_heads: int | None = None,
    iou_activation: IouActivation = "sigmoid",
    seed: int = 0,
) -> tuple[ClipVisConfig, Variables, Variables]:
    """Convert a whole state dict.

    Args:
        state_dict: Arrays under the authors' names (``backbone.clip_model.*``, ``sem_seg_head.*``).
        source: What to call the checkpoint in errors.
        config: The model's sizes, where the file's metadata tells them. By default ``infer_config`` works them out;
            the three arguments that follow are for it.
        activation: See ``infer_config``.
        text_heads: See ``infer_config``.
        iou_activation: See ``infer_config``.
        seed: For the decoders' random values, if the state dict holds CLIP alone.

    Returns:
        Sizes, frozen CLIP variables and trained parameters, float32 numpy arrays.

    Raises:
        InputError: Keys that nothing uses, leaves that nothing fills, or wrong shapes; all are listed at once.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    target = "the configuration in the metadata"
    if config is None:
        target = "the model"
        config, _ = infer_config(
            shapes, source=source, activation=activation, text_heads=text_heads, iou_activation=iou_activation
        )
    used: set[str] = set()
    problems: list[str] = []
    clip_vars = _fill(clip_shapes(config), state_dict, config, used, problems)
    if _has_decoders(state_dict):
        params = _fill(decoder_shapes(config), state_dict, config, used, problems)
    else:
        params = jax.tree.map(np.asarray, jitted(ClipVis(config), "init_decoders")(jax.random.key(seed)))
    ignored = re.compile("|".join(IGNORED))
    problems += [f"{key} is not used" for key in state_dict if key not in used and not ignored.fullmatch(key)]
    problems = list(dict.fromkeys(problems))  # query, key and value of an attention are one entry
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise InputError(f"{source}: {len(problems)} entries do not fit {target}: {shown}")
    return config, clip_vars, params


def to_state_dict(config: ClipVisConfig, clip_vars: Variables, params: Variables) -> dict[str, np.ndarray]:
    """Write variables as a state dict under the authors' names, which their code and ``from_state_dict`` read."""
    state_dict: dict[str, np.ndarray] = {}
    stacked: dict[str, list[np.ndarray]] = {}
    for path, leaf in leaf_paths({**clip_vars, **params}).items():
        entry = torch_entry(path, leaf.shape, config)
        array = np.asarray(entry.to_torch(np.asarray(leaf)), order="C")
        if entry.part is None:
            state_dict[entry.key] = array
        else:
            stacked.setdefault(entry.key, [array] * 3)[entry.part] = array
    return state_dict | {key: np.concatenate(parts) for key, parts in stacked.items()}


def _fill(
    abstract: Variables, state_dict: StateDict, config: ClipVisConfig, used: set[str], problems: list[str]
) -> Variables:
    """Fill a tree from a state dict; note what was used and what does not fit."""

    def fill(path: str, leaf: jax.ShapeDtypeStruct) -> Float[np.ndarray, "..."]:
        entry = torch_entry(path, leaf.shape, config)
        used.add(entry.key)
        zeros = np.broadcast_to(np.float32(0), leaf.shape)  # takes no memory, however wrong the configuration is
        if entry.key not in state_dict:
            problems.append(f"{entry.key} is missing")
            return zeros
        array = state_dict[entry.key]
        if entry.part is not None and array.ndim > 0 and array.shape[0] % 3 == 0:
            array = np.split(array, 3)[entry.part]
        expected = entry.to_torch(zeros).shape
        if array.shape != expected:
            problems.append(f"{entry.key} has shape {state_dict[entry.key].shape}, not {expected}")
            return zeros
        if not np.isfinite(array).all():
            problems.append(f"{entry.key} has values that are not finite")
        return np.asarray(entry.from_torch(np.asarray(array, np.float32)), order="C")

    filled = [fill(path, leaf) for path, leaf in leaf_paths(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), filled)
