"""Model folders: sizes, parameters, tokenizer and provenance in one place. The only file that knows orbax.

A folder holds ``config.json`` (format version, sizes, where the weights come from), ``variables/`` (parameters, by
orbax) and ``tokenizer/`` (files in transformers' format).
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from clipvis_jax.errors import InputError
from clipvis_jax.files import output_error
from clipvis_jax.models.clip_convnext import ConvNextConfig
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.tokenizer import ClipTokenizer, load_tokenizer

FORMAT_VERSION = 1
_BACKBONES = {"resnet": ResNetConfig, "convnext": ConvNextConfig}


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds.

    ``text_hash`` is a digest of the text encoder's weights; ``source`` says where the weights come from.
    """

    config: ClipVisConfig
    clip_vars: Variables
    params: Variables
    tokenizer: ClipTokenizer
    text_hash: str
    source: dict[str, Any]


def config_to_json(config: ClipVisConfig) -> dict[str, Any]:
    """Write sizes as JSON."""
    kind = next(name for name, cls in _BACKBONES.items() if isinstance(config.backbone, cls))
    return dataclasses.asdict(config) | {"backbone": {"kind": kind, **dataclasses.asdict(config.backbone)}}


def config_from_json(data: dict[str, Any]) -> ClipVisConfig:
    """Read sizes from JSON."""

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}

    backbone = dict(data["backbone"])
    return ClipVisConfig(
        backbone=_BACKBONES[backbone.pop("kind")](**tuples(backbone)),
        text=TextConfig(**data["text"]),
        pixel_decoder=PixelDecoderConfig(**data["pixel_decoder"]),
        query_decoder=QueryDecoderConfig(**data["query_decoder"]),
    )


def hash_variables(variables: Variables) -> str:
    """Return a digest of a tree's names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save_model(
    folder: Path,
    config: ClipVisConfig,
    clip_vars: Variables,
    params: Variables,
    tokenizer: ClipTokenizer,
    *,
    source: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    Raises:
        InputError: The folder exists and ``overwrite`` is not set, or it cannot be written.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, but a folder is needed; choose another path")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder}: exists already; choose another --out or add --overwrite")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".clipvis-") as temporary:
            new = Path(temporary, "model")
            ocp.save(new / "variables", {"clip_vars": clip_vars, "params": params})
            tokenizer.save(new / "tokenizer")
            description = {
                "format_version": FORMAT_VERSION,
                "config": config_to_json(config),
                "text_hash": hash_variables(clip_vars["text"]),
                "source": source,
            }
            (new / "config.json").write_text(json.dumps(description, indent=2) + "\n")
            if folder.exists():
                shutil.move(folder, Path(temporary, "old"))
            new.rename(folder)
    except OSError as error:
        raise output_error(folder, error) from error


def load_model(folder: Path) -> ModelFolder:
    """Read a model folder; needs neither torch nor a network.

    Raises:
        InputError: Not a model folder, one of a newer version, or a damaged one.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder}: not a model folder (no config.json); make one with 'clipvis convert'")
    try:
        description = json.loads(config_file.read_text())
        version = description["format_version"]
        if version > FORMAT_VERSION:
            raise InputError(f"{config_file}: format_version {version} is newer than this program; update it")
        config = config_from_json(description["config"])
        text_hash, source = description["text_hash"], description["source"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{config_file}: damaged ({error!r}); convert the model again") from None
    try:
        variables = ocp.load(folder / "variables")
    except Exception as error:  # orbax and tensorstore raise many kinds for missing and damaged files
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{folder / 'variables'}: damaged ({reason}); convert the model again") from None
    model, key = ClipVis(config), jax.random.key(0)
    expected = {
        "clip_vars": jax.eval_shape(model.init_clip, key),
        "params": jax.eval_shape(model.init_decoders, key),
    }
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, expected):
        raise InputError(f"{folder}: the variables do not fit config.json; convert the model again")
    tokenizer = load_tokenizer(folder / "tokenizer", context_length=config.text.context_length)
    return ModelFolder(config, variables["clip_vars"], variables["params"], tokenizer, text_hash, source)
