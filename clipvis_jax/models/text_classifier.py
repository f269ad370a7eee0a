"""Visual embeddings to class logits, given the text embeddings of a vocabulary."""

from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


@no_type_check  # of the fields at run time, which fails where JAX's tree functions put placeholders into them
@flax.struct.dataclass
class TextClassifier:
    """CLIP text embeddings of a vocabulary, padded: vocabularies of similar size share one compilation.

    ``embeddings`` has one row of unit length per synonym, in class order; the padding rows are 0.
    ``class_index`` is the class of each row, ascending; padding rows belong to class ``s - 1``, which is
    beyond the real classes whenever there is padding. ``num_classes`` is an array, not a static field, so
    that it may change without compiling again.
    """

    embeddings: Float[Array, "s e"]
    class_index: Int32[Array, " s"]
    num_classes: Int32[Array, ""]


def score_classes(
    classifier: TextClassifier, visual: Float[Array, "... e"], logit_scale: Float[Array, ""] | float
) -> Float[Array, "... c"]:
    """Score visual embeddings against every class: scaled cosine to the class's closest synonym.

    Args:
        classifier: The vocabulary; its number of padded synonyms ``s`` is also the number ``c`` of columns.
        visual: CLIP image embeddings, not normalised; computed in float32 whatever their type.
        logit_scale: CLIP's temperature as a factor, exp already taken and limited to 100.

    Returns:
        Logits, -inf in the columns beyond the real classes: their softmax is 0.

    Source: CLIP-VIS (arXiv 2403.12455), weighted open-vocabulary classification; the maximum over synonyms,
    before the softmax, is in the authors' code only.
    """
    visual = visual.astype(jnp.float32)
    # Matches the authors' code: F.normalize, by which an embedding of zeros stays zeros.
    visual = visual / jnp.maximum(jnp.linalg.norm(visual, axis=-1, keepdims=True), 1e-12)
    # A TPU's default precision would round away, times the scale of 100, what tells similar classes apart.
    cosines = jnp.einsum("se,...e->s...", classifier.embeddings, visual, precision=jax.lax.Precision.HIGHEST)
    num_columns = cosines.shape[0]
    best = jax.ops.segment_max(cosines, classifier.class_index, num_segments=num_columns, indices_are_sorted=True)
    logits = logit_scale * jnp.moveaxis(best, 0, -1)
    return jnp.where(jnp.arange(num_columns) < classifier.num_classes, logits, -jnp.inf)
