"""The network as a program that JAX runs without this package: StableHLO, its weights beside it, and how to call it."""

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int, UInt8

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_folder
from clipvis_jax.models.clipvis import ClipVis, Variables
from clipvis_jax.models.ops import STRIDE
from clipvis_jax.models.sizes import MAX_INPUT_SIDE
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = {
    "object_logits": "for an object, for nothing; the softmax's first is the objectness",
    "iou": "predicted mask IoU",
    "query_embed": "what is matched over time, by its cosine",
    "visual_embed": "CLIP's embedding of what the mask shows, not normalised",
    "mask_logits": "at a quarter of the input's height and width; positive inside the mask",
    "mask_area": "number of positive mask logits",
    "mask_prob_sum": "sum of the sigmoid of the positive mask logits",
}
"""Results by name, all float32, with frames and queries as their first two axes."""
_MOST_FRAMES = 1024


def export_network(
    folder: Path,
    model: ClipVis,
    clip_vars: Variables,
    params: Variables,
    *,
    size: tuple[int, int],
    batch: int | Literal["any"] = 1,
) -> None:
    """Write a folder with the network, its weights, a description and a README; whole or not at all.

    Args:
        folder: The folder; must not exist yet.
        model: The modules.
        clip_vars: The frozen CLIP.
        params: The trained decoders.
        size: Height and width of the network's input, multiples of 32.
        batch: Frames per call, or "any".

    Raises:
        InputError: A number is out of range, a package is missing, or the folder exists or cannot be written.
    """
    if not all(STRIDE <= side <= MAX_INPUT_SIDE and side % STRIDE == 0 for side in size):
        raise InputError(
            f"size {size[0]}x{size[1]}: height and width must be multiples of {STRIDE}, from {STRIDE} to "
            f"{MAX_INPUT_SIDE}; pad frames at the right and bottom"
        )
    if batch != "any" and not 1 <= batch <= _MOST_FRAMES:
        raise InputError(f"batch {batch}: must be between 1 and {_MOST_FRAMES} frames, or any")
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("jax.export needs the package flatbuffers; pip install 'clipvis-jax[export]'")
    # Names are given by comparing embeddings, for which the text encoder is not needed.
    used = {name: clip_vars[name] for name in ("trunk", "visual_head", "logit_scale")}
    weights = {
        name: np.asarray(array) for name, array in flatten_dict({"clip": used, "params": params}, sep="/").items()
    }
    embed_dim = model.config.text.embed_dim

    def network(
        weights: dict[str, Array], frames_u8: UInt8[Array, "b h w 3"], valid_size: Int[Array, " 2"]
    ) -> dict[str, Array]:
        variables = unflatten_dict(weights, sep="/")
        no_names = TextClassifier(jnp.zeros((1, embed_dim)), jnp.zeros(1, jnp.int32), jnp.int32(1))
        predictions = model.predict_frames(variables["clip"], variables["params"], no_names, frames_u8, valid_size)
        return {name: getattr(predictions, name) for name in OUTPUTS}

    frames = jax.ShapeDtypeStruct((jax.export.symbolic_shape("b")[0] if batch == "any" else batch, *size, 3), jnp.uint8)
    with atomic_folder(folder) as temporary:
        exported = jax.export.export(jax.jit(network), platforms=PLATFORMS)(
            {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()},
            frames,
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )
        (temporary / "network.jaxexport").write_bytes(exported.serialize())
        np.savez(temporary / "weights.npz", **weights)  # type: ignore[arg-type]  # of allow_pickle, says mypy
        results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        description = {
            "written_by": f"clipvis_jax {__version__}, jax {jax.__version__}",
            "platforms": list(PLATFORMS),
            "inputs": {
                "weights": "the arrays of weights.npz, by name",
                "frames_u8": _describe(frames),
                "valid_size": "int32[2]",
            },
            "outputs": {name: f"{_describe(result)}: {OUTPUTS[name]}" for name, result in results.items()},
            "class_probability_scale": float(np.minimum(np.exp(clip_vars["logit_scale"]), 100)),
        }
        (temporary / "network.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(
            _readme(description, size, 2 if batch == "any" else batch), encoding="utf-8"
        )


def _describe(array: Any) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


def _readme(description: dict[str, Any], size: tuple[int, int], batch: int) -> str:
    rows = "\n".join(f"- `{name}`: {text}" for name, text in description["outputs"].items())
    return f"""# A CLIP-VIS network

`network.jaxexport` is StableHLO in the form of `jax.export`, for {", ".join(description["platforms"])}.
JAX with the package flatbuffers runs it:

```python
import jax
import jax.export
import numpy as np

with open("network.jaxexport", "rb") as file:
    network = jax.jit(jax.export.deserialize(file.read()).call)
with np.load("weights.npz") as file:
    weights = jax.device_put(dict(file))  # once; on the device from then on

frames_u8 = np.zeros(({batch}, {size[0]}, {size[1]}, 3), np.uint8)
valid_size = np.array([{size[0]}, {size[1]}], np.int32)
outputs = network(weights, frames_u8, valid_size)
```

`frames_u8` are RGB frames, resized with an antialiased bilinear filter (Pillow's) and padded at the right and bottom;
`valid_size` is their height and width before padding. Nothing has to be normalised. Results:

{rows}

A query's class probabilities are the softmax of {description["class_probability_scale"]:g} times the cosines of its
`visual_embed` with the class names' CLIP embeddings, which `segmenter.encode_classes([...]).embeddings` of clipvis_jax
gives; of synonyms the closest counts.
"""
