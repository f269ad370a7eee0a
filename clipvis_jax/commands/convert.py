"""``clipvis convert``."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError, first_line
from clipvis_jax.io.terminal import print_lines
from clipvis_jax.models.clipvis import ClipVisConfig, clip_shapes, decoder_shapes
from clipvis_jax.models.query_decoder import IouActivation
from clipvis_jax.text.tokenizer import load_tokenizer
from clipvis_jax.version import __version__
from clipvis_jax.weights.convert import from_state_dict, read_checkpoints
from clipvis_jax.weights.hub import fetch_clip, is_address, parse_address
from clipvis_jax.weights.model_folder import (
    FORMAT_VERSION,
    RunDefaults,
    check_target,
    config_from_json,
    run_defaults_from_json,
    save_model,
)
from clipvis_jax.weights.published_sizes import describe, infer_config
from clipvis_jax.weights.state_dicts import file_sha256, read_metadata
from clipvis_jax.weights.torch_names import CLIP_PREFIX

CONFIG_KEY = "clipvis_config"
"""The name of the model's configuration in the metadata of an exported file."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Make a model folder from PyTorch weights.

    Backbone, widths, decoder layers and queries are worked out from the weights; a file of 'clipvis export' tells its
    own configuration. Every entry must be used and every parameter filled, or all problems are listed and nothing is
    written.

    For example:
      clipvis convert --checkpoint clipvis_lvis_r50_7.pth --out model
      clipvis convert --clip open_clip_model.safetensors --out untrained --tokenizer bpe_simple_vocab_16e6.txt.gz
      clipvis convert --clip hf://timm/resnet50_clip.openai --out untrained
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """Model folder to write."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The authors' checkpoint (.pth), which holds CLIP as well, or a file of 'clipvis export'."""
    clip: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CLIP alone, as an open_clip state dict (.safetensors, .bin, .pt), or hf://org/name for
    open_clip_model.safetensors of that repository on the Hugging Face hub. Without --checkpoint the decoders get random
    values, for training; with it, this CLIP takes the place of the checkpoint's."""
    tokenizer: Annotated[str, arg(metavar="NAME")] = "openai/clip-vit-base-patch32"
    """Tokenizer: a folder in transformers' format, a name on the Hugging Face hub, or the file
    bpe_simple_vocab_16e6.txt.gz of open_clip's package."""
    activation: Annotated[
        Literal["quick_gelu", "gelu"] | None,
        arg(
            metavar="{quick_gelu,gelu}",
            help_behavior_hint="(default: quick_gelu for ResNets, as OpenAI trained them; gelu for ConvNeXts)",
        ),
    ] = None
    """Activation of the text encoder, which weights do not show and a file of 'clipvis export' tells."""
    text_heads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per 64 channels)")] = None
    """Attention heads of the text encoder, which weights do not show and a file of 'clipvis export' tells."""
    iou_head: Annotated[
        IouActivation | None,
        arg(metavar="{sigmoid,relu}", help_behavior_hint="(default: sigmoid, as in the authors' code of today)"),
    ] = None
    """How the mask-IoU head ends: relu for files that the authors published before 2024-06-05, listed in
    docs/parity.md. Weights do not show it; a file of 'clipvis export' tells it."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the decoders' random values."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace the model folder if it exists."""

    def run(self) -> None:
        """Run ``clipvis convert``.

        Raises:
            InputError: An option, the weights, the tokenizer or the model folder cannot be used; nothing was written.
        """
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: must be between 0 and {2**32 - 1}")
        if self.checkpoint is None and self.clip is None:
            raise InputError("give --checkpoint (the authors' weights), --clip (CLIP alone), or both")
        if self.checkpoint is None and self.iou_head is not None:
            raise InputError("--iou-head: is for the trained decoders of a --checkpoint; leave the option out")
        with stopping_at_once():
            check_target(self.out, overwrite=self.overwrite)
            clip = fetch_clip(self.clip) if self.clip is not None and is_address(self.clip) else self.clip
            files = {"checkpoint": self.checkpoint, "clip": clip}
            state_dict = read_checkpoints(self.checkpoint, clip)
            stored, run_defaults = self._stored_config(state_dict)
            config, clip_vars, params = from_state_dict(
                state_dict,
                source=" + ".join(str(path) for path in files.values() if path),
                config=stored,
                activation=self.activation,
                text_heads=self.text_heads,
                iou_activation=self.iou_head or "sigmoid",
                seed=self.seed,
            )
            tokenizer = load_tokenizer(self.tokenizer, context_length=config.text.context_length)
            source = {name: {"file": path.name, "sha256": file_sha256(path)} for name, path in files.items() if path}
            if self.clip is not None and clip != self.clip:
                source["clip"]["hub"] = str(parse_address(self.clip))
        save_model(
            self.out,
            config,
            clip_vars,
            params,
            tokenizer,
            run_defaults=run_defaults,
            source=source | {"converter": f"clipvis_jax {__version__}", "seed": self.seed},
            overwrite=self.overwrite,
        )
        print_lines(describe(config))
        if self.checkpoint is not None and stored is None and self.iou_head is None:
            print_lines(
                "mask-IoU head: took it to end in a sigmoid; files of the authors from before 2024-06-05 score wrongly "
                "so, convert those with --iou-head relu (docs/parity.md tells them apart)"
            )
        if self.checkpoint is None:
            print_lines(f"the decoders are not trained: random values from seed {self.seed}")
        print_lines(f"wrote {self.out}")

    def _stored_config(self, state_dict: Mapping[str, np.ndarray]) -> tuple[ClipVisConfig | None, RunDefaults]:
        """Read the configuration of an exported checkpoint, None without one; another CLIP has its own sizes.

        Raises:
            InputError: It cannot be read, or an option contradicts it.
        """
        config, run_defaults = read_config(self.checkpoint) if self.checkpoint else (None, RunDefaults())
        if config is None:
            return None, run_defaults
        self._check_option("--iou-head", self.iou_head, config.query_decoder.iou_activation)
        if self.clip:
            shapes = {key: array.shape for key, array in state_dict.items() if key.startswith(CLIP_PREFIX)}
            other_clip, _ = infer_config(
                shapes, source=str(self.clip), activation=self.activation, text_heads=self.text_heads
            )
            return dataclasses.replace(config, backbone=other_clip.backbone, text=other_clip.text), dataclasses.replace(
                run_defaults, background=None
            )
        self._check_option("--activation", self.activation, config.text.activation)
        self._check_option("--text-heads", self.text_heads, config.text.num_heads)
        return config, run_defaults

    def _check_option(self, option: str, given: object, stored: object) -> None:
        if given not in (None, stored):
            raise InputError(f"{option} {given}: {self.checkpoint} says {stored}; leave the option out")


def read_config(path: Path) -> tuple[ClipVisConfig | None, RunDefaults]:
    """Read the configuration and the run defaults that 'clipvis export' wrote into a file; None if there is none.

    Raises:
        InputError: It is damaged, or one of a newer version.
    """
    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        return None, RunDefaults()
    try:
        description = json.loads(text)
        version = description["format_version"]
        is_newer = version > FORMAT_VERSION
        if not is_newer:
            config = config_from_json(description["config"])
            run_defaults = run_defaults_from_json(description.get("inference", {}))
            # Sizes that do not go together show here.
            clip_shapes(config)
            decoder_shapes(config)
    except Exception as error:  # whatever wrong names, types and numbers lead to
        raise InputError(
            f"{path}: its {CONFIG_KEY} is damaged ({first_line(error)}); export the model again"
        ) from error
    if is_newer:
        raise InputError(
            f"{path}: its {CONFIG_KEY} has format_version {version}, newer than this program; update clipvis-jax"
        )
    return config, run_defaults
