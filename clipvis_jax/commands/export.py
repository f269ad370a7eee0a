"""``clipvis export``."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from clipvis_jax.commands.convert import CONFIG_KEY
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path
from clipvis_jax.io.terminal import print_lines
from clipvis_jax.training.run_checkpoint import load_checkpoint
from clipvis_jax.version import __version__
from clipvis_jax.weights.convert import to_state_dict
from clipvis_jax.weights.model_folder import (
    FORMAT_VERSION,
    ModelFolder,
    check_target,
    config_to_json,
    load_model,
    save_model,
)
from clipvis_jax.weights.published_sizes import describe
from clipvis_jax.weights.state_dicts import write_state_dict


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a model folder as a PyTorch state dict for the authors' code, or a training's checkpoint as a model.

    CLIP, decoders and the model's configuration are in the file; the tokenizer is not. 'clipvis convert --checkpoint'
    makes the same model of it, bit for bit.

    For example:
      clipvis export runs/lvis_r50/model --out clipvis_r50.safetensors
      clipvis export runs/lvis_r50 --best --out model_best
      clipvis export runs/lvis_r50 --step 5000 --clip clip_rn50 --out model_5000
    """

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="MODEL|RUN")]
    """Model folder, made by 'clipvis convert' or a training; with --step or --best the folder of a training."""
    out: Annotated[Path, arg(metavar="FILE|DIR")]
    """File to write, .safetensors; with --step or --best also a model folder."""
    step: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Take the training's checkpoint of this step."""
    best: Annotated[bool, arg(help_behavior_hint="")] = False
    """Take the training's checkpoint with the best score."""
    clip: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """For a training that is not finished: the model folder whose CLIP it was begun with."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace the file or folder if it exists."""

    def run(self) -> None:
        """Run ``clipvis export``.

        Raises:
            InputError: The model folder cannot be read or the file not be written; an older file stays as it was.
        """
        is_checkpoint = self.best or self.step is not None
        if self.best and self.step is not None:
            raise InputError("--best, --step: exclude each other; give one of them")
        if self.clip is not None and not is_checkpoint:
            raise InputError("--clip: is for the checkpoint of a training; give --step or --best")
        if is_checkpoint and self.out.suffix != ".safetensors":
            check_target(self.out, overwrite=self.overwrite)
            model = self._open()
            parts = model.config, model.clip_vars, model.params, model.tokenizer
            save_model(self.out, *parts, source=model.source, run_defaults=model.run_defaults, overwrite=self.overwrite)
            print_lines(describe(model.config), f"wrote {self.out}")
            return
        if self.out.suffix != ".safetensors":
            raise InputError(f"{self.out}: the name must end with .safetensors")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"{self.out}: exists already; choose another --out or add --overwrite")
        with atomic_path(self.out) as temporary:
            model = self._open()
            state_dict = to_state_dict(model.config, model.clip_vars, model.params)
            description = {
                "format_version": FORMAT_VERSION,
                "config": config_to_json(model.config),
                "inference": dataclasses.asdict(model.run_defaults),
            }
            metadata = {"written_by": f"clipvis_jax {__version__}", CONFIG_KEY: json.dumps(description)}
            write_state_dict(temporary, state_dict, metadata=metadata)
        print_lines(describe(model.config))
        print_lines(f"wrote {self.out} ({len(state_dict)} entries, {self.out.stat().st_size / 1e6:,.0f} MB)")

    def _open(self) -> ModelFolder:
        if not self.best and self.step is None:
            return load_model(self.model)
        return load_checkpoint(self.model, self.step, clip=self.clip)
