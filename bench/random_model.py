"""Full-size models with random weights: for benchmarks, whose speed does not depend on values, and for the demo.

    python -m bench.random_model RN50 random_rn50.safetensors

writes a checkpoint under the authors' names, for 'clipvis convert --checkpoint'.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.weights.convert import to_state_dict
from clipvis_jax.weights.published_sizes import BACKBONES, TEXT_TOWERS

MEAN_AFTER_RELU = 0.4
"""Mean of a normal distribution after ReLU."""
MASK_THRESHOLD = 3
"""How many standard deviations of a random mask logit a pixel must reach to be part of the mask."""


def random_model(name, *, num_layers=6, dtype="float32"):
    """Return a model of a published size, its frozen CLIP and its parameters."""
    config = ClipVisConfig(BACKBONES[name], TEXT_TOWERS[name], query_decoder=QueryDecoderConfig(num_layers=num_layers))
    model = ClipVis(config, dtype=dtype)
    params = jax.jit(model.init_decoders)(jax.random.key(1))
    return model, jax.jit(model.init_clip)(jax.random.key(0)), spread_masks(params)


def spread_masks(params):
    """Change random decoders so that masks cover different parts of the picture; as drawn, most are empty or alike.

    Features and embeddings of masks become larger and centred, and their first channel a common threshold. Layers
    change queries less, so that these stay apart.
    """
    for name, layer in params["query_decoder"].items():
        if name.startswith("layer"):
            for module in (layer["cross_attention"]["out"], layer["self_attention"]["out"], layer["ffn"]["layer1"]):
                module["kernel"] *= 0.1
    features = params["pixel_decoder"]["mask_features"]
    head = params["query_decoder"]["mask_head"]["layer2"]
    kernel = features["kernel"].at[..., 0].set(0)
    bias = -MEAN_AFTER_RELU * jnp.sum(kernel, axis=(0, 1, 2))
    features |= {"kernel": kernel, "bias": bias.at[0].set(1.0)}
    spread = 8 * jnp.sqrt(jnp.mean(jnp.square(kernel)) * kernel.shape[-1])
    head |= {"kernel": 8 * head["kernel"].at[:, 0].set(0), "bias": head["bias"].at[0].set(-MASK_THRESHOLD * spread)}
    return params


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BACKBONES)
    parser.add_argument("out", help="safetensors file to write")
    parser.add_argument("--layers", type=int, default=6, help="query decoder layers")
    options = parser.parse_args()
    model, clip_vars, params = random_model(options.name, num_layers=options.layers)
    save_file(to_state_dict(model.config, *jax.tree.map(np.asarray, (clip_vars, params))), options.out)


if __name__ == "__main__":
    main()
