"""The small CLIP trained on, on whole images alone.

The decoders of the model stay as they are; configs/shapes_settle.py makes them fit again.

Command:
    python train.py configs/shapes_clip_more.py --init-from runs/shapes_finetune/model --workdir runs/shapes_clip_more
Cost: 1,000 steps of 32 images at 320x320, about 45 minutes (without AVX-512).
Hardware: 2 CPU cores.
"""

import dataclasses
from pathlib import Path

from clipvis_jax.config import load_config
from clipvis_jax.pretraining.clip_task import Stage
from clipvis_jax.pretraining.step import ClipOptimizerConfig
from clipvis_jax.training.loop import LoopConfig

config = dataclasses.replace(
    load_config(Path(__file__).with_name("shapes_clip.py")),
    stages=(Stage(320),),
    optimizer=ClipOptimizerConfig(learning_rate=7e-4, num_steps=1000, warmup_steps=50, decay_share=0.9),
    loop=LoopConfig(log_every=20, checkpoint_every=250, evaluate_every=0),
)
