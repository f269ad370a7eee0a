"""The whole way from pixels to AP learns: random decoders under a random frozen CLIP memorise two images exactly."""

import jax
import numpy as np
import pytest

from clipvis_jax.data.pipeline import PipelineConfig, make_train_iterator
from clipvis_jax.data.shapes.dataset import ShapesDataset
from clipvis_jax.data.shapes.splits import ShapesConfig
from clipvis_jax.data.transforms import LargeScaleJitter
from clipvis_jax.evaluation import PROTOCOLS, evaluate_class_agnostic, ground_truth_from, parse_results
from clipvis_jax.inference.dataset_run import DatasetFrames
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.loop.sharding import make_mesh, put_batch
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.pretraining.task import shapes_tokenizer
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.optimizer import OptimizerConfig, make_optimizer
from clipvis_jax.training.step import TrainingConfig, first_non_finite, init_state, make_train_step
from clipvis_jax.training.structs import Targets, TrainingBatch

IMAGES = 2
FRAME_SIZE = 64
INPUT_SIZE = 192
"""Three times the frame's, so that logits at stride 4 are finer than two pixels of the frame."""
STEPS = 150
# Steps are larger than the authors', and the last ones small: the smallest object has 23 pixels, so an overlap of 0.95
# allows a single wrong one.
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0, num_steps=STEPS, drop_steps=(105, 135), warmup_factor=0.0
)
PIPELINE = PipelineConfig(
    batch_size=IMAGES,
    image_size=(INPUT_SIZE, INPUT_SIZE),
    augmentation=LargeScaleJitter(min_scale=1.0, max_scale=1.0, flip_probability=0.0),  # the whole frame, unchanged
    max_instances=8,
    num_workers=0,
)


def small_config(vocab_size):
    return ClipVisConfig(
        backbone=ResNetConfig(depths=(1, 1, 1, 1), width=16, embed_dim=32, pool_grid=2, head_dim=32),
        text=TextConfig(vocab_size=vocab_size, width=32, num_heads=2, num_layers=1, context_length=48, embed_dim=32),
        pixel_decoder=PixelDecoderConfig(dim=64, mask_dim=64, num_layers=1, num_heads=4, ffn_dim=128),
        query_decoder=QueryDecoderConfig(num_queries=10, num_layers=3, dim=64, mask_dim=64, num_heads=4, ffn_dim=128),
    )


def mask_scores(segmenter, dataset):
    """Return the class-agnostic AP of masks at every overlap from 0.5 to 0.95, at the frames' own size."""
    category = dataset.categories[0]
    records = []
    for index in range(len(dataset)):
        frames = DatasetFrames(dataset, index)
        ((_, image),) = frames
        # One class, so that every query gives one result; which one does not matter.
        result = segmenter.predict_image(image, [category.name])
        records += result.to_ytvis(frames.record.id, [category.id])
    ground_truth = ground_truth_from(dataset)
    metrics = evaluate_class_agnostic(ground_truth, parse_results(records, ground_truth), PROTOCOLS["ytvis"])
    return metrics.precision[0].mean(axis=-1)


@pytest.mark.slow
def test_two_images_are_learned_to_a_mask_ap_of_one():
    dataset = ShapesDataset(ShapesConfig(split="train", size=FRAME_SIZE, frames=1), count=IMAGES)
    tokenizer = shapes_tokenizer(48)
    model = ClipVis(small_config(tokenizer.vocab_size))
    mesh, optimizer = make_mesh(devices=jax.devices()[:1]), make_optimizer(OPTIMIZER)
    clip_vars = jax.jit(model.init_clip)(jax.random.key(1))
    state = init_state(model, optimizer, mesh, seed=0)
    segmenter = Segmenter(
        model,
        clip_vars,
        jax.device_get(state.params),
        tokenizer=tokenizer,
        config=InferenceConfig(size=INPUT_SIZE),
    )
    assert mask_scores(segmenter, dataset).max() < 0.1

    with make_train_iterator(dataset, PIPELINE) as batches:
        drawn = next(batches)
    assert sorted(drawn.video) == list(range(IMAGES))
    targets = Targets(drawn.masks_packed, drawn.valid, np.zeros_like(drawn.valid))
    batch = put_batch(TrainingBatch(drawn.image, targets, drawn.valid_size), mesh)
    step = make_train_step(model, TrainingConfig(losses=LossConfig(num_points=1024)), optimizer, mesh)
    trunk = {"trunk": clip_vars["trunk"]}
    for _ in range(STEPS):
        state, metrics = step(state, trunk, batch)
    assert first_non_finite(metrics) is None

    segmenter.params = jax.device_put(state.params)
    np.testing.assert_array_equal(mask_scores(segmenter, dataset), 1.0)
