"""Fine-tuning of a whole model on other footage: an experiment whose settings follow from the model and the data."""

import math
from collections import Counter

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.data.records import Dataset
from clipvis_jax.data.sampling import usable_instances
from clipvis_jax.data.transforms import ShortSideResize
from clipvis_jax.errors import InputError
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.optimizer import OptimizerConfig
from clipvis_jax.training.step import TrainingConfig
from clipvis_jax.training.task import ClipVisExperiment, EvaluationConfig
from clipvis_jax.weights.model_folder import ModelFolder

_SCALES = (0.8, 0.9, 1.0)
"""Frames are shown at these parts of the size that they are segmented at."""
_NUM_SCORES = 5
"""How often scores are computed after the first step."""
_MOST_INSTANCES = 100


def finetuning(
    model: ModelFolder,
    dataset: Dataset,
    evaluated: Dataset,
    *,
    num_steps: int,
    batch_size: int = 8,
    learning_rate: float | None = None,
    size: int | None = None,
    seed: int = 0,
    num_workers: int = 1,
) -> ClipVisExperiment:
    """Work out how to train a model's decoders further.

    Decoders keep their sizes, and frames the size that the model is run at. The learning rate is below that of a whole
    training, since the decoders are trained already: it rises over the first steps, and drops to a third and to a tenth
    after 60% and 85% of them. Scores are computed before the first step and up to five times after it, and the best
    state becomes the model.

    Args:
        model: What to begin with.
        dataset: What to train on.
        evaluated: What scores are computed on, all of it.
        num_steps: Length of the training.
        batch_size: Frames per step.
        learning_rate: The largest learning rate; None: 1e-4 for 16 frames, less by the square root for fewer.
        size: Shorter side of the network's input, in pixels; None: the model's.
        seed: Decides the order of frames and all other draws.
        num_workers: Processes that prepare batches.

    Raises:
        InputError: A number is out of range, or there is nothing to train on.
    """
    for name, value, low in (("steps", num_steps, 1), ("batch_size", batch_size, 1), ("workers", num_workers, 0)):
        if value < low:
            raise InputError(f"{name} {value}: give at least {low}")
    if learning_rate is not None and not learning_rate > 0:
        raise InputError(f"learning_rate {learning_rate}: give more than 0")
    defaults = model.run_defaults
    if size is None and defaults.size is not None:
        inference = InferenceConfig(size=defaults.size, max_size=defaults.max_size)
    else:
        inference = InferenceConfig(size=size)
    sizes = Counter(
        inference.sizes(height, width, is_image=dataset.info.is_images).padded_size
        for height, width, _ in dataset.video_sizes()
    )
    if not sizes:
        raise InputError(f"{dataset.name}: has no video to train on")
    (image_size, _), *_ = sizes.most_common(1)
    side = inference.shorter_side(is_image=dataset.info.is_images)
    most_instances = max(len(usable_instances(dataset[index].instances)) for index in range(len(dataset)))
    every = math.ceil(num_steps / _NUM_SCORES)
    authors = LossConfig()
    return ClipVisExperiment(
        backbone=None,
        pixel_decoder=model.config.pixel_decoder,
        query_decoder=model.config.query_decoder,
        dataset=dataset,
        data=PipelineConfig(
            batch_size=batch_size,
            image_size=image_size,
            augmentation=ShortSideResize(
                short_sides=tuple(round(scale * side) for scale in _SCALES), max_long_side=inference.max_size
            ),
            max_instances=min(max(most_instances, 1), _MOST_INSTANCES),
            num_workers=num_workers,
        ),
        # As many points per pixel as the authors have at 1024x1024.
        step=TrainingConfig(
            losses=LossConfig(num_points=math.ceil(authors.num_points * math.prod(image_size) / 2**20))
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-4 * math.sqrt(batch_size / 16) if learning_rate is None else learning_rate,
            num_steps=num_steps,
            drop_steps=tuple(sorted({math.ceil(0.6 * num_steps), math.ceil(0.85 * num_steps)} - {num_steps})),
            drop_factor=0.3,
            warmup_steps=min(100, num_steps // 10),
            warmup_factor=0.0,
        ),
        seed=seed,
        evaluation=EvaluationConfig(evaluated, limit=None, inference=inference),
        loop=LoopConfig(
            log_every=min(20, num_steps),
            checkpoint_every=every,
            keep_last=2,
            evaluate_every=every,
            evaluate_first=True,
            export="best",
        ),
    )
