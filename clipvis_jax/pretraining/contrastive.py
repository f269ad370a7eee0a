"""CLIP's loss: embeddings of pictures and texts that belong together are close, all others are far."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clipvis_jax.models import ops


def contrastive_loss(
    visual: Float[Array, "n e"],
    text: Float[Array, "n e"],
    logit_scale: Float[Array, ""],
    names: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    more_text: Float[Array, "k e"] | None = None,
    more_names: Int[Array, " k"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return CLIP's symmetric cross entropy over all pairs, and how often the closest text of a pair is a right one.

    Args:
        visual: Embeddings of pictures or regions, not normalised.
        text: Embeddings of their texts, not normalised.
        logit_scale: The temperature as a factor.
        names: What each pair shows, as a number. Pairs of the same number are all right for each other: the right
            answer is then the uniform distribution over them.
        valid: False for places that hold no pair; they take no part.
        more_text: Embeddings of texts without a picture, among which pictures must find theirs as well.
        more_names: What these texts speak of, as in ``names``.

    Source: CLIP (arXiv 2103.00020), figure 3, and for several right answers UniCL (arXiv 2204.03610).
    """
    if more_text is None or more_names is None:
        more_text, more_names = text[:0], names[:0]
    texts = jnp.concatenate([text, more_text])
    text_names = jnp.concatenate([names, more_names])
    is_text = jnp.concatenate([valid, jnp.ones(len(more_names), bool)])
    logits = logit_scale * jnp.matmul(_normalize(visual), _normalize(texts).T, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.where(valid[:, None] & is_text[None, :], logits, -1e9)
    right = (names[:, None] == text_names[None, :]) & valid[:, None] & is_text[None, :]
    num_pairs = jnp.maximum(jnp.sum(valid), 1)

    def cross_entropy(logits: Float[Array, "n m"], right: Bool[Array, "n m"]) -> Float[Array, ""]:
        weights = right / jnp.maximum(jnp.sum(right, axis=1, keepdims=True), 1)
        return -jnp.sum(weights * jax.nn.log_softmax(logits, axis=1)) / num_pairs

    pairs, right_pairs = logits[:, : len(names)], right[:, : len(names)]
    loss = (cross_entropy(logits, right) + cross_entropy(pairs.T, right_pairs.T)) / 2
    closest = jnp.take_along_axis(right_pairs, jnp.argmax(pairs, axis=1)[:, None], axis=1)[:, 0]
    return loss, jnp.sum(closest & valid) / num_pairs


def box_masks(boxes: Float[Array, "b n 4"], size: tuple[int, int]) -> Bool[Array, "b n h w"]:
    """Return the cells of a grid whose centres lie in each box, and always the cell that the box's centre lies in.

    Args:
        boxes: Left, top, right and bottom, as fractions (0..1) of the image.
        size: Height and width of the grid.
    """
    left, top, right, bottom = (boxes[..., i, None] for i in range(4))

    def covered(low: Float[Array, "b n 1"], high: Float[Array, "b n 1"], count: int) -> Bool[Array, "b n k"]:
        cells = jnp.arange(count)
        centres = (cells + 0.5) / count
        middle = jnp.clip(jnp.floor((low + high) / 2 * count), 0, count - 1)
        return ((centres >= low) & (centres <= high)) | (cells == middle)

    height, width = size
    return covered(top, bottom, height)[..., :, None] & covered(left, right, width)[..., None, :]


def shrink_boxes(boxes: Float[Array, "b n 4"], share: Float[Array, "b n"]) -> Float[Array, "b n 4"]:
    """Shrink boxes about their centres to a share of their sides."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = (boxes[..., 2:] - boxes[..., :2]) / 2 * share[..., None]
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def upscale(images_u8: Array, size: tuple[int, int]) -> Array:
    """Resize images (uint8) as frames are resized before they go through the network."""
    return jnp.round(ops.resize_bilinear(images_u8.astype(jnp.float32), size)).astype(jnp.uint8)


def _normalize(x: Float[Array, "n e"]) -> Float[Array, "n e"]:
    x = x.astype(jnp.float32)
    # The root of a sum that may be 0 has no finite gradient there.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
