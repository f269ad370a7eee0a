"""``clipvis pack``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class Pack:
    """Write a model folder as one file, which every command takes in its place.

    For example:
      clipvis pack runs/lvis_r50/model model.zip
      clipvis predict clip.mp4 --model model.zip --classes dog
    """

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="MODEL")]
    """Model folder, made by 'clipvis convert' or a training."""
    archive: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """File to write, .zip."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace the file if it exists."""

    def run(self) -> None:
        """Run ``clipvis pack``.

        Raises:
            InputError: The model cannot be read or the file not be written; an older file stays as it was.
        """
        with stopping_at_once():
            from clipvis_jax.weights.model_folder import load_model
            from clipvis_jax.weights.packed_model import SUFFIX, pack

            if self.archive.suffix != SUFFIX:
                raise InputError(f"{self.archive}: the name must end with {SUFFIX}")
            if self.archive.exists() and not self.overwrite:
                raise InputError(f"{self.archive}: exists already; choose another name or add --overwrite")
            if not self.model.is_dir():
                raise InputError(f"{self.model}: is no folder; give a model folder")
            load_model(self.model)  # refuses damaged ones
        pack(self.model, self.archive)
        print_lines(f"wrote {self.archive} ({self.archive.stat().st_size / 1e6:,.1f} MB)")
