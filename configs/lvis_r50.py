"""Decoders with 6 layers on LVIS v1 without masks of rare classes, under CLIP's RN50.

Command:
    clipvis convert --clip RN50.safetensors --out clip_rn50
    python train.py configs/lvis_r50.py --clip clip_rn50 --data-root data --workdir runs/lvis_r50
Cost: 368,750 steps of 16 images at 1024x1024.
Hardware: the authors used 4 GPUs (with a batch of 8, says their README).
TPU: add --step.dtype bfloat16; on v5e a chip with one image then takes 3.1 GiB, by compilation (docs/benchmarks.md).
Scores: none while it trains (with --loop.evaluate-every 5000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/lvis_r50/model --dataset lvvis_val --data-root data --out eval/lvis_r50
Published AP, all frames, T = 9, K = 5: LV-VIS val 19.5, LV-VIS test 14.6, OVIS 14.1, YouTube-VIS 2019 32.2,
YouTube-VIS 2021 30.1, BURST 5.2.
"""

from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.training.task import ClipVisExperiment

# All other defaults are this experiment.
config = ClipVisExperiment(loop=LoopConfig(picture_every=5000))
