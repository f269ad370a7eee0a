"""Open a model folder as a segmenter."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipvis_jax.io.files import cache_folder

# The package imports this module at once, and JAX takes seconds: `clipvis --help` should not.
if TYPE_CHECKING:
    from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
    from clipvis_jax.weights.model_folder import ModelFolder


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next start of the same size skips compiling.

    A setting of JAX for the whole process, so it is left to programs to choose; the command line does. A folder that
    was set before, by ``JAX_COMPILATION_CACHE_DIR``, stays.
    """
    import jax  # noqa: PLC0415

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX sets its options on the fly
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def load(
    folder: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    config: "InferenceConfig | None" = None,
) -> "Segmenter":
    """Open a model that ``clipvis convert`` or training wrote.

    Args:
        folder: The model folder, an archive of it by ``clipvis pack``, or ``hf://org/name``, ``hf://org/name@revision``
            for one on the Hugging Face hub.
        dtype: Type of the computation. ``float32`` equals the authors' results; ``bfloat16`` halves the memory of
            activations and comes without a promise of parity.
        config: How videos are run: input size, window, association, scores. Where it has no size, that of the model
            folder is taken.

    Raises:
        InputError: Not a model, a damaged one, or not to be had from the hub.
    """
    from clipvis_jax.weights.model_folder import load_model  # noqa: PLC0415

    return make_segmenter(load_model(folder), dtype=dtype, config=config)


def make_segmenter(
    model: "ModelFolder",
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    config: "InferenceConfig | None" = None,
) -> "Segmenter":
    """Make the content of a model folder ready to run; see ``load``."""
    from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter  # noqa: PLC0415
    from clipvis_jax.models.clipvis import ClipVis  # noqa: PLC0415

    config = config or InferenceConfig()
    if config.size is None:
        defaults = model.run_defaults
        config = dataclasses.replace(
            config, size=defaults.size, max_size=config.max_size if defaults.size is None else defaults.max_size
        )
    return Segmenter(
        ClipVis(model.config, dtype=dtype),
        model.clip_vars,
        model.params,
        tokenizer=model.tokenizer,
        config=config,
        cache_dir=cache_folder() / "text",
        source=model.source,
        background=model.run_defaults.background,
    )
