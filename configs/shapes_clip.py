"""A small CLIP with a ResNet, pretrained on captioned images of the Shapes world; nothing is downloaded.

Command:
    python train.py configs/shapes_clip.py --workdir runs/shapes_clip
Cost: 3,800 steps, about 40 minutes on 2 cores. A batch of the first 63% has 96 single objects, cut out of 32 images;
    one of the rest has 32 whole images with about 100 regions in all.
Hardware: 2 CPU cores.
Reached: names right out of 360 with oracle masks, on 200 images of val: 0.61 base, 0.62 novel, 0.57 unseen
    (docs/log.md).
"""

from clipvis_jax.data.captioned import CaptionedDataConfig
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.pretraining.step import ClipOptimizerConfig
from clipvis_jax.pretraining.task import ClipExperiment, Stage

config = ClipExperiment(
    backbone=ResNetConfig(depths=(1, 1, 2, 1), width=16, embed_dim=128, pool_grid=10, head_dim=32),
    text=TextConfig(width=128, num_heads=4, num_layers=2, context_length=48, embed_dim=128, activation="gelu"),
    pixel_decoder=PixelDecoderConfig(dim=128, mask_dim=128, num_layers=3, ffn_dim=256),
    query_decoder=QueryDecoderConfig(num_queries=30, num_layers=3, dim=128, mask_dim=128, ffn_dim=256),
    data=CaptionedDataConfig(num_workers=1),
    stages=(
        # From whole images at once, outlines are not learned at all in this time.
        Stage(64, share=0.46, single_objects=True),
        Stage(128, share=0.17, single_objects=True),
        # Frames of 160 pixels, at twice their size: at stride 32 the smallest objects still cover some pixels.
        Stage(320, share=0.37),
    ),
    optimizer=ClipOptimizerConfig(learning_rate=1e-3, num_steps=3800, warmup_steps=100, decay_share=0.37),
    loop=LoopConfig(log_every=20, checkpoint_every=500, evaluate_every=500),
)
