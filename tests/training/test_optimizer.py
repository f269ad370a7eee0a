"""The optimiser against PyTorch's AdamW and the authors' settings; rules over paths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import golden
from tiny import tiny_model

from clipvis_jax.loop.path_rules import apply_rules
from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.training.optimizer import DECAY_RULES, OptimizerConfig, make_optimizer, make_schedule, scale_to_batch
from clipvis_jax.weights.torch_names import leaf_paths, torch_entry


def test_the_same_parameters_decay_as_in_the_authors_code():
    model, _, params = tiny_model("rn")
    arrays = golden("tiny_train_image")
    expected = dict(zip(arrays["all_grad_names"], arrays["weight_decay"] > 0, strict=True))
    ours = {}
    for path, decays in leaf_paths(apply_rules(params, DECAY_RULES)).items():
        key = torch_entry(path, leaf_paths(params)[path].shape, model.config).key
        assert ours.setdefault(key, decays) == decays
    assert ours == expected


@pytest.mark.parametrize("name", ["RN50", "convnext_base_w"])
def test_the_rules_cover_the_published_models(name):
    params = jax.eval_shape(ClipVis(ClipVisConfig(backbone=BACKBONES[name])).init_decoders, jax.random.key(0))
    decays = leaf_paths(apply_rules(params, DECAY_RULES))
    assert decays["pixel_decoder/level_embedding"]
    assert not decays["query_decoder/level_embedding"]
    assert not decays["query_decoder/layer8/ffn_norm/bias"]


def test_rules_that_do_not_fit_are_named():
    tree = {"a": {"kernel": 1}, "b": {"bias": 2}}
    assert apply_rules(tree, [(".*/kernel", "x"), (".*", "y")]) == {"a": {"kernel": "x"}, "b": {"bias": "y"}}
    with pytest.raises(ValueError, match="no rule covers the parameter b/bias"):
        apply_rules(tree, [(".*/kernel", "x")])
    with pytest.raises(ValueError, match=r"no parameter is covered by the rule \.\*/scale"):
        apply_rules(tree, [(".*/scale", "z"), (".*", "y")])


@pytest.mark.parametrize("gradient_scale", [1e-5, 1e2], ids=["not clipped", "clipped"])
def test_updates_equal_pytorch(gradient_scale):
    torch = pytest.importorskip("torch")
    _, _, params = tiny_model("rn")
    paths = leaf_paths(params)
    decays = leaf_paths(apply_rules(params, DECAY_RULES))
    config = OptimizerConfig(drop_steps=(2, 4), learning_rate=1e-2)
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    weights = {path: torch.tensor(np.asarray(x), requires_grad=True) for path, x in paths.items()}
    groups = [
        {"params": [weights[path] for path in paths if decays[path] == decay], "weight_decay": 0.05 * decay}
        for decay in (True, False)
    ]
    reference = torch.optim.AdamW(groups, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(reference, config.drop_steps, config.drop_factor)
    rng = np.random.default_rng(0)
    for _ in range(5):
        gradients = {p: (gradient_scale * rng.normal(size=x.shape)).astype(np.float32) for p, x in paths.items()}
        updates, state = update(
            jax.tree.unflatten(jax.tree.structure(params), [jnp.asarray(gradients[path]) for path in paths]),
            state,
            params,
        )
        params = optax.apply_updates(params, updates)
        for path, weight in weights.items():
            weight.grad = torch.tensor(gradients[path])
        torch.nn.utils.clip_grad_norm_(weights.values(), config.clip_norm)
        reference.step()
        schedule.step()
    for path, x in leaf_paths(params).items():
        np.testing.assert_allclose(x, weights[path].detach(), atol=2e-6, err_msg=path)


def test_schedule():
    learning_rate = make_schedule(OptimizerConfig())
    for step, expected in ((0, 1e-4), (9, 1e-4), (327_777, 1e-4), (327_778, 1e-5), (355_091, 1e-5), (355_092, 1e-6)):
        np.testing.assert_allclose(learning_rate(step), expected, rtol=1e-6)
    rising = make_schedule(OptimizerConfig(warmup_factor=0.1, warmup_steps=10))
    np.testing.assert_allclose(rising(0), 1e-5, rtol=1e-6)
    np.testing.assert_allclose(rising(5), 5.5e-5, rtol=1e-6)
    np.testing.assert_allclose(rising(10), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(make_schedule(OptimizerConfig(warmup_steps=0, drop_steps=()))(10**6), 1e-4, rtol=1e-6)


def test_scaling_keeps_the_number_of_images():
    config = OptimizerConfig()
    assert scale_to_batch(config, batch_size=16) == config
    scaled = scale_to_batch(config, batch_size=256)
    assert scaled.learning_rate == pytest.approx(1.6e-3)
    assert (scaled.num_steps, scaled.drop_steps, scaled.warmup_steps) == (23047, (20486, 22193), 1)
    assert scale_to_batch(config, batch_size=256, rule="sqrt").learning_rate == pytest.approx(4e-4)
    assert scale_to_batch(config, batch_size=8).drop_steps == (655_556, 710_184)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
        {"beta2": 1.0},
        {"drop_steps": (5, 3)},
        {"drop_steps": (5, 8), "num_steps": 7},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(OptimizerConfig(), **wrong)
