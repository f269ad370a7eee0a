"""``clipvis export-network``."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class ExportNetwork:
    """Write the network as a program that JAX runs without this package.

    The folder holds StableHLO in the form of jax.export, for CPUs, NVIDIA GPUs and TPUs, the weights, and a README with
    the lines that run it. From frames it computes masks, scores and embeddings; tracks and names follow from these.

    For example:
      clipvis export-network model --size 480x864 --batch 1 --out network
    """

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="MODEL")]
    """Model folder, made by 'clipvis convert' or a training, an archive of 'clipvis pack', or hf://org/name."""
    size: Annotated[str, arg(metavar="HEIGHTxWIDTH")]
    """Of the network's input in pixels, multiples of 32: frames are resized, and padded to it."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write; must not exist yet."""
    batch: Annotated[int | Literal["any"], arg(metavar="N|any")] = 1
    """Frames per call."""

    def run(self) -> None:
        """Run ``clipvis export-network``.

        Raises:
            InputError: An option or the model cannot be used, or the folder exists; nothing was written.
        """
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.size)
        if found is None:
            raise InputError(f"--size {self.size}: give height x width in pixels, such as 480x864")
        if self.out.exists():
            raise InputError(f"{self.out}: exists already; choose another --out")
        with stopping_at_once():
            from clipvis_jax.inference.network_export import export_network
            from clipvis_jax.models.clipvis import ClipVis
            from clipvis_jax.weights.model_folder import load_model

            model = load_model(self.model)
        export_network(
            self.out,
            ClipVis(model.config),
            model.clip_vars,
            model.params,
            size=(int(found[1]), int(found[2])),
            batch=self.batch,
        )
        print_lines(f"wrote {self.out}; its README.md has the lines that run it")
