"""``clipvis convert``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Convert:
    """Make a model folder from PyTorch weights.

    Backbone, widths, decoder layers and queries are worked out from the weights. Every entry must be used and every
    parameter filled, or all problems are listed and nothing is written.

    For example:
      clipvis convert --checkpoint clipvis_lvis_r50_7.pth --out model
      clipvis convert --clip open_clip_model.safetensors --out untrained --tokenizer bpe_simple_vocab_16e6.txt.gz
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """Model folder to write."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The authors' checkpoint (.pth), which holds CLIP as well."""
    clip: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CLIP alone, as an open_clip state dict (.safetensors, .bin, .pt). Without --checkpoint the decoders get random
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
    """Activation of the text encoder, which weights do not show."""
    text_heads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per 64 channels)")] = None
    """Attention heads of the text encoder, which weights do not show."""
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
        with stopping_at_once():
            from clipvis_jax.checkpoints import check_target, save_model
            from clipvis_jax.convert import from_state_dict, read_checkpoints
            from clipvis_jax.model_sizes import describe
            from clipvis_jax.state_dicts import file_sha256
            from clipvis_jax.tokenizer import load_tokenizer

            check_target(self.out, overwrite=self.overwrite)
            files = {"checkpoint": self.checkpoint, "clip": self.clip}
            state_dict = read_checkpoints(self.checkpoint, self.clip)
            config, clip_vars, params = from_state_dict(
                state_dict,
                source=" + ".join(str(path) for path in files.values() if path),
                activation=self.activation,
                text_heads=self.text_heads,
                seed=self.seed,
            )
            tokenizer = load_tokenizer(self.tokenizer, context_length=config.text.context_length)
            source = {name: {"file": path.name, "sha256": file_sha256(path)} for name, path in files.items() if path}
        save_model(
            self.out,
            config,
            clip_vars,
            params,
            tokenizer,
            source=source | {"converter": f"clipvis_jax {__version__}", "seed": self.seed},
            overwrite=self.overwrite,
        )
        print(describe(config))
        if self.checkpoint is None:
            print(f"the decoders are not trained: random values from seed {self.seed}")
        print(f"wrote {self.out}")
