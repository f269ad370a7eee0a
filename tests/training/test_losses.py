"""Losses against the authors' numbers with their draws, and what must not change them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from golden_training import CASES, CONFIG, LAYERS, load_case
from tiny import tiny_model

from clipvis_jax.errors import InputError
from clipvis_jax.models.structs import QueryPrediction
from clipvis_jax.training.losses import (
    Loss,
    LossConfig,
    combine_sums,
    draw_points,
    loss_sums,
    mask_loss,
    match_layers,
    point_keys,
    stack_layers,
)
from clipvis_jax.training.matching import MatchingConfig
from clipvis_jax.training.structs import Ratio


@functools.cache
def predictions_of(name):
    """Return the stacked predictions and the mask features: the authors' own where they are stored."""
    if name != "video_2frames":
        return stored_predictions()
    model, clip_vars, params = tiny_model("rn")
    images = load_case(name).batch.images_u8

    @jax.jit
    def predict(clip_vars, params):
        features = model.extract_features(clip_vars, images, jnp.array(images.shape[1:3]))
        pixels = model.decode_pixels(params, features)
        return stack_layers(model.decode_queries(params, pixels)), pixels.mask_features

    return predict(clip_vars, params)


def stored_predictions():
    """Return the stored mask logits as mask features of unit embeddings; layers take turns among the features."""
    arrays = golden("tiny_train_shared")
    stored = [
        [arrays[f"L{LAYERS.index(layer)}/{name}"] for layer in range(len(LAYERS))]
        for name in ("pred_object_logits", "pred_ious", "pred_masks")
    ]
    object_logits, ious, masks = map(np.stack, stored)
    layers, images, queries = masks.shape[:3]
    units = np.eye(layers * queries, dtype=np.float32).reshape(layers, 1, queries, -1)
    predictions = QueryPrediction(
        object_logits=object_logits,
        iou=ious[..., 0],
        mask_embed=np.broadcast_to(units, (layers, images, *units.shape[2:])),
        query_embed=np.zeros((layers, images, queries, 1), np.float32),
    )
    features = masks.transpose(1, 3, 4, 0, 2).reshape(images, *masks.shape[3:], -1)
    return jax.tree.map(jnp.asarray, (predictions, features))


jitted_loss_sums = jax.jit(loss_sums, static_argnums=4)


def batch_losses(name, targets, randomness, config=CONFIG):
    sums = jitted_loss_sums(*predictions_of(name), targets, randomness, config)
    return combine_sums(jax.tree.map(lambda x: x.sum(0), sums), config)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["device", "host"])
def test_matches_equal_the_goldens(name, method):
    case = load_case(name)
    config = dataclasses.replace(CONFIG, matching=MatchingConfig(method=method))
    matches = jax.jit(match_layers, static_argnums=4)(*predictions_of(name), case.batch.targets, case.draws, config)
    np.testing.assert_array_equal(matches.matched, case.matches.matched)
    np.testing.assert_array_equal(matches.query, case.matches.query)


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_goldens(name):
    case = load_case(name)
    total, losses, matched_iou = batch_losses(name, case.batch.targets, case.draws)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), losses, case.losses)
    np.testing.assert_allclose(total, case.arrays["total_loss"], rtol=1e-5)
    assert np.all((matched_iou >= 0) & (matched_iou <= 1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slots"), [("image", 5), ("image_zero", 3)])
def test_padded_targets_change_nothing(name, slots):
    keys = point_keys(jax.random.key(3), jnp.arange(2), 4)
    few, many = (batch_losses(name, load_case(name, count).batch.targets, keys) for count in (slots, 14))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), few, many)


def test_a_batch_without_instances_has_an_object_loss_alone():
    case = load_case("image")
    targets = case.batch.targets.replace(valid=jnp.zeros_like(case.batch.targets.valid))
    total, losses, matched_iou = batch_losses("image", targets, case.draws)
    assert np.isfinite(total)
    assert np.all(losses.pop("object") > 0)
    assert not np.any(list(losses.values()))
    assert not np.any(matched_iou)


def test_more_targets_than_queries():
    case = load_case("image")
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=1), case.batch.targets)
    assert repeated.valid.sum() > 20
    total, losses, _ = batch_losses("image", repeated, point_keys(jax.random.key(0), jnp.arange(2), 4))
    assert np.isfinite(total)
    assert np.all(np.stack(list(losses.values())) > 0)


@pytest.mark.slow
def test_images_do_not_see_each_other():
    case = load_case("image")
    predictions, features = predictions_of("image")
    both = jitted_loss_sums(predictions, features, case.batch.targets, case.draws, CONFIG)
    second = jax.tree.map(lambda x: x[:, 1:], (predictions, case.draws))
    targets = jax.tree.map(lambda x: x[1:], case.batch.targets)
    alone = jitted_loss_sums(second[0], features[1:], targets, second[1], CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1:], rtol=1e-5), alone, both)


def test_no_loss_has_a_gradient_through_choices():
    """Points, matches and IoU targets are constants: only what the losses are written in gets a gradient."""
    case = load_case("image")
    predictions, features = predictions_of("image")

    def total(mask_embed, without):
        changed = predictions.replace(mask_embed=mask_embed)
        terms = {name: term for name, term in CONFIG.terms.items() if name not in without}
        config = dataclasses.replace(CONFIG, terms=terms)
        sums = loss_sums(changed, features, case.batch.targets, case.draws, config)
        return combine_sums(jax.tree.map(lambda x: x.sum(0), sums), config)[0]

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    assert np.any(gradient(predictions.mask_embed, ()))
    # Masks enter objectness through the matching and the IoU loss through its target.
    assert not np.any(gradient(predictions.mask_embed, ("mask", "dice")))


def size_loss(image, config):
    """A loss of a researcher's own: matched masks should be as large as their targets."""
    del config
    difference = jax.nn.sigmoid(image.point_logits).mean(1) - image.point_masks.mean(1)
    matched = image.matches.matched
    return Ratio(jnp.sum(difference**2, where=matched), jnp.sum(matched, dtype=jnp.float32))


def test_a_loss_of_ones_own_is_a_function_and_an_entry():
    case = load_case("image")
    config = dataclasses.replace(CONFIG, terms={**CONFIG.terms, "size": Loss(size_loss, weight=3.0)})
    total, losses, _ = batch_losses("image", case.batch.targets, case.draws, config)
    expected, theirs, _ = batch_losses("image", case.batch.targets, case.draws)
    own = losses.pop("size")
    assert own.shape == (4,)
    assert np.all((own > 0) & (own < 1))
    jax.tree.map(np.testing.assert_array_equal, losses, theirs)
    np.testing.assert_allclose(total, expected + 3 * own.sum(), rtol=1e-6)


def test_draws_depend_on_key_image_and_layer_alone():
    config = LossConfig(num_points=8)
    keys = point_keys(jax.random.key(0), jnp.arange(4), 3)
    tail = point_keys(jax.random.key(0), jnp.arange(2, 4), 3)
    np.testing.assert_array_equal(jax.random.key_data(keys[:, 2:]), jax.random.key_data(tail))
    assert len(np.unique(jax.random.key_data(keys).reshape(12, -1), axis=0)) == 12
    other = point_keys(jax.random.key(1), jnp.arange(4), 3)
    assert not np.any(np.all(jax.random.key_data(keys) == jax.random.key_data(other), axis=-1))
    few, many = (draw_points(keys[0, 0], slots, config) for slots in (2, 5))
    np.testing.assert_array_equal(few.candidates, many.candidates[:2])
    np.testing.assert_array_equal(few.random, many.random[:2])
    assert few.candidates.shape == (2, 24, 2)
    assert few.random.shape == (2, 2, 2)


@pytest.mark.parametrize(
    "wrong",
    [{"num_points": 0}, {"oversampling": 0.5}, {"uncertain_share": 1.5}, {"no_object_weight": -3.0}],
    ids=lambda x: next(iter(x)),
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(InputError, match=rf"losses.{next(iter(wrong))}"):
        LossConfig(**wrong)


def test_wrong_losses_are_named():
    with pytest.raises(InputError, match=r"losses.terms.mask.weight -1.0: give 0 or more"):
        LossConfig(terms={"mask": Loss(mask_loss, -1.0)})
    with pytest.raises(InputError, match=r"losses.terms.matched_iou: is the name of a metric"):
        LossConfig(terms={"matched_iou": Loss(mask_loss)})
