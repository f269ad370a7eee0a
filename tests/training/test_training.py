"""The training step: equal to the authors' step, and the same however it is computed."""

import functools
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_training import CASES, CONFIG, load_case
from tiny import one_layer_model, tiny_model

from clipvis_jax.errors import InputError
from clipvis_jax.loop.sharding import make_mesh, parameter_shardings, put_batch
from clipvis_jax.training import step as step_module
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.matching import MatchingConfig
from clipvis_jax.training.optimizer import OptimizerConfig, make_optimizer
from clipvis_jax.training.step import TrainingConfig, check_matcher, first_non_finite, init_state, make_train_step
from clipvis_jax.training.structs import StepMetrics, Targets, TrainingBatch
from clipvis_jax.weights.convert import to_state_dict
from clipvis_jax.weights.torch_names import leaf_paths

STEPS, IMAGES, SIZE = 4, 8, 64

recording = optax.trace(decay=0.0)
"""Keeps the last gradient in its state."""


@functools.cache
def recorded_step():
    """Return a state, and a step that takes the draws as well: compiled once for all cases of the same shapes."""
    model, _, params = tiny_model("rn")
    mesh, optimizer = make_mesh(devices=jax.devices()[:1]), optax.chain(recording, make_optimizer(OptimizerConfig()))

    def step(state, clip_vars, batch, draws):
        return make_train_step(model, TrainingConfig(losses=CONFIG), optimizer, mesh, draws=draws)(
            state, clip_vars, batch
        )

    return init_state(model, optimizer, mesh, seed=0, params=params), jax.jit(step)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "video_2frames" else []) for name in CASES]
)
def test_a_step_equals_the_authors(name):
    model, clip_vars, _ = tiny_model("rn")
    case = load_case(name)
    state, step = recorded_step()
    state, metrics = step(state, clip_vars, case.batch, case.draws)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), metrics.losses, case.losses)
    np.testing.assert_allclose(metrics.total_loss, case.arrays["total_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, case.arrays["grad_norm"], rtol=1e-5)
    gradients = to_state_dict(model.config, clip_vars, state.opt_state[0].trace)
    after = to_state_dict(model.config, clip_vars, state.params)
    compared = [key.removeprefix("grad/") for key in case.arrays if key.startswith("grad/")]
    assert len(compared) >= 12
    for key in compared:
        expected = case.arrays[f"grad/{key}"]
        np.testing.assert_allclose(gradients[key], expected, atol=1e-4 * np.abs(expected).max(), err_msg=key)
        if f"after/{key}" in case.arrays:
            np.testing.assert_allclose(after[key], case.arrays[f"after/{key}"], atol=1e-6, err_msg=key)
    if "all_grad_norms" in case.arrays:
        for key, norm in zip(case.arrays["all_grad_names"], case.arrays["all_grad_norms"], strict=True):
            np.testing.assert_allclose(np.linalg.norm(gradients[key]), norm, rtol=1e-4, err_msg=key)


@functools.cache
def numpy_batch():
    """Draw images with up to four rectangles each; the last image has none."""
    rng = np.random.default_rng(0)
    masks = np.zeros((IMAGES, 4, SIZE, SIZE), bool)
    valid = rng.permuted(np.arange(IMAGES))[:, None] % 5 > np.arange(4)
    valid[-1] = False
    for image, slot in np.argwhere(valid):
        top, left = rng.integers(0, SIZE - 16, 2)
        height, width = rng.integers(8, 32, 2)
        masks[image, slot, top : top + height, left : left + width] = True
    return TrainingBatch(
        images_u8=rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8),
        targets=Targets(masks_packed=np.packbits(masks, axis=-1), valid=valid, absent=np.zeros_like(valid)),
    )


@functools.cache
def training_of(*, devices=1, fsdp=1, matching="device", **settings):
    """Return the mesh, the optimizer and the step of a training, which compiles once for all tests."""
    mesh, optimizer = make_mesh(fsdp, jax.devices()[:devices]), make_optimizer(OptimizerConfig())
    losses = LossConfig(num_points=64, matching=MatchingConfig(method=matching))
    return (
        mesh,
        optimizer,
        make_train_step(one_layer_model()[0], TrainingConfig(losses=losses, **settings), optimizer, mesh),
    )


@functools.cache
def train(*, repeat=0, **settings):
    """Train a tiny model for a few steps; return losses [step, layer, kind] and the last state."""
    del repeat
    model, clip_vars, params = one_layer_model()
    mesh, optimizer, step = training_of(**settings)
    state = init_state(model, optimizer, mesh, seed=7, params=params)
    batch = put_batch(numpy_batch(), mesh)
    history = []
    for _ in range(STEPS):
        state, metrics = step(state, clip_vars, batch)
        assert first_non_finite(metrics) is None
        history.append(np.stack([metrics.losses[name] for name in LossConfig().terms], axis=-1))
    return np.stack(history), jax.device_get(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": 8, "fsdp": 4},
        {"matching": "host", "remat": "layers"},
        {"devices": 4, "accumulation": 2, "remat": "everything"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_how_it_is_computed_changes_nothing(changes):
    losses, state = train()
    other_losses, other_state = train(**changes)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, other_state.params)


@pytest.mark.slow
def test_two_runs_are_bit_identical_and_learn():
    (losses, state), (other_losses, other_state) = train(), train(repeat=1)
    np.testing.assert_array_equal(losses, other_losses)
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert int(state.step) == STEPS


@pytest.mark.slow
def test_bfloat16_is_close_and_keeps_float32_parameters():
    losses, _ = train()
    other_losses, state = train(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(other_losses[0, 0], losses[0, 0], rtol=0.1)


@pytest.mark.slow
def test_every_decoder_leaf_gets_a_gradient_and_clip_none():
    model, clip_vars, _ = one_layer_model()
    params = train()[1].params  # at the beginning some are behind zeros
    mesh = make_mesh(devices=jax.devices()[:1])
    setup = step_module._Setup(model, TrainingConfig(losses=LossConfig(num_points=64)), mesh)
    images = (put_batch(numpy_batch(), mesh), jnp.arange(IMAGES), None)

    def loss(params, clip_vars):
        return step_module._batch_loss(setup, params, clip_vars, images, jax.random.key(0))[0]

    of_decoders, of_clip = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, clip_vars)
    for path, gradient in leaf_paths(of_decoders).items():
        # A constant added to all keys changes no attention.
        if not path.endswith("key/bias"):
            assert np.any(gradient), path
    assert not any(np.any(x) for x in jax.tree.leaves(of_clip))


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_no_parameter_and_is_named():
    model, clip_vars, params = one_layer_model()
    mesh, optimizer, step = training_of()
    broken = jax.tree.map(lambda x: x, params)
    broken["query_decoder"]["iou_head"]["layer2"]["bias"] = jnp.full(1, jnp.nan)
    state = init_state(model, optimizer, mesh, seed=0, params=broken)
    before = jax.device_get(state)
    state, metrics = step(state, clip_vars, put_batch(numpy_batch(), mesh))
    assert first_non_finite(metrics) == "in layer 0 (of 0..1) loss 'iou' is nan"
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt_state), (state.params, state.opt_state))
    assert int(state.step) == 1


def test_all_losses_of_the_first_layer_that_are_not_finite_are_named():
    fine = np.ones(3, np.float32)
    losses = {"mask": np.array([1, np.nan, 1], np.float32), "dice": np.array([1, np.inf, np.nan], np.float32)}
    metrics = StepMetrics(np.float32(1), losses | {"object": fine}, fine, np.float32(np.nan))
    assert first_non_finite(metrics) == "in layer 1 (of 0..2) loss 'mask' is nan, loss 'dice' is inf"
    metrics = StepMetrics(np.float32(1), {"object": fine}, fine, np.float32(np.nan))
    assert "the norm of the gradient is nan" in first_non_finite(metrics)


def test_a_process_has_a_stretch_of_the_batch():
    """On pods the order of chips, and of their ids, is not that of processes."""
    chips = [Mock(spec=jax.Device, id=i, process_index=(i // 2) % 3) for i in range(12)]
    for fsdp in (1, 2):
        devices = make_mesh(fsdp, chips).devices
        assert devices.shape == (12 // fsdp, fsdp)
        order = [(chip.process_index, chip.id) for chip in devices.flat]
        assert order == sorted(order)


def test_a_batch_that_does_not_divide_is_refused():
    model, clip_vars, _ = one_layer_model()
    optimizer, batch = make_optimizer(OptimizerConfig()), numpy_batch()
    with pytest.raises(InputError, match=r"fsdp 3: must divide the number of devices, which is 8"):
        make_mesh(3)
    with pytest.raises(InputError, match=r"batch of 6 images: must be a multiple of the 8 devices"):
        put_batch(jax.tree.map(lambda x: x[:6], batch), make_mesh())
    mesh = make_mesh()
    state = init_state(model, optimizer, mesh, seed=0)
    step = make_train_step(model, TrainingConfig(accumulation=2), optimizer, mesh)
    with pytest.raises(InputError, match=r"data.batch_size 8: .* multiple of 16 \(8 devices x 2 accumulated parts\)"):
        step(state, clip_vars, put_batch(batch, mesh))
    with pytest.raises(ValueError, match="accumulation 0"):
        TrainingConfig(accumulation=0)


def test_the_host_does_not_match_for_several_cpu_devices_of_a_process():
    """With fewer threads than devices plus one, realistic sizes wait for ever."""
    model, _, _ = one_layer_model()
    config = TrainingConfig(losses=LossConfig(matching=MatchingConfig("host")))
    message = r"^step.losses.matching.method host: the 8 CPU devices .*; choose device"
    with pytest.raises(InputError, match=message):
        make_train_step(model, config, make_optimizer(OptimizerConfig()), make_mesh())
    check_matcher("host", make_mesh(devices=jax.devices()[:1]))
    check_matcher("device", make_mesh())

    def mesh(platform, processes):
        return make_mesh(
            devices=[Mock(spec=jax.Device, id=i, process_index=i % processes, platform=platform) for i in range(4)]
        )

    check_matcher("host", mesh("cpu", processes=4))
    check_matcher("host", mesh("gpu", processes=1))
    with pytest.raises(InputError, match="the 2 CPU devices of a process"):
        check_matcher("host", mesh("cpu", processes=2))


def test_parameters_are_sharded_over_fsdp():
    model, _, params = one_layer_model()
    mesh = make_mesh(8)
    state = init_state(model, make_optimizer(OptimizerConfig()), mesh, seed=0)
    bytes_here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert bytes_here < 0.2 * sum(x.nbytes for x in jax.tree.leaves(state))
    with pytest.raises(InputError, match=r"fsdp 7: .* cannot be sharded over 7 devices"):
        parameter_shardings(make_mesh(7, jax.devices()[:7]), params)
