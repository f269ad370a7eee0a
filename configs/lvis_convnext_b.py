"""Decoders with 6 layers on LVIS v1 without masks of rare classes, under CLIP's ConvNeXt-B.

Command:
    clipvis convert --clip convnext_base_w.safetensors --out clip_convnext_b
    python train.py configs/lvis_convnext_b.py --clip clip_convnext_b --data-root data --workdir runs/lvis_convnext_b
Cost: 368,750 steps of 16 images at 1024x1024.
Hardware: as configs/lvis_r50.py.
TPU: add --step.dtype bfloat16; on v5e a chip with one image then takes 3.4 GiB, by compilation (docs/benchmarks.md).
Scores: none while it trains (with --loop.evaluate-every 5000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/lvis_convnext_b/model --dataset lvvis_val --data-root data --out eval/lvis_convnext_b
Published AP, all frames, T = 9, K = 5: LV-VIS val 32.2 (novel classes 40.2), LV-VIS test 25.3, OVIS 18.5, YouTube-VIS
2019 42.1, YouTube-VIS 2021 37.9, BURST 8.3.
"""

from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.training.task import ClipVisExperiment

config = ClipVisExperiment(backbone="convnext_base_w", loop=LoopConfig(picture_every=5000))
