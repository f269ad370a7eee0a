"""What devices send each other where a batch of frames is sharded over them."""

import jax
import jax.numpy as jnp
from tiny import tiny_model

from clipvis_jax.compilation.hlo_collectives import find_collectives
from clipvis_jax.loop.sharding import batch_sharding, make_mesh, replicated
from clipvis_jax.models.text_classifier import TextClassifier


def test_devices_predict_their_own_frames_and_send_nothing():
    model, clip_vars, params = tiny_model("rn")
    mesh = make_mesh()
    assert mesh.size == 8
    by_frame, everywhere = batch_sharding(mesh), replicated(mesh)
    predict = jax.jit(
        model.predict_frames,
        in_shardings=(everywhere, everywhere, everywhere, by_frame, everywhere),
        out_shardings=by_frame,
    )
    classifier = TextClassifier(
        embeddings=jnp.zeros((128, model.config.text.embed_dim)),
        class_index=jnp.arange(128, dtype=jnp.int32),
        num_classes=jnp.int32(128),
    )
    frames = jax.ShapeDtypeStruct((8, 64, 96, 3), jnp.uint8)
    lowered = predict.lower(clip_vars, params, classifier, frames, jnp.array([64, 96]))
    assert find_collectives(lowered.compile().as_text()) == ()
