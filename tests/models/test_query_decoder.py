"""The two ways in which the mask-IoU head of the authors' checkpoints ends."""

import jax
import numpy as np
import pytest

from clipvis_jax.inference.scores import ScoreConfig, ScoreSums, image_scores
from clipvis_jax.models.query_decoder import QueryDecoder, QueryDecoderConfig

SIZES = {"num_queries": 6, "num_layers": 1, "dim": 32, "mask_dim": 32, "ffn_dim": 8}


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", lambda x: np.maximum(x, 0)), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)))]
)
def test_the_iou_head_ends_as_configured(activation, function):
    decoder = QueryDecoder(QueryDecoderConfig(**SIZES, iou_activation=activation))
    queries = jax.random.normal(jax.random.key(0), (2, 6, 32))
    variables = decoder.init(jax.random.key(1), queries, method="predict")
    found = decoder.apply(variables, queries, method="predict")
    x = np.asarray(found.query_embed, np.float64)
    head = variables["params"]["iou_head"]
    for index in range(3):
        layer = head[f"layer{index}"]
        x = (np.maximum(x, 0) if index else x) @ np.asarray(layer["kernel"], np.float64) + layer["bias"]
    assert (x < 0).any()
    assert (x > 0).any()
    np.testing.assert_allclose(found.iou, function(x[..., 0]), atol=1e-5)


def test_scores_take_what_a_relu_gives():
    """As the authors' code did, they take roots of products: 0 for an IoU of 0, and more than 1 is possible."""
    iou, probs, certain = np.array([0.0, 4.0]), np.array([[0.9], [0.81]]), np.array([[60.0, 0.0]] * 2)
    np.testing.assert_allclose(image_scores(probs, iou, certain, ScoreConfig()), [[0], [1.8]])
    video = ScoreSums.zeros(2, 1, 3, ScoreConfig()).add(probs, iou, certain, np.ones((2, 3))).scores()
    np.testing.assert_allclose(video, [[0], [np.sqrt(1.8)]])
