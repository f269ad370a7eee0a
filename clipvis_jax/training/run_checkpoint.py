"""A checkpoint of a training run as a model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from clipvis_jax.errors import InputError, first_line
from clipvis_jax.io.json_text import read_json
from clipvis_jax.loop.checkpoints import TrainingCheckpoints
from clipvis_jax.loop.sharding import make_mesh
from clipvis_jax.models.clipvis import ClipVis
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.optimizer import OptimizerConfig, make_optimizer
from clipvis_jax.training.step import abstract_state, state_shardings
from clipvis_jax.weights.model_folder import ModelFolder, hash_variables, load_model, run_defaults_from_json


def load_checkpoint(run: Path, step: int | None = None, *, clip: Path | None = None) -> ModelFolder:
    """Read a checkpoint of a training of decoders.

    Args:
        run: Folder of the run; it need not be finished.
        step: Which checkpoint; None: the one with the best score.
        clip: A model folder with the CLIP that the run was begun with, which checkpoints do not hold. None: that of the
            run's model, which is there when the run is finished.

    Raises:
        InputError: It is no such run, has no such checkpoint or no scores, or the CLIP is another one.
    """
    note_file, folder = run / "run.json", run / "checkpoints"
    if not note_file.is_file() or not folder.is_dir():
        raise InputError(f"{run}: is not the folder of a training run; it has no run.json or no checkpoints")
    note = read_json(note_file, dict[str, Any], "give another run")
    if clip is None and not (run / "model").is_dir():
        raise InputError(
            f"{run}: is not finished, so it has no model yet; give clip, the model folder that it was begun with"
        )
    base = load_model(clip or run / "model")
    if clip is not None and hash_variables(base.clip_vars) != note.get("clip_sha256"):
        raise InputError(f"{clip}: its CLIP is not the one that {run} was begun with; give the folder that was")
    try:
        config = dataclasses.replace(
            base.config,
            pixel_decoder=PixelDecoderConfig(**note["config"]["pixel_decoder"]),
            query_decoder=QueryDecoderConfig(**note["config"]["query_decoder"]),
        )
        inference = note["config"]["evaluation"]["inference"]
        # Of a CLIP that is given, the classes are not those of the run.
        defaults = dataclasses.replace(
            base.run_defaults, min_score=None, classes=base.run_defaults.classes if clip is None else None
        )
        if inference["size"] is not None:
            sizes = run_defaults_from_json({name: inference[name] for name in ("size", "max_size")})
            defaults = dataclasses.replace(defaults, size=sizes.size, max_size=sizes.max_size)
        model, optimizer = ClipVis(config), make_optimizer(OptimizerConfig())
        mesh = make_mesh(devices=jax.devices()[:1])
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state(model, optimizer),
            state_shardings(model, optimizer, mesh),
        )
    except Exception as error:  # whatever wrong names, types and numbers lead to
        raise InputError(
            f"{run}: is no training of decoders, or its run.json is damaged ({first_line(error)}); give another run"
        ) from error
    with TrainingCheckpoints(folder, is_read_only=True) as checkpoints:
        step = checkpoints.best() if step is None else step
        if step is None:
            raise InputError(f"{run}: has no checkpoint with a score; give a step")
        params = jax.device_get(checkpoints.restore_step(step, abstract).state.params)
    return ModelFolder(config, base.clip_vars, params, base.tokenizer, {"step": step, **note}, defaults)
