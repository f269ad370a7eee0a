"""Fine-tuning of the decoders of configs/shapes_clipvis.py.

Images keep the size that the videos have when they are segmented, and ten queries are added to the ten that there are.

Command:
    python train.py configs/shapes_clip.py --workdir runs/shapes_clip
    python train.py configs/shapes_clipvis.py --clip runs/shapes_clip/model --workdir runs/shapes_clipvis
    python train.py configs/shapes_finetune.py --init-from runs/shapes_clipvis/model --workdir runs/shapes_finetune
Cost: 2,800 steps of 8 images at 320x320, about 75 minutes (without AVX-512).
Hardware: 2 CPU cores.
Reached: AP 50.6, AP50 64.4 on val (docs/log.md).
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.data.transforms import LargeScaleJitter
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.optimizer import OptimizerConfig
from clipvis_jax.training.step import TrainingConfig
from clipvis_jax.training.task import ClipVisExperiment, EvaluationConfig

config = ClipVisExperiment(
    backbone=None,
    pixel_decoder=PixelDecoderConfig(dim=96, mask_dim=96, num_layers=2, num_heads=4, ffn_dim=192),
    query_decoder=QueryDecoderConfig(num_queries=20, num_layers=3, dim=96, mask_dim=96, ffn_dim=192),
    dataset="shapes_train",
    data=PipelineConfig(
        batch_size=8,
        image_size=(320, 320),
        augmentation=LargeScaleJitter(min_scale=1.0, max_scale=1.0),
        max_instances=8,
        repeat_threshold=0.0,
        num_workers=1,
    ),
    step=TrainingConfig(losses=LossConfig(num_points=1024)),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        num_steps=2800,
        drop_factor=0.5,
        drop_steps=(900, 1200, 1500, 1800, 2100, 2350, 2600),
        warmup_steps=100,
        warmup_factor=0.0,
    ),
    evaluation=EvaluationConfig("shapes_val", limit=8, inference=InferenceConfig(size=320)),
    loop=LoopConfig(log_every=20, checkpoint_every=400, evaluate_every=0),
    storage="float16",
)
