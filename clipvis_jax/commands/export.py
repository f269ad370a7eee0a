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
from clipvis_jax.version import __version__
from clipvis_jax.weights.convert import to_state_dict
from clipvis_jax.weights.model_folder import FORMAT_VERSION, config_to_json, load_model
from clipvis_jax.weights.published_sizes import describe
from clipvis_jax.weights.state_dicts import write_state_dict


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a model folder as a PyTorch state dict, for the authors' code.

    CLIP, decoders and the model's configuration are in the file; the tokenizer is not. 'clipvis convert --checkpoint'
    makes the same model of it, bit for bit.

    For example:
      clipvis export runs/lvis_r50/model --out clipvis_r50.safetensors
    """

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="MODEL")]
    """Model folder, made by 'clipvis convert' or a training."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File to write, .safetensors."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace the file if it exists."""

    def run(self) -> None:
        """Run ``clipvis export``.

        Raises:
            InputError: The model folder cannot be read or the file not be written; an older file stays as it was.
        """
        if self.out.suffix != ".safetensors":
            raise InputError(f"{self.out}: the name must end with .safetensors")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"{self.out}: exists already; choose another --out or add --overwrite")
        with atomic_path(self.out) as temporary:
            model = load_model(self.model)
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
